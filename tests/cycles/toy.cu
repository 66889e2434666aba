// A toy of a resident kernel's step, whose machine code is stored beside it (toy.sass) for
// tests/test_cycles.py:
//   nvcc -O3 -arch=sm_90 -lineinfo -cubin toy.cu && nvdisasm -c -gi -hex toy.cubin
#include <cuda_runtime.h>

namespace rnnfast {
struct Bfloat16;
namespace cuda {
enum class Team { kBlock };
struct Lstm {
  static __device__ float forward(float x) { return __frcp_rn(1 + x); }
};
template <class E>
struct ResidentForward {
  const float *input, *resets;
  float* y;
  int steps;
};

__device__ float* shared() {
  extern __shared__ float bytes[];
  return bytes;
}
struct Thread {
  const float* from;
  __device__ float load_input(int s) const { return from[s * 32]; }
  __device__ void product(int s, float* c) const {
    const float b = shared()[s & 1];
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(b)));
    c[0] += load_input(s);
  }
};

template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
__global__ void resident_forward(ResidentForward<E> p) {
  const Thread thread{p.input + threadIdx.x};
  float c[4] = {};
#pragma unroll 1
  for (int s = 0; s < p.steps; ++s) {
    thread.product(s, c);
    float value = Cell::forward(c[0]);
    if (p.resets) value += p.resets[s];
    p.y[s * 32 + threadIdx.x] = value;  // store(s)
    __syncthreads();                    // exchange.finish
    shared()[1 - (s & 1)] = value;      // exchange.send(s)
    __syncthreads();                    // exchange.finish
  }
}
template __global__ void resident_forward<Lstm, Bfloat16, 8, Team::kBlock, true>(ResidentForward<Bfloat16>);
}  // namespace cuda
}  // namespace rnnfast
