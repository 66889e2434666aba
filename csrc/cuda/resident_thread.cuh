// What a thread of a resident kernel has, forward or backward: its place in the team, its share of the
// block's shared memory, and the product of its part of W with what has travelled.
#pragma once
#include <limits>

#include "cuda/cells.cuh"
#include "cuda/exchange.cuh"

namespace rnnfast::cuda {

// Those of the block's direction. A grid always has one: it fills most of a device, and its threads have no
// register left for the offset.
template <Team kTeam, class Params>
RNNFAST_INLINE const Params& of_this_block(const Directions<Params>& both) {
  return both.of[kTeam != Team::kGrid && block_index() >= both.of[1].links.first_block];
}

// a / b of what is not negative: the sign would take registers and instructions
RNNFAST_INLINE int quotient(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(b));
}

// the blocks of all teams
template <class Params>
const char* launch_teams(void (*kernel)(Directions<Params>), const ResidentPlan& plan, void* stream,
                         const Params* directions) {
  const int64_t teams = divide_up(directions->batch, kBatch * plan.batches);
  Directions<Params> both{{directions[0], directions[plan.directions - 1]}};
  const int none = std::numeric_limits<int>::max();
  both.of[0].links.first_block = 0;
  both.of[1].links.first_block = plan.directions == 2 ? static_cast<int>(teams * plan.blocks) : none;
  return launch_clusters(kernel, plan.directions * teams, plan.blocks, plan.warps * kLanes, plan.bytes,
                         plan.team == Team::kGrid, stream, both);
}

// how many threads a block may have, so that W and what else a thread needs fit its registers
constexpr int most_threads(int tiles) { return tiles <= 8 ? 512 : kMostWarps * kLanes; }

// Where a thread stands. A group of `split` warps shares the sums of some units, each warp with a part of
// every sum. In a team of several blocks the warps with part 0, which do the cells, come first: they are of
// different schedulers then. kOwn: instructions of a warp with W in registers; kSplit: `split` of a team of
// one block.
template <class E, int kOwn, int kSplit, Team kTeam>
struct Place {
  static constexpr bool kSeveral = kTeam != Team::kBlock;
  const Links& links;
  // the warp's first lane says which one it is: what is made of it the compiler knows to be the same for all
  int lane = thread_index() % kLanes, warp = shuffle(thread_index() / kLanes, 0);
  int warps = block_size() / kLanes;
  int split = kSeveral ? links.split : kSplit, batches = kSeveral ? links.batches : 1;
  int held = kSeveral ? links.held : 0;   // instructions of a warp with W in shared memory
  int length = (kOwn + held) * kTile<E>;  // of a warp's part of a sum
  int groups = quotient(warps, split), part = kSeveral ? warp / groups : warp % split;
  int ld = split * length + kSkew<E>,
      rows = batches * kBatch;                // of what travels: [rows, ld]
  int column = lane % 4 * 2, row = lane / 4;  // of this thread's sums
  int offset = lane % 4 * kWord<E>;           // of its numbers of a product
  // of this direction
  int block = static_cast<int>(block_index()) - links.first_block, team = quotient(block, links.blocks);
  int first = kept(team * rows + column);  // of this thread's rows of the batch
  int rank = block - team * links.blocks;
  int group = rank * groups + (kSeveral ? warp - part * groups : warp / split);  // of the team

  // the warp of this group that has a part
  RNNFAST_INLINE int warp_of(int other) const { return warp + (other - part) * (kSeveral ? groups : 1); }

  // Of a tile of 8 rows: the row of the batch that column n of this thread's two is
  RNNFAST_INLINE int batch_row(int tile, int n) const { return first + tile * kBatch + n; }
  // and where the row that it multiplies stands in a buffer [rows, ld], from its first number on
  int operand_of_first = kept(row * ld + part * length + offset);
  RNNFAST_INLINE const E* operand(Shared<E> buffer, int tile) const {
    return buffer.from(tile * kBatch * ld + operand_of_first).get();
  }
};

// The block's shared memory, given out from its beginning on
struct SharedMemory {
  int bytes = 0;

  template <class V>
  RNNFAST_INLINE Shared<V> take(int count) {
    const Shared<V> taken{bytes};
    bytes = taken.from(count).bytes;
    return taken;
  }
};

