// The cells, compiled for the device, and the small functions that every kernel uses.
#pragma once
#include "cuda/primitives.cuh"

namespace rnnfast::cuda {

// clang-format off: each needs what the one before it gives
#include "cells/real.h"
template <>
struct Real<float> : Constants<float> {
  typedef int32_t Int;
};
template <>
struct Real<double> : Constants<double> {
  typedef int64_t Int;
};
#include "cells/all.h"
// clang-format on

template <class T>
RNNFAST_BOTH T least(T a, T b) {
  return a < b ? a : b;
}

RNNFAST_BOTH int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace rnnfast::cuda
