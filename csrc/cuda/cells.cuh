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

// The same with the device's own exp2 and reciprocal, for values that are rounded to halves or to TF32 before
// anything else is made of them: an exact division is some twenty instructions and a branch.
namespace rough {
#include "cells/real.h"
template <>
struct Real<float> : Constants<float> {
  typedef int32_t Int;
  static constexpr bool kRough = true;
};
#include "cells/all.h"
}  // namespace rough
// clang-format on
template <class Cell>
struct RoughOf;
#define RNNFAST_ROUGH(name, Cell) \
  template <>                     \
  struct RoughOf<Cell> {          \
    typedef rough::Cell Type;     \
  };
RNNFAST_CELLS(RNNFAST_ROUGH)
#undef RNNFAST_ROUGH

// Which gate's product with h goes to a slot, and which gate's with x; -1: none
template <class Cell>
RNNFAST_INLINE constexpr int hidden_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  if (Cell::kSlots == Cell::kGates) return slot < Cell::kGates ? slot : -1;
  return slot < Cell::kGates - 1 ? slot : slot == Cell::kSlots - 1 ? Cell::kGates - 1 : -1;
}
template <class Cell>
RNNFAST_INLINE constexpr int input_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  return slot < Cell::kGates ? slot : -1;
}

template <class T>
RNNFAST_BOTH T least(T a, T b) {
  return a < b ? a : b;
}

template <class T>
RNNFAST_BOTH T most(T a, T b) {
  return a > b ? a : b;
}

RNNFAST_BOTH int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace rnnfast::cuda