// `numbers`: of a row that travel
template <class E, Team kTeam, int kPacketPairs = 1, class AnyPlace>
RNNFAST_INLINE Exchange<E, kTeam, kPacketPairs> take_exchange(SharedMemory& shared, const AnyPlace& my,
                                                              int64_t numbers) {
  const Shared<uint64_t> arrivals = shared.take<uint64_t>(2 * my.batches);
  uint64_t* const places = my.links.places + int64_t{my.team} * my.rows * numbers * 2 / kWord<E>;
  const int size = my.rows * my.ld;
  const Exchange<E, kTeam, kPacketPairs> exchange{my.links, arrivals, shared.take<E>(0),         my.rows,
                                                  my.ld,    size,     static_cast<int>(numbers), places};
  shared.take<E>(exchange.kBuffers * size);
  return exchange;
}

// `warps`: that leave something
template <class A, int kNumbers, int kAtOnce>
RNNFAST_INLINE Parts<A, kNumbers, kAtOnce> take_parts(SharedMemory& shared, int warps, int lane) {
  typedef Parts<A, kNumbers, kAtOnce> P;
  const int size = warps * P::kOfWarp;
  return {shared.take<typename P::Some>(2 * size).from(lane).kept(), size};
}

// A warp's part of W: kPairs times 16 rows, the first operand of the instruction, which gives a thread sums
// of row `row` and of the one 8 further. A pair's sums are made in kChains, which take its tiles in turn. The
// registers are an array of the kernel, as all arrays that have to stay in registers: with one inside, the
// compiler optimizes the other members later, and worse.
template <class E, int kPairs, int kOwn, int kChains>
struct Weights {
  static constexpr int kHigh = kTile<E> / 2;  // from a thread's low word of a tile to its high one
  typedef typename ComputeType<E>::type A;
  typedef uint32_t Registers[kPairs][kOwn][4];
  typedef A Sums[kPairs * kChains][4];

  int held_tiles;
  Shared<uint32_t> held;  // [held_tiles, kPairs, kLanes, 4] of this warp, from this lane's on

  template <class Place>
  RNNFAST_INLINE Weights(SharedMemory& shared, const Place& my) : held_tiles(my.held) {
    held = shared.take<uint32_t>(my.warps * held_tiles * kPairs * kLanes * 4);
    held = held.from((my.warp * held_tiles * kPairs * kLanes + my.lane) * 4).kept();
  }

  RNNFAST_INLINE uint32_t* held_of(int t, int pair) const {
    return held.from((t * kPairs + pair) * kLanes * 4).get();
  }

  // word(i, k): of `row` of the i-th 8 rows, k numbers after this thread's first
  template <class Word>
  RNNFAST_INLINE void load(Registers& w, const Word& word) const {
    const auto operand = [&](int t, int i) {
      return word(i / 4 * 2 + i % 2, t * kTile<E> + i / 2 % 2 * kHigh);
    };
#pragma unroll
    for (int t = 0; t < kOwn; ++t)
#pragma unroll
      for (int i = 0; i < 4 * kPairs; ++i) w[i / 4][t][i % 4] = operand(t, i);
    for (int t = 0; t < held_tiles; ++t)
#pragma unroll
      for (int i = 0; i < 4 * kPairs; ++i) held_of(t, i / 4)[i % 4] = operand(kOwn + t, i);
  }

  // sum += W times the row at `from`: of W what the registers hold
  template <class Exchange>
  RNNFAST_INLINE void multiply(const Registers& w, const Exchange& exchange, const E* from, Sums& sum) const {
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      const uint32_t low = t ? load_word(from + t * kTile<E>) : exchange.first_word(from);
      const uint32_t high = load_word(from + t * kTile<E> + kHigh);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) multiply_tile<E>(sum[i * kChains + t % kChains], w[i][t], low, high);
    }
  }
  // and of what shared memory holds, two tiles in a turn
  RNNFAST_INLINE void multiply_held(const E* from, Sums& sum) const {
#pragma unroll(2 / kChains)
    for (int t = 0; t < held_tiles; t += kChains)
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain) {
        const E* const here = from + (kOwn + t + chain) * kTile<E>;
        const uint32_t low = load_word(here), high = load_word(here + kHigh);
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
          multiply_tile<E>(sum[i * kChains + chain], load_chunk(held_of(t + chain, i)).number, low, high);
      }
  }
};

}  // namespace rnnfast::cuda
