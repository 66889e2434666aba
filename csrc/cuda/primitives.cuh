// What the kernels ask of the device, by name. A second implementation of this file in plain C++, under
// tests/, runs the same kernels on the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "types.h"

#define RNNFAST_INLINE __device__ __forceinline__
#define RNNFAST_BOTH __host__ __device__ __forceinline__
#define RNNFAST_KERNEL __global__

namespace rnnfast::cuda {

constexpr int kLanes = 32;  // of a warp

RNNFAST_INLINE int thread_index() { return static_cast<int>(threadIdx.x); }
RNNFAST_INLINE int64_t block_index() { return blockIdx.x; }

// The value of lane `index ^ mask`, or of a lane; all lanes of the warp take part.
template <class V>
RNNFAST_INLINE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V>
RNNFAST_INLINE V shuffle(V value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

RNNFAST_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
RNNFAST_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }

RNNFAST_INLINE float widened(float v) { return v; }
RNNFAST_INLINE double widened(double v) { return v; }
RNNFAST_INLINE float widened(Bfloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
RNNFAST_INLINE float widened(Half v) { return __half2float(__ushort_as_half(v.bits)); }

// to the nearest, ties to even
RNNFAST_INLINE void narrow(float v, float& to) { to = v; }
RNNFAST_INLINE void narrow(double v, double& to) { to = v; }
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

// Every block of a grid, of so many threads each. Null, or what went wrong.
template <class Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, void* stream,
                   const Argument& argument) {
  if (blocks == 0) return nullptr;
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(argument);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace rnnfast::cuda
