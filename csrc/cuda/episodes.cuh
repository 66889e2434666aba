// Which rows of the batch take part in a time step, and which of them begin anew there.
#pragma once
#include "cuda/kernels.h"
#include "cuda/primitives.cuh"

namespace rnnfast::cuda {

// whether sequence b, which has lengths[b] steps or, where that is null, all, has time step t
RNNFAST_INLINE bool within(const int64_t* lengths, int64_t t, int64_t b) {
  return !lengths || t < lengths[b];
}
// whether a row of x, which takes part, begins anew
template <class A>
RNNFAST_INLINE bool has(const Resets<A>& resets, int64_t row) {
  return resets.at && resets.at[row];
}

}  // namespace rnnfast::cuda
