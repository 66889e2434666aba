// What the threads and blocks of a resident kernel have to tell each other: where the rows of a step stand,
// the values that travel from one step to the next, and sums that several warps have parts of.
#pragma once
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
  return b < rows_of(r, s) && within(r.lengths, time_of(r, s), made_anew(static_cast<int>(b)));
}
// whether row b, which step s has, has no step before it, and none after it
RNNFAST_INLINE bool begins(const Rows& r, int64_t s, int64_t b) { return s == 0 || !takes_part(r, s - 1, b); }
RNNFAST_INLINE bool ends(const Rows& r, int64_t s, int64_t b) {
  return s + 1 == r.steps || !takes_part(r, s + 1, b);
}

// Waiting for another block, which may never run: asked after a look in vain, and not often, for the host's
// memory is far.
struct Patience {
  const Links& links;
  int64_t since = 0;

  RNNFAST_INLINE bool ends() {
    const int64_t now = nanoseconds();
    if (!since) since = now;
    return now - since > links.patience || *links.failed;
  }
};

// h or da of a step, on its way from the threads that made it to the blocks that need all of it: buffers
// [rows, ld] in shared memory. How it goes there depends on who needs it:
//   one block (not kTeam): into the buffer, and a barrier of the block ends the step;
//   a cluster: each thread stores into the buffers of all its blocks, and each buffer counts what arrived;
//   a part of the grid: through global memory, in packets that carry the number of their step: whoever needs
//   one reads it until the number is right.
// Steps take two buffers (of packets: places) in turn, which is enough: who sends for a step has all of the
// step before, whose senders had done with the one before that. Packets need but one buffer, because whoever
// receives the next step is past a barrier behind which no warp reads what came for this one.
// Who waits in vain is lost: it tells the host, reads NaN from then on, waits no more, and goes on sending to
// the last step, so that all others end too.
template <class E, bool kTeam>
struct Exchange {
  const Links& links;
  uint64_t* arrivals;  // of a cluster: one for each buffer, a mbarrier
  E* buffers;
  int rows, ld;
  int numbers;       // of a row that travel: whole words
  uint64_t* places;  // of this team on a grid: [2, rows / kWord, numbers]
  bool lost = false;

  RNNFAST_INLINE int buffer_count() const { return kTeam && !links.cluster ? 1 : 2; }
  RNNFAST_INLINE E* buffer(int step) const { return buffers + (step & (buffer_count() - 1)) * rows * ld; }
  RNNFAST_INLINE uint64_t* arrival(int step) const { return arrivals + (step & 1); }
  RNNFAST_INLINE void expect(int step) const {
    if (thread_index() != 0) return;
    const uint32_t bytes = static_cast<uint32_t>(rows * numbers * sizeof(E));
    if (lost)  // the phase has not ended: bytes that nobody waits for must not overflow its count
      mbarrier_expect_more(arrival(step), bytes);
    else
      mbarrier_expect(arrival(step), bytes);
  }

  RNNFAST_INLINE E nan() const {
    E values[kWord<E>];
    numbers_of(kNanWord<E>, values);
    return values[0];
  }
  // what came for `step`
  RNNFAST_INLINE E number(int step, int row, int k) const {
    return lost ? nan() : buffer(step)[row * ld + k];
  }
  // of a product, the first word of a row that came: NaN makes all sums of the row NaN
  RNNFAST_INLINE uint32_t first_word(const E* p) const { return lost ? kNanWord<E> : load_word(p); }

  // What every block has put into its own shared memory is there, and others may send to it.
  RNNFAST_INLINE void begin() const {
    if (kTeam && links.cluster) {
      if (thread_index() == 0) mbarrier_init(arrivals), mbarrier_init(arrivals + 1);
      expect(0), expect(1);
      cluster_barrier();
    } else {
      block_barrier();
    }
  }

  // Two rows' values of number k for `step`, by all lanes of a warp; row is even, and lanes 4 apart have
  // numbers next to each other. A number that is not `wanted` is sent by nobody.
  RNNFAST_INLINE void send(int step, int row, int k, bool wanted, const E* values) const {
    if constexpr (!kTeam) {
      if (wanted)
        for (int n = 0; n < 2; ++n) buffer(step)[(row + n) * ld + k] = values[n];
    } else if (links.cluster) {
      // words of one row: of halves a lane takes the row of its parity, with its neighbour's number of it
      constexpr int kWords = 2 / kWord<E>;
      E* place = buffer(step) + row * ld + k;
      uint32_t word[kWords];
      if constexpr (kWords == 1) {
        const int odd = k & 1;
        word[0] = word_of_row(word_of(values), shuffle_xor(word_of(values), 4), odd);
        if (odd) place += ld - 1;
      } else {
        word[0] = word_of(values), word[1] = word_of(values + 1);
      }
      if (!wanted) return;
      // each block begins with another one, so that not all send to the same
      int rank = cluster_rank();
#pragma unroll 1
      for (int i = 0; i < links.blocks; ++i) {
#pragma unroll
        for (int n = 0; n < kWords; ++n) store_async(place + n * ld, word[n], arrival(step), rank);
        rank = rank + 1 < links.blocks ? rank + 1 : 0;
      }
    } else if (wanted) {
      const uint64_t stamp = uint64_t(links.first_step + step) << 32;
#pragma unroll
      for (int n = 0; n < 2; n += kWord<E>)
        store_packet(places + ((step & 1) * rows + row + n) / kWord<E> * numbers + k,
                     stamp | word_of(values + n));
    }
  }

