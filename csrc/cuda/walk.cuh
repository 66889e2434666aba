// A walk over the steps of sequences: where their rows stand, which rows take part in a step, and what of
// that a thread of a resident kernel carries from step to step.
#pragma once
#include "cuda/cells.cuh"
#include "cuda/episodes.cuh"

namespace rnnfast::cuda {

RNNFAST_INLINE int64_t time_of(const Rows& r, int64_t s) { return r.reverse ? r.steps - 1 - s : s; }
RNNFAST_INLINE int64_t place_of(const Rows& r, int64_t s, int64_t b) {
  return r.first + (r.offsets ? r.offsets[time_of(r, s)] + b : s * r.step + b * r.stride);
}
// how many rows step s has
RNNFAST_INLINE int64_t rows_of(const Rows& r, int64_t s) {
  return r.sizes ? r.sizes[time_of(r, s)] : r.batch;
}
// whether step s has row b
RNNFAST_INLINE bool takes_part(const Rows& r, int64_t s, int64_t b) {
  return b < rows_of(r, s) && within(r.lengths, time_of(r, s), b);
}
// whether row b, which step s has, has no step before it, and none after it
RNNFAST_INLINE bool begins(const Rows& r, int64_t s, int64_t b) { return s == 0 || !takes_part(r, s - 1, b); }
RNNFAST_INLINE bool ends(const Rows& r, int64_t s, int64_t b) {
  return s + 1 == r.steps || !takes_part(r, s + 1, b);
}

// Whether all rows do the same in all steps: sequences of equal length, without resets. Such walks have
// kernels of their own (kPlain).
template <class A>
RNNFAST_BOTH bool is_plain(const Rows& r, const Resets<A>& resets) {
  return !r.sizes && !r.lengths && !resets.at;
}

// where row 0 stands in a step
struct Steps {
  int at;

  RNNFAST_INLINE static Steps of(const Rows& r, int64_t s) { return {static_cast<int>(place_of(r, s, 0))}; }
  RNNFAST_INLINE int place(const Rows& r, int b) const { return at + b * static_cast<int>(r.stride); }
};

// What two rows next to each other do in a step, or a thread's cells, where they are others: a bit each
struct Pair {
  int bits = 0;

  RNNFAST_INLINE bool has(int n) const { return bits >> n & 1; }
  RNNFAST_INLINE void add(int n, bool is) { bits |= is << n; }
};
// of the rows b and b + 1, those of the batch
RNNFAST_INLINE Pair rows_of_batch(int b, int batch) { return {b + 1 < batch ? 3 : b < batch ? 1 : 0}; }

// where row `at` of an array begins whose rows are so many bytes apart; `base` is in row 0
template <class T>
RNNFAST_INLINE T* row_at(T* base, int at, int bytes) {
  const uint64_t offset = uint64_t{static_cast<uint32_t>(at)} * static_cast<uint32_t>(bytes);
  if constexpr (std::is_const_v<T>)
    return reinterpret_cast<T*>(reinterpret_cast<const unsigned char*>(base) + offset);
  else
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(base) + offset);
}

}  // namespace rnnfast::cuda
