// What the threads and blocks of a resident kernel have to tell each other: where the rows of a step stand,
// the values that travel from one step to the next, and sums that several warps have parts of.
#pragma once
#include "cuda/kernels.h"
#include "cuda/primitives.cuh"

namespace rnnfast::cuda {

RNNFAST_INLINE int64_t time_of(const Rows& r, int64_t s) { return r.reverse ? r.steps - 1 - s : s; }
RNNFAST_INLINE int64_t place_of(const Rows& r, int64_t s, int64_t b) {
  return r.first + (r.offsets ? r.offsets[time_of(r, s)] + b : s * r.step + b * r.stride);
}
// how many rows step s has
RNNFAST_INLINE int64_t rows_of(const Rows& r, int64_t s) {
  return r.sizes ? r.sizes[time_of(r, s)] : r.batch;
}
// whether row b, which step s has, has no step before it, and none after it
RNNFAST_INLINE bool begins(const Rows& r, int64_t s, int64_t b) { return s == 0 || b >= rows_of(r, s - 1); }
RNNFAST_INLINE bool ends(const Rows& r, int64_t s, int64_t b) {
  return s + 1 == r.steps || b >= rows_of(r, s + 1);
}

// h or da of a step, on its way from the threads that made it to the blocks that need all of it: the buffers
// [kBuffers, rows, ld] in shared memory. Within a cluster every thread writes to all blocks' buffers, which
// steps read in turn, and the cluster's barrier ends the step. On a grid (kWide) it goes through global
// memory, in packets that carry the number of their step: whoever needs one reads it until the number is
// right, and nothing else is waited for. Two places there are enough, because nobody is two steps ahead of
// one whom he waits for; and one buffer, because whoever receives the next step is past a barrier (of Parts)
// behind which no warp reads what came for this one.
template <class E, bool kWide>
struct Exchange {
  static constexpr int kBuffers = kWide ? 1 : 2;
  const Links& links;
  E* buffers;
  int rows, ld;
  int64_t numbers;   // of a row that count
  uint64_t* places;  // of this team, [2, rows / kWord, numbers]
  bool lost = false;

  RNNFAST_INLINE E* buffer(int64_t step) const { return buffers + step % kBuffers * rows * ld; }

  // two rows' values of number k for `step`; row is even
  RNNFAST_INLINE void send(int64_t step, int row, int64_t k, const E* values) {
    if constexpr (kWide) {
      const uint64_t stamp = uint64_t(links.first_step + step) << 32;
#pragma unroll
      for (int n = 0; n < 2; n += kWord<E>)
        store_packet(places + ((step & 1) * rows + row + n) / kWord<E> * numbers + k,
                     stamp | word_of(values + n));
    } else {
      for (int n = 0; n < 2; ++n) {
        E* const place = buffer(step) + (row + n) * ld + k;
        if (links.blocks == 1)
          *place = values[n];
        else
          for (int rank = 0; rank < links.blocks; ++rank) *peer(place, rank) = values[n];
      }
    }
  }

  // What was sent for the step before has been sent; for kWide not even that.
  RNNFAST_INLINE void finish() const {
    if constexpr (!kWide) {
      if (links.blocks == 1)
        block_barrier();
      else
        cluster_barrier();
    }
  }

  // What was sent for `step` stands in its buffer. A packet that never comes (a bounded wait) is NaN, and the
  // host is told.
  RNNFAST_INLINE void receive(int64_t step) {
    if constexpr (kWide) {
      constexpr int kAtOnce = 8;  // loads on their way: each takes as long as a product
      const int width = static_cast<int>(numbers), count = rows / kWord<E> * width;
      const uint64_t* const from = places + (step & 1) * count;
      const uint32_t wanted = static_cast<uint32_t>(links.first_step + step);
      for (int first = thread_index(); first < count; first += kAtOnce * block_size()) {
        uint64_t packet[kAtOnce] = {};
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
          if (first + j * block_size() < count) packet[j] = load_packet(from + first + j * block_size());
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = first + j * block_size();
          if (i >= count) continue;
          for (int64_t turn = 0; static_cast<uint32_t>(packet[j] >> 32) != wanted && !lost; ++turn) {
            lost = turn > links.patience || (turn % 1024 == 1023 && *links.failed);
            pause();
            packet[j] = load_packet(from + i);
          }
          E values[kWord<E>];
          numbers_of(lost ? kNanWord<E> : static_cast<uint32_t>(packet[j]), values);
          E* const place = buffer(step) + i / width * kWord<E> * ld + i % width;
#pragma unroll
          for (int n = 0; n < kWord<E>; ++n) place[n * ld] = values[n];
        }
      }
      if (lost) *links.failed = 1;
      block_barrier();
    }
  }
};

// Sums that several warps have parts of: each leaves its part, and those who go on add them up in the order
// of the warps. Two places in turn, so that one barrier is enough.
template <class A, int kNumbers>
struct Parts {
  A* places;  // [2, warps of the block, kNumbers, kLanes]
  int warps;
  int turn = 0;

  RNNFAST_INLINE A* of(int warp) const { return places + (turn * warps + warp) * kNumbers * kLanes; }
  template <class Get>
  RNNFAST_INLINE void leave(int warp, int lane, const Get& get) const {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) of(warp)[i * kLanes + lane] = get(i);
    block_barrier();
  }
  RNNFAST_INLINE void next() { turn = 1 - turn; }
};

}  // namespace rnnfast::cuda
