// Ways to send and to wait that the kernels do not use, for them to be measured: what
// csrc/cuda/primitives.cuh would get. emulated/candidates.cuh has them in plain C++.
#pragma once
#include "cuda/primitives.cuh"

namespace rnnfast::device_check {

using namespace cuda;

// What all lanes of the warp have written is there for all of them after it.
RNNFAST_INLINE void warp_barrier() { __syncwarp(); }

// store_async of 4 bytes
RNNFAST_INLINE void store_word_async(uint32_t* place, uint32_t word, const uint64_t* barrier, int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there, counter;\n"
      "mapa.shared::cluster.u32 there, %0, %3;\n"
      "mapa.shared::cluster.u32 counter, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [counter];\n"
      "}" ::"r"(shared_address(place)),
      "r"(word), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
#endif
}
// one packet of load_packets
RNNFAST_INLINE uint64_t load_packet(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}

// 16 bytes to the shared memory of block `rank`, which nothing counts: arrive_there says that they are there.
RNNFAST_INLINE void store_quad_there(Quad* place, const Quad& quad, int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %5;\n"
      "st.shared::cluster.v4.b32 [there], {%1, %2, %3, %4};\n"
      "}" ::"r"(shared_address(place)),
      "r"(quad.word[0]), "r"(quad.word[1]), "r"(quad.word[2]), "r"(quad.word[3]), "r"(rank)
      : "memory");
#endif
}

// A mbarrier whose phases end after so many arrivals; arrivals_try_wait as mbarrier_try_wait.
RNNFAST_INLINE void arrivals_init(uint64_t* barrier, int arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n"
      "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier)),
      "r"(arrivals)
      : "memory");
#endif
}
RNNFAST_INLINE void arrive_there(uint64_t* barrier, int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 counter;\n"
      "mapa.shared::cluster.u32 counter, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [counter];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}
RNNFAST_INLINE bool arrivals_try_wait(const uint64_t* barrier, int parity) {
  return mbarrier_try_wait(barrier, parity);
}

// This thread's writes to shared memory are seen by the copies of copy_async that come after it.
RNNFAST_INLINE void before_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Bytes (a multiple of 16) of this block's shared memory to the same of block `rank`, whose barrier counts
// them
RNNFAST_INLINE void copy_async(void* place, const void* from, uint32_t bytes, const uint64_t* barrier,
                               int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there, counter;\n"
      "mapa.shared::cluster.u32 there, %0, %4;\n"
      "mapa.shared::cluster.u32 counter, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%1], %2, [counter];\n"
      "}" ::"r"(shared_address(place)),
      "r"(shared_address(from)), "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
#endif
}

// mbarrier_try_wait with the order of the cluster: it drops the nearest cache
RNNFAST_INLINE bool mbarrier_try_wait_in_cluster(const uint64_t* barrier, int parity) {
  uint32_t ended = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return ended;
}

}  // namespace rnnfast::device_check
