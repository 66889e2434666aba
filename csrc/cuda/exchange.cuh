// What the threads and blocks of a resident kernel have to tell each other: the values that travel from one
// step to the next, and sums that several warps have parts of.
#pragma once
#include "cuda/walk.cuh"

namespace rnnfast::cuda {

// An array in the block's shared memory, from some place on. A register holds the place: a pointer would be
// made of the kernel's parameters in each step.
template <class V>
struct Shared {
  int bytes;  // from the beginning of shared memory

  RNNFAST_INLINE V* get() const { return reinterpret_cast<V*>(shared_memory<unsigned char>() + bytes); }
  RNNFAST_INLINE V& operator[](int i) const { return get()[i]; }
  RNNFAST_INLINE Shared from(int i) const { return {bytes + i * static_cast<int>(sizeof(V))}; }
  RNNFAST_INLINE Shared kept() const { return {cuda::kept(bytes)}; }
};

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

// so many numbers that are read and written at once
template <class V, int n>
struct alignas(n * sizeof(V)) Several {
  V number[n];
};

// h or da of a step, on its way from the threads that made it to the blocks that need all of it: buffers
// [rows, ld] in shared memory. How it goes there depends on who needs it:
//   one block: into the buffer, and a barrier of the block ends the step;
//   a cluster: 16 bytes at a time into the buffers of all its blocks, each of which counts what arrived of
//   each tile of 8 rows (a kernel may send something else there, and elsewhere: resident_scatter.cuh);
//   a part of the grid: through global memory, in packets that carry the number of their step: whoever needs
//   one reads it until the number is right.
// Steps take two buffers (of packets: places) in turn, which is enough: who sends for a step has all of the
// step before, whose senders had done with the one before that. Packets need but one buffer, because whoever
// receives the next step is past a barrier behind which no warp reads what came for this one.
// Who waits in vain is lost: it tells the host, reads NaN from then on, waits no more, and goes on sending to
// the last step, so that all others end too.
template <class E, Team kTeam, int kPacketPairs = 1>
struct Exchange {
  const Links& links;
  Shared<uint64_t> arrivals;  // of a cluster: [tiles, 2], a mbarrier for each 8 rows of each buffer
  Shared<E> buffers;
  int rows, ld, size;  // of a buffer
  int numbers;         // of a row that travel: a multiple of 16 bytes
  uint64_t* places;    // of this team on a grid: [2, rows / kWord, numbers]
  int expects = kept(thread_index() == block_size() - 1);
  bool lost = false;

  static constexpr int kQuad = 4 * kWord<E>;  // numbers of 16 bytes
  static constexpr int kBuffers = kTeam == Team::kGrid ? 1 : 2;
  RNNFAST_INLINE Shared<E> buffer(int step) const {
    return kBuffers == 1 ? buffers : buffers.from((step & 1) * size);
  }
  RNNFAST_INLINE uint64_t* arrival(int step, int tile) const {
    return arrivals.from(2 * tile + (step & 1)).get();
  }
  // by one thread, of the last warp: where warps share sums of its block it does no cells
  RNNFAST_INLINE void expect(int step, int tile) const {
    if (!expects) return;
    const uint32_t bytes = static_cast<uint32_t>(kBatch * numbers * sizeof(E));
    if (lost)  // the phase has not ended: bytes that nobody waits for must not overflow its count
      mbarrier_expect_more(arrival(step, tile), bytes);
    else
      mbarrier_expect(arrival(step, tile), bytes);
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
    if constexpr (kTeam == Team::kCluster) {
      for (int tile = 0; tile * kBatch < rows; ++tile)
        for (int step = 0; step < 2; ++step) {
          if (expects) mbarrier_init(arrival(step, tile));
          expect(step, tile);
        }
      cluster_barrier();
    } else {
      block_barrier();
    }
  }

  // Two rows' values of the numbers k, k + apart .. for `step`, by all lanes of a warp; of the tile's rows
  // they are column and the next, column is even, and lanes 4 apart have numbers next to each other, 8 in
  // all. None are sent where they are not `wanted`.
  template <int kCount>
  RNNFAST_INLINE void send(int step, int tile, int column, int k, int apart, bool wanted,
                           const E (&values)[kCount][2]) const {
    if constexpr (kTeam == Team::kCluster) {
      send_to_blocks(step, tile, column, k, apart, wanted, values);
      return;
    }
    if (!wanted) return;
    const int row = tile * kBatch + column;
    const uint64_t stamp = uint64_t(links.first_step + step) << 32;
    uint64_t* const packets = places + ((step & 1) * rows + row) / kWord<E> * numbers;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int number = k + i * apart;
      if constexpr (kTeam == Team::kBlock)
        for (int n = 0; n < 2; ++n) buffer(step)[(row + n) * ld + number] = values[i][n];
      else
        for (int n = 0; n < 2; n += kWord<E>)
          store_packet(packets + n / kWord<E> * numbers + number, stamp | word_of(values[i] + n));
    }
  }

