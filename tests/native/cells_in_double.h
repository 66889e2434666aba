// The cells in double, from the text that the kernels are made of.
#pragma once
#include <cstdint>

#include "cells/facts.h"

namespace rnnfast::in_double {

#pragma push_macro("RNNFAST_INLINE")
#undef RNNFAST_INLINE
#define RNNFAST_INLINE inline
inline double fma(double a, double b, double c) { return a * b + c; }
// clang-format off: each needs what the one before it gives
#include "cells/real.h"
template <>
struct Real<double> : Constants<double> {
  typedef int64_t Int;
};
#include "cells/all.h"
// clang-format on
#pragma pop_macro("RNNFAST_INLINE")

}  // namespace rnnfast::in_double
