// What the kernels ask of the device, by name. A second implementation of this file in plain C++, under
// tests/, runs the same kernels on the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/kernels.h"
#include "types.h"

#define RNNFAST_INLINE __device__ __forceinline__
#define RNNFAST_BOTH __host__ __device__ __forceinline__
#define RNNFAST_KERNEL __global__
// of a parameter: it may be indexed without a copy of it in memory
#define RNNFAST_READ_ONLY __grid_constant__

namespace rnnfast::cuda {

constexpr int kLanes = 32;  // of a warp

RNNFAST_INLINE int thread_index() { return static_cast<int>(threadIdx.x); }
RNNFAST_INLINE int64_t block_index() { return blockIdx.x; }
RNNFAST_INLINE int block_size() { return static_cast<int>(blockDim.x); }

// What all threads of a block have written to shared memory is there for all after it.
RNNFAST_INLINE void block_barrier() { __syncthreads(); }

// The same for all threads of a cluster that have not left. A device without clusters is never asked to.
RNNFAST_INLINE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
#endif
}

// which block of its cluster this is
RNNFAST_INLINE int cluster_rank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// Counts the bytes that blocks of the cluster store into this block's shared memory. It passes through
// phases: one ends when mbarrier_expect has said how many bytes it has and as many have come, which may come
// before. Of two phases that follow each other one is even (0) and one odd.
RNNFAST_INLINE uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}
// by one thread; the others, and other blocks, know of it after cluster_barrier()
RNNFAST_INLINE void mbarrier_init(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
      : "memory");
#endif
}
RNNFAST_INLINE void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// the phase that is under way takes so many bytes more: no new one is begun
RNNFAST_INLINE void mbarrier_expect_more(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// Whether the phase of this parity has ended, and what was stored is there; waits for it, but not for long.
// What came into this block's shared memory no cache has an older copy of, so nothing has to be seen by more
// than the block: for the cluster each look would empty the first cache.
RNNFAST_INLINE bool mbarrier_try_wait(const uint64_t* barrier, int parity) {
  uint32_t ended = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return ended;
}
// 16 bytes to this place in the shared memory of block `rank` of the cluster, which its barrier counts
struct Quad {
  alignas(16) uint32_t word[4];
};
RNNFAST_INLINE void store_async(Quad* place, const Quad& quad, const uint64_t* barrier, int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there, counter;\n"
      "mapa.shared::cluster.u32 there, %0, %6;\n"
      "mapa.shared::cluster.u32 counter, %5, %6;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%1, %2, %3, %4}, [counter];\n"
      "}" ::"r"(shared_address(place)),
      "r"(quad.word[0]), "r"(quad.word[1]), "r"(quad.word[2]), "r"(quad.word[3]),
      "r"(shared_address(barrier)), "r"(rank)
      : "memory");
#endif
}

// The block's dynamic shared memory
template <class V>
RNNFAST_INLINE V* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<V*>(shared_bytes);
}

// The value of lane `index ^ mask`, or of a lane; all lanes of the warp take part.
template <class V>
RNNFAST_INLINE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V>
RNNFAST_INLINE V shuffle(V value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// The same number. What is made of it, in a loop, is made each time, and no register holds it meanwhile.
RNNFAST_INLINE int made_anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
// a place in global memory, made where it is asked for
template <class T>
RNNFAST_INLINE T* made_here(T* p) {
  size_t place = __cvta_generic_to_global(p);
  asm volatile("" : "+l"(place));
  return static_cast<T*>(__cvta_global_to_generic(place));
}
// The same number, by all lanes of a warp. A register holds it from here on: without this it would be made
// again wherever it is used, from a parameter or the thread's index, which takes longer than what it is for.
RNNFAST_INLINE int kept(int value) {
  asm volatile("shfl.sync.bfly.b32 %0, %0, 0, 0x1f, 0xffffffff;" : "+r"(value));
  return value;
}

RNNFAST_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
RNNFAST_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }

// by the device's own instructions: the relative error is 2^-22, or one bit of the last place; what is
// subnormal is 0
RNNFAST_INLINE float exp2_roughly(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
RNNFAST_INLINE float reciprocal_roughly(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}

RNNFAST_INLINE float widened(float v) { return v; }
RNNFAST_INLINE double widened(double v) { return v; }
RNNFAST_INLINE float widened(Bfloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
RNNFAST_INLINE float widened(Half v) { return __half2float(__ushort_as_half(v.bits)); }

// to the nearest, ties to even
RNNFAST_INLINE void narrow(float v, float& to) { to = v; }
RNNFAST_INLINE void narrow(double v, double& to) { to = v; }
RNNFAST_INLINE void narrow(Bfloat16 v, Bfloat16& to) { to = v; }
RNNFAST_INLINE void narrow(Half v, Half& to) { to = v; }
RNNFAST_INLINE void narrow(float v, Bfloat16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
RNNFAST_INLINE void narrow(float v, Half& to) { to.bits = __half_as_ushort(__float2half_rn(v)); }

// 16 bytes at once; p is a multiple of them
template <class E>
struct Chunk {
  static constexpr int kNumbers = 16 / sizeof(E);
  alignas(16) E number[kNumbers];
};
template <class E>
RNNFAST_INLINE Chunk<E> load_chunk(const E* p) {
  return __builtin_bit_cast(Chunk<E>, *reinterpret_cast<const uint4*>(p));
}
template <class E>
RNNFAST_INLINE void store_chunk(E* p, const Chunk<E>& chunk) {
  *reinterpret_cast<uint4*>(p) = __builtin_bit_cast(uint4, chunk);
}

// whether this is compiled for Hopper or later, where kernels that follow one another (launch_blocks) may
// begin early
#if __CUDA_ARCH__ >= 900
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif
// the next one may, from here on
RNNFAST_INLINE void let_next_begin() {
  if constexpr (kHopper) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// all before it in the stream have ended, and what they wrote is there
RNNFAST_INLINE void wait_for_previous() {
  if constexpr (kHopper) asm volatile("griddepcontrol.wait;" ::: "memory");
}

// asks for the line of p in the nearest cache
RNNFAST_INLINE void prefetch(const void* p) { asm volatile("prefetch.global.L1 [%0];" ::"l"(p)); }

// 4 bytes: two halves or a float; p is a multiple of them.
template <class E>
RNNFAST_INLINE uint32_t load_word(const E* p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

// A word of a tensor as multiply_tile reads it: of floats it reads TF32, to the nearest here.
template <class E>
RNNFAST_INLINE uint32_t as_operand(uint32_t word) {
  if constexpr (sizeof(E) == 4) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(__uint_as_float(word)));
  return word;
}
// a number for a product alone
RNNFAST_INLINE void narrow_operand(float v, float& to) {
  to = __uint_as_float(as_operand<float>(__float_as_uint(v)));
}
RNNFAST_INLINE void narrow_operand(float v, Bfloat16& to) { narrow(v, to); }
RNNFAST_INLINE void narrow_operand(float v, Half& to) { narrow(v, to); }

// the numbers of a word, and back
RNNFAST_INLINE uint32_t word_of(const float* values) { return __float_as_uint(values[0]); }
template <class E>
RNNFAST_INLINE uint32_t word_of(const E* values) {
  return values[0].bits | uint32_t{values[1].bits} << 16;
}
RNNFAST_INLINE void numbers_of(uint32_t word, float* values) { values[0] = __uint_as_float(word); }
template <class E>
RNNFAST_INLINE void numbers_of(uint32_t word, E* values) {
  values[0].bits = static_cast<uint16_t>(word);
  values[1].bits = static_cast<uint16_t>(word >> 16);
}
// Of two numbers' words of two rows (the rows of a pair, one after the other) the word of one row: `other` is
// the neighbour's, and the even number is the first.
RNNFAST_INLINE uint32_t word_of_row(uint32_t mine, uint32_t other, int odd) {
  return odd ? (other >> 16) | (mine & 0xffff0000u) : (mine & 0xffffu) | other << 16;
}
template <class E>
constexpr uint32_t kNanWord = sizeof(E) == 4 ? 0x7fffffffu : 0x7fff7fffu;

// 8 bytes that other blocks write and read at the same time: whole, in no order with anything else
RNNFAST_INLINE void store_packet(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
// two that stand next to each other, each of them whole; p is a multiple of 16 bytes
struct PacketPair {
  uint64_t packet[2];
};
RNNFAST_INLINE PacketPair load_packets(const uint64_t* p) {
  PacketPair v;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(v.packet[0]), "=l"(v.packet[1])
               : "l"(p)
               : "memory");
  return v;
}
// After so many looks in vain at what another block has to write: those who wait longer leave its stores more
// room.
RNNFAST_INLINE void pause(int looks) {
  if (looks > 4) __nanosleep(100);
}

// of a clock that goes on while the kernel waits for its turn on the device
RNNFAST_INLINE int64_t nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// 16 bytes on their way from global to shared memory, or zeros, of which nothing is read. They are there for
// the thread that asked after wait_for_copies<n>(), if no more than n commits have come after theirs, and for
// its block after a barrier.
RNNFAST_INLINE void copy_async(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0)
               : "memory");
}
RNNFAST_INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
RNNFAST_INLINE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Four times 8 rows of 16 bytes of shared memory, by a warp: lane l gives the place of row l % 8 of the l /
// 8-th, and gets of each, in word[i], of row l / 4 word l % 4.
RNNFAST_INLINE void load_matrices(uint32_t (&word)[4], const void* place) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(place))
               : "memory");
}