  // What one block has for itself is there for the next step; for a team not even that.
  RNNFAST_INLINE void finish() const {
    if (!kTeam) block_barrier();
  }

  // After the last step. Others may still send to a block of a cluster that did not wait for them, and what
  // they have sent takes some microseconds.
  RNNFAST_INLINE void end() const {
    if (!kTeam || !links.cluster || !lost) return;
    cluster_barrier();
    for (const int64_t since = nanoseconds(); nanoseconds() - since < 100'000;) pause();
  }

  // of packets that a thread loads at once, each of which takes as long as a product: those of a tile's rows
  static constexpr int kRows = kBatch / kWord<E>, kColumns = 8 / kRows;
  static constexpr int kTurns = 64;  // some 30 microseconds

  // What came on a grid for `step` of the tile from `row` on: numbers k, and kColumns - 1 that are as many
  // further on as the block has threads. Beyond the last number that one is taken once more.
  RNNFAST_INLINE void take_packets(int step, int row, int k) {
    const uint32_t wanted = static_cast<uint32_t>(links.first_step + step);
    const uint64_t* const from = places + ((step & 1) * rows + row) / kWord<E> * numbers;
    uint64_t packet[kRows * kColumns];
    int place[kColumns];
    const auto find_places = [&] {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) place[i] = least(k + i * block_size(), numbers - 1);
    };
    find_places();
#pragma unroll
    for (int j = 0; j < kRows * kColumns; ++j)
      packet[j] = load_packet(from + (j / kColumns * numbers + place[j % kColumns]));
    const auto stale = [&](int j) { return static_cast<uint32_t>(packet[j] >> 32) != wanted; };
    const auto some_are_stale = [&] {
      bool some = false;
#pragma unroll
      for (int j = 0; j < kRows * kColumns; ++j) some |= stale(j);
      return some;
    };
    Patience patience{links};
    for (int turn = 1; !lost && some_are_stale(); ++turn) {
      if (turn % kTurns == 0) lost = patience.ends();
      pause();
#pragma unroll
      for (int j = 0; j < kRows * kColumns; ++j)
        if (stale(j)) packet[j] = load_packet(from + (j / kColumns * numbers + place[j % kColumns]));
    }
    // once more: while packets are on their way, registers are for W
    k = made_anew(k);
    find_places();
    E* const to = buffer(step) + row * ld;
#pragma unroll
    for (int j = 0; j < kRows * kColumns; ++j) {
      E values[kWord<E>];
      numbers_of(lost ? kNanWord<E> : static_cast<uint32_t>(packet[j]), values);
#pragma unroll
      for (int n = 0; n < kWord<E>; ++n)
        to[(j / kColumns * kWord<E> + n) * ld + place[j % kColumns]] = values[n];
    }
  }

  // What was sent for `step`, counted from 1, stands in its buffer.
  RNNFAST_INLINE void receive(int step) {
    if constexpr (kTeam) {
      if (links.cluster) {
        Patience patience{links};
        while (!lost && !mbarrier_try_wait(arrival(step), ((step - 1) >> 1) & 1))
          if ((lost = patience.ends())) *links.failed = 1;
        expect(step + 2);
        return;
      }
      for (int row = 0; row < rows; row += kBatch)
        for (int k = thread_index(); k < numbers; k += kColumns * block_size()) take_packets(step, row, k);
      if (lost) *links.failed = 1;
      block_barrier();
    }
  }
};

// Sums that several warps have parts of: they leave theirs, and those who go on add them up in the order of
// the warps. Two places in turn, so that one barrier is enough. The barrier is one also where nothing is
// left: no warp is more than a step ahead of another.
template <class A, int kNumbers>
struct Parts {
  A* places;  // [2, warps that leave something, kNumbers, kLanes]
  int warps;
  int turn = 0;

  RNNFAST_INLINE A* of(int warp) const { return places + (turn * warps + warp) * kNumbers * kLanes; }
  template <class Get>
  RNNFAST_INLINE void leave(bool wanted, int warp, int lane, const Get& get) const {
    if (wanted)
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) of(warp)[i * kLanes + lane] = get(i);
    block_barrier();
  }
  RNNFAST_INLINE void next() { turn = 1 - turn; }
};

}  // namespace rnnfast::cuda