  // Lanes that have the same 16 bytes share out the blocks, each of which begins with another one, so that
  // not all send to the same.
  template <int kCount>
  RNNFAST_INLINE void send_to_blocks(int step, int tile, int column, int k, int apart, bool wanted,
                                     const E (&values)[kCount][2]) const {
    Quad quad[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) quad[i] = joined(k, values[i]);
    if (!wanted) return;
    const int row = tile * kBatch + column + (k & 1);
    const Shared<E> place = buffer(step).from(row * ld + (k & ~(kQuad - 1)));
    constexpr int kSharers = kQuad / 2;
    const int share = k / 2 % kSharers;
    const uint32_t blocks = links.blocks;
    uint32_t rank = cluster_rank() + share;
    const auto give = [&] {
      rank = least(rank, rank - blocks);  // below 0 is the largest
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        store_async(reinterpret_cast<Quad*>(place.from(i * apart).get()), quad[i], arrival(step, tile), rank);
      rank += kSharers;
    };
    if (blocks == kMostBlocks) {
#pragma unroll
      for (int i = 0; i < kMostBlocks; i += kSharers) give();
      return;
    }
#pragma unroll 1
    for (int i = share; i < links.blocks; i += kSharers) give();
  }
  // Of the row of number k's parity, those that share the 16 bytes with k: lanes swap what they have
  RNNFAST_INLINE static Quad joined(int k, const E* values) {
    const int odd = k & 1;
    Quad quad;
    if constexpr (kWord<E> == 2) {
      quad.word[0] = word_of_row(word_of(values), shuffle_xor(word_of(values), 4), odd);
      join<1>(quad, k & 2, 8);
      join<2>(quad, k & 4, 16);
    } else {
      const uint32_t of_even = word_of(values), of_odd = word_of(values + 1);
      const uint32_t mine = odd ? of_odd : of_even, other = shuffle_xor(odd ? of_even : of_odd, 4);
      quad.word[0] = odd ? other : mine;
      quad.word[1] = odd ? mine : other;
      join<2>(quad, k & 2, 8);
    }
    return quad;
  }
  // the first words, and as many of the lane so far away: `upper` says that those come first
  template <int kWords>
  RNNFAST_INLINE static void join(Quad& quad, bool upper, int mask) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t mine = quad.word[i], other = shuffle_xor(mine, mask);
      quad.word[i] = upper ? other : mine;
      quad.word[kWords + i] = upper ? mine : other;
    }
  }

  // What one block has for itself is there for the next step; for a team not even that.
  RNNFAST_INLINE void finish() const {
    if (kTeam == Team::kBlock) block_barrier();
  }

  // After the last step. Others may still send to a block of a cluster that did not wait for them, and what
  // they have sent takes some microseconds.
  RNNFAST_INLINE void end() const {
    if (kTeam != Team::kCluster || !lost) return;
    cluster_barrier();
    for (const int64_t since = nanoseconds(); nanoseconds() - since < 100'000;) pause(1);
  }

  // Packets come in pairs. Of the rows of a tile each thread takes one word's (of halves two rows, of floats
  // one), and of that every so many pairs: each of its loads takes as long as a product, so several are under
  // way at once.
  static constexpr int kGroups = kBatch / kWord<E>;
  static constexpr int kTurns = 64;  // some 30 microseconds

  // What came on a grid for `step` of the tile from `row` on: the pairs i, i + apart .. of this thread's
  // group. Beyond the last pair that one is taken once more. All are asked for again as long as one is stale:
  // to ask for that one alone would take twice the registers, and while one is late most are.
  RNNFAST_INLINE void take_packets(int step, int row, int i) {
    static_assert(kPacketPairs > 1, "one pair at a time would wait for each");
    const uint32_t wanted = static_cast<uint32_t>(links.first_step + step);
    const int group = row / kWord<E> + thread_index() % kGroups;
    const int apart = block_size() / kGroups, last = numbers / 2 - 1;
    const uint64_t* const from = made_here(places + ((step & 1) * (rows / kWord<E>)+group) * numbers);
    PacketPair pair[kPacketPairs];
    Patience patience{links};
    for (int turn = 1;; ++turn) {
      uint32_t stale[2] = {};  // two chains, for the latency
#pragma unroll
      for (int j = 0; j < kPacketPairs; ++j)
        pair[j] = load_packets(row_at(from, least(made_anew(i) + j * apart, last), sizeof(PacketPair)));
#pragma unroll
      for (int j = 0; j < kPacketPairs; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n) stale[n] |= static_cast<uint32_t>(pair[j].packet[n] >> 32) ^ wanted;
      if (lost || !(stale[0] | stale[1])) break;
      if (turn % kTurns == 0) lost = patience.ends();
      pause(turn);
    }
    if (lost)
#pragma unroll
      for (int j = 0; j < kPacketPairs; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n) pair[j].packet[n] = kNanWord<E>;
    const Shared<E> to = buffer(step).from(group * kWord<E> * ld), below = to.from(ld);
#pragma unroll
    for (int j = 0; j < kPacketPairs; ++j) {
      const int k = 2 * least(made_anew(i) + j * apart, last);
      const uint32_t one = static_cast<uint32_t>(pair[j].packet[0]);
      const uint32_t next = static_cast<uint32_t>(pair[j].packet[1]);
      if constexpr (kWord<E> == 2) {  // of halves each word has those of two rows
        store_two(to.from(k), word_of_row(one, next, 0));
        store_two(below.from(k), word_of_row(next, one, 1));
      } else {
        store_two(to.from(k), one, next);
      }
    }
  }
  // two numbers next to each other, of one word or of two
  template <class... Words>
  RNNFAST_INLINE static void store_two(const Shared<E>& place, Words... words) {
    Several<E, 2> both;
    int i = 0;
    ((numbers_of(words, both.number + i), i += kWord<E>), ...);
    *reinterpret_cast<Several<E, 2>*>(place.get()) = both;
  }

  // What was sent of a tile for `step`, counted from 1, stands in its buffer. One tile's is on its way while
  // the others are worked on.
  RNNFAST_INLINE void receive(int step, int tile) {
    if constexpr (kTeam == Team::kCluster) {
      if (!lost && !mbarrier_try_wait(arrival(step, tile), parity_of(step))) {
        wait_longer(step, tile);
      }
      expect(step + 2, tile);
    } else if constexpr (kTeam == Team::kGrid) {
      for (int i = thread_index() / kGroups; i < numbers / 2; i += kPacketPairs * (block_size() / kGroups))
        take_packets(step, tile * kBatch, i);
      if (lost) *links.failed = 1;
      block_barrier();
    }
  }
  RNNFAST_INLINE static int parity_of(int step) { return (step - 1) >> 1 & 1; }
  RNNFAST_INLINE void wait_longer(int step, int tile) {
    Patience patience{links};
    while (!lost && !mbarrier_try_wait(arrival(step, tile), parity_of(step)))
      if ((lost = patience.ends())) *links.failed = 1;
  }
};

// Sums that several warps have parts of: they leave theirs, and those who go on add them up in the order of
// the warps. Two places in turn, so that one barrier is enough. The barrier is one also where nothing is
// left: no warp is more than a step ahead of another. A lane's numbers are left and taken kAtOnce at a time.
template <class A, int kNumbers, int kAtOnce>
struct Parts {
  typedef Several<A, kAtOnce> Some;
  static constexpr int kOfWarp = kNumbers / kAtOnce * kLanes;

  Shared<Some> places;  // [2, warps that leave something, kNumbers / kAtOnce, kLanes], from this lane's on
  int size;             // of one turn
  int turn = 0;

  RNNFAST_INLINE Shared<Some> of(int warp) const { return places.from(turn + warp * kOfWarp); }
  template <class Get>
  RNNFAST_INLINE void leave(bool wanted, int warp, const Get& get) const {
    if (wanted)
#pragma unroll
      for (int i = 0; i < kNumbers / kAtOnce; ++i) {
        Some some;
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) some.number[n] = get(i * kAtOnce + n);
        of(warp)[i * kLanes] = some;
      }
    block_barrier();
  }
  RNNFAST_INLINE void next() { turn = size - turn; }
};

}  // namespace rnnfast::cuda