// a number at this place of the shared memory of block `rank` of the cluster
RNNFAST_INLINE float load_of_block(const float* place, int rank) {
  float value = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n"
      "}"
      : "=f"(value)
      : "r"(shared_address(place)), "r"(rank)
      : "memory");
#endif
  return value;
}

// c [16, 8] += a [16, 8 words] b [8 words, 8] by a warp, in float. Lane l has of a: row l / 4 (a[0], a[2])
// and l / 4 + 8 (a[1], a[3]), words l % 4 (a[0], a[1]) and l % 4 + 4 (a[2], a[3]); of b: column l / 4, the
// same words; of c: row l / 4 (c[0], c[1]) and l / 4 + 8 (c[2], c[3]), columns 2 (l % 4) and one on.
template <class E>
RNNFAST_INLINE void multiply_tile(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  if constexpr (sizeof(E) == 4)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::is_same_v<E, Bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// lets a block of a kernel have so many bytes of shared memory
template <class Argument>
cudaError_t allow_shared_memory(void (*kernel)(Argument), size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  // the most there is, not `bytes`: another thread may be launching the same kernel with more
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// Clusters of so many blocks, of so many threads and bytes of shared memory each; block i is of cluster
// i / cluster. `together`: instead of clusters the whole grid runs at the same time. Null, or what went
// wrong.
template <class Argument>
const char* launch_clusters(void (*kernel)(Argument), int64_t clusters, int cluster, int threads,
                            size_t bytes, bool together, void* stream, const Argument& argument) {
  if (clusters == 0) return nullptr;
  cudaLaunchAttribute attribute{};
  if (together) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = together || cluster > 1;
  cudaError_t error = allow_shared_memory(kernel, bytes);
  // more than every device can do: the plan asks for no more than this one can
  if (error == cudaSuccess && !together && cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, argument);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Every block of a grid by itself, or with those of its cluster. `follows`: the launch before it in the
// stream was of such a kernel, too, and this one may begin before that has ended; it must wait for it. Not
// while a graph is captured: older drivers know no such order of its kernels.
template <class Argument>
const char* launch_blocks(void (*kernel)(Argument), int64_t blocks, int threads, size_t bytes, bool follows,
                          void* stream, const Argument& argument, int cluster = 1) {
  if (blocks == 0) return nullptr;
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  if (follows && current_device().capability >= 90 && !capturing(stream)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  cudaError_t error = allow_shared_memory(kernel, bytes);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, argument);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
template <class Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, void* stream,
                   const Argument& argument) {
  return launch_blocks(kernel, blocks, threads, 0, false, stream, argument);
}

}  // namespace rnnfast::cuda
