// The resident kernel backward in a cluster whose blocks exchange sums (a reduce-scatter): a block multiplies
// the dL/d(pre-activations), here da, that it made of its own units with their part of W_hh, which gives a
// part of dL/dh of all units; each 16 units' part goes to the block that has them, which adds up the parts of
// all blocks. That is one float for each unit and row, however many gates there are, where otherwise all da
// go to all blocks; and no warp waits for another one's part of a sum.
#pragma once
#include "cuda/backward_cells.cuh"
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

constexpr int kScatterThreads = kScatterWarps * kLanes;
constexpr int kSumUnits = 2 * kWarpUnits;        // of a sum: what an instruction has rows
constexpr int kSumNumbers = kSumUnits * kBatch;  // 4 of each lane

// Where a thread stands in its cluster
struct ScatterPlace {
  const Links& links;
  int thread = thread_index(), lane = thread % kLanes, warp = shuffle(thread / kLanes, 0);
  int batches = links.batches, rows = batches * kBatch;
  int block = static_cast<int>(block_index()) - links.first_block, team = quotient(block, links.blocks);
  int rank = block - team * links.blocks;
  int ld;  // numbers of a row of what comes: one of each block for each unit of this one
};

// What a thread knows, and the parts of a step. kUnits: of a block, whose threads have each a cell of 32
// units in 8 rows, or several. A lane's four numbers of a sum are those of two units and two rows. They
// travel as they are, 16 bytes at a time, and stand where a warp of the receiving block reads 16 units of two
// rows as 32 numbers next to each other: row i of the instruction is unit 2 i, row 8 + i unit 2 i + 1.
template <class Cell, class E, int kUnits, bool kPlain>
struct ScatterThread : BackwardCells<ScatterThread<Cell, E, kUnits, kPlain>, Cell, E,
                                     kUnits * kBatch / kScatterThreads, kPlain> {
  typedef typename ComputeType<E>::type A;
  static constexpr int kCells = kUnits * kBatch / kScatterThreads;
  typedef BackwardCells<ScatterThread, Cell, E, kCells, kPlain> Cells;
  typedef typename Cells::Saved Saved;
  typedef typename Cells::Made Made;
  static constexpr int G = Cell::kGates;
  static constexpr int kGroups = kUnits / kSumUnits, kPart = kUnits * kBatch;  // of a block: sums, numbers
  static constexpr int kUnitsApart = kScatterThreads / kBatch;                 // of a thread's cells
  static constexpr int kLength = scatter_length(G, kUnits, sizeof(E));         // instructions of a sum
  static constexpr int kOwn = scatter_sums(kLength);  // sums of a warp whose W its registers hold
  static constexpr int kChains = kOwn > 2 ? 1 : 2;    // of a sum, for the instruction's latency
  static constexpr int kHigh = kTile<E> / 2;          // from a thread's low word of a tile to its high one
  static constexpr int kLd = G * kUnits + kSkew<E>, kDas = kBatch * kLd;  // of da: [8, kLd]
  static constexpr int kAtOnce = kMostBlocks / kCells;                    // parts that are read at once
  typedef uint32_t Registers[kOwn][kLength][4];
  typedef A Sum[4];

  const ResidentBackward<E>& p;
  ScatterPlace my{.links = p.links, .ld = p.links.blocks * kUnits};
  int H = static_cast<int>(p.H), Hp = static_cast<int>(p.Hp), batch = static_cast<int>(p.batch);
  int steps = static_cast<int>(p.steps), blocks = my.links.blocks, sums = blocks * kGroups;
  // this thread's first cell of a tile: in the block, its unit; and of all
  int local = my.warp / 4 * kSumUnits + my.lane / 2, row = my.warp % 4 * 2 + my.lane % 2;
  int unit = kept(my.rank * kUnits + local), first = kept(my.team * my.rows + row);
  // of this warp's sums: the block that has the first one's units, and which of each block's 16 they are
  int first_owner = kept(my.rank + my.warp / kGroups), part_of_owner = my.warp % kGroups;
  SharedMemory shared;
  Exchange<A, Team::kCluster> exchange = take_exchange<A, Team::kCluster>(shared, my, my.ld);
  Shared<E> da = shared.take<E>(2 * kDas);  // of this step and the one before, in turn
  int turn = 0;
  Shared<E> das_of_cells = da.from(row * kLd + local).kept();
  Shared<E> operand = da.from(my.lane / 4 * kLd + my.lane % 4 * kWord<E>).kept();
  // where this lane's numbers of a sum from this block stand
  int to = kept(my.rank * kPart + part_of_owner * kSumNumbers + (my.lane % 4 * kWarpUnits + my.lane / 4) * 4);
  int held = my.links.held / kLength;  // sums of a warp whose W is in shared memory
  // [sums that registers do not hold, kLength, kLanes, 4], of this warp's first one, from this lane's on
  Shared<uint32_t> weights =
      shared.take<uint32_t>(most(sums - kOwn * kScatterWarps, 0) * kLength * kLanes * 4)
          .from((my.warp * kLength * kLanes + my.lane) * 4)
          .kept();
  // [batches, kCells, threads] each, from this thread's on
  Shared<A> own = shared.take<A>(0).from(my.thread).kept();

  RNNFAST_INLINE explicit ScatterThread(const ResidentBackward<E>& parameters) : p(parameters) {}

  // the number that step s of the walk sends with: numbers grow
  RNNFAST_INLINE int number_of(int s) const { return steps - s; }
  RNNFAST_INLINE int tiles() const { return my.batches; }
  RNNFAST_INLINE int unit_of(int n) const { return unit + n * kUnitsApart; }
  RNNFAST_INLINE int batch_row(int tile, int) const { return first + tile * kBatch; }
  RNNFAST_INLINE bool mine(int tile, int n) const { return batch_row(tile, n) < batch && unit_of(n) < H; }
  RNNFAST_INLINE Pair of_tile(int tile) const {
    Pair cells;
#pragma unroll
    for (int n = 0; n < kCells; ++n) cells.add(n, mine(tile, n));
    return cells;
  }
  RNNFAST_INLINE A& dc_of(int tile, int n) const { return own[(tile * kCells + n) * kScatterThreads]; }
  RNNFAST_INLINE A& direct_of(int tile, int n) const {
    return own[((my.batches + tile) * kCells + n) * kScatterThreads];
  }

  // Whether this warp has an i-th sum, and whose units those of it are: of one block after the other, and
  // always the same of a block's. Each block begins with its own.
  RNNFAST_INLINE bool has_sum(int i) const { return my.warp + i * kScatterWarps < sums; }
  RNNFAST_INLINE int owner_of(int i) const {
    const uint32_t owner = made_anew(first_owner) + i * (kScatterWarps / kGroups);
    return static_cast<int>(least(owner, owner - static_cast<uint32_t>(blocks)));  // below 0 is the largest
  }
  RNNFAST_INLINE uint32_t* held_of(int i, int t) const {
    return weights.from((i * kScatterWarps * kLength + t) * kLanes * 4).get();
  }
  // f(t, word, number): of this warp's i-th sum all operands of W_hh turned, whose columns are a block's
  // units of each gate
  template <class F>
  RNNFAST_INLINE void each_weight(int i, const F& f) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of = owner_of(i) * kUnits + part_of_owner * kSumUnits + my.lane / 4 * 2 + half;
      const bool is = has_sum(i) && of < H;
      const int bytes = static_cast<int>(p.ldw) * static_cast<int>(sizeof(E));
      const E* const first = made_here(row_at(p.w_hh_t, is ? of : 0, bytes)) + my.rank * kUnits;
#pragma unroll
      for (int t = 0; t < kLength; ++t) {
        const int gate = t * kTile<E> / kUnits * static_cast<int>(p.Hw), k = my.lane % 4 * kWord<E>;
        const E* const from = first + gate + t * kTile<E> % kUnits + k;
        f(t, half, is ? as_operand<E>(load_word(from)) : 0);
        f(t, 2 + half, is ? as_operand<E>(load_word(from + kHigh)) : 0);
      }
    }
  }
  RNNFAST_INLINE void load_weights(Registers& w) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      each_weight(i, [&](int t, int word, uint32_t number) { w[i][t][word] = number; });
    for (int i = 0; i < held && has_sum(kOwn + i); ++i)
      each_weight(kOwn + i, [&](int t, int word, uint32_t number) { held_of(i, t)[word] = number; });
  }

  // dL/dh of this thread's cells in the last step, and what parts are added to in the others
  RNNFAST_INLINE void begin_with(int tile, A* dh) const {
#pragma unroll
    for (int n = 0; n < kCells; ++n) dh[n] = direct_of(tile, n);
  }
  // dL/dh of this thread's cells: the parts that all blocks sent in step `from`, and what did not pass W_hh
  RNNFAST_INLINE void gather(int from, int tile, A* dh) {
    exchange.receive(number_of(from), tile);
    begin_with(tile, dh);
    const Shared<A> parts = exchange.buffer(number_of(from)).from(tile * kBatch * my.ld + my.thread);
    const int turns = kAtOnce < kMostBlocks ? blocks : 1;
#pragma unroll 1
    for (int block = 0; block < turns; block += kAtOnce) {
      A gathered[kAtOnce][kCells];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int n = 0; n < kCells; ++n)
          gathered[i][n] = block + i < blocks ? parts[(block + i) * kPart + n * kScatterThreads] : A(0);
      // in two chains, for the addition's latency
#pragma unroll
      for (int i = 2; i < kAtOnce; ++i)
#pragma unroll
        for (int n = 0; n < kCells; ++n) gathered[i % 2][n] += gathered[i][n];
#pragma unroll
      for (int n = 0; n < kCells; ++n) dh[n] += gathered[0][n] + gathered[1][n];
    }
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      if (exchange.lost) dh[n] = exchange.nan();
      if (!kPlain) Cells::pass_back(from, tile, n, dh[n]);
    }
  }

  // the cells of this thread; the whole block's da are there
  RNNFAST_INLINE void cells(int s, int tile, const Steps& step, const Pair& wanted, const Saved& saved,
                            const A* dh, Made& made) const {
    Cells::make(s, tile, step, wanted, saved, dh, made);
#pragma unroll
    for (int n = 0; n < kCells; ++n)
#pragma unroll
      for (int g = 0; g < G; ++g) das_of_cells[turn + g * kUnits + n * kUnitsApart] = made.sent[g][n];
    block_barrier();
  }

  // this block's part of all units' dL/dh, to those who have them
  RNNFAST_INLINE void product(int s, int tile, const Registers& w) {
    const E* const from = operand.from(turn).get();
    turn = kDas - turn;
    Sum sum[kOwn * kChains] = {};
#pragma unroll
    for (int t = 0; t < kLength; ++t) {
      const uint32_t low = load_word(from + t * kTile<E>), high = load_word(from + t * kTile<E> + kHigh);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) multiply_tile<E>(sum[i * kChains + t % kChains], w[i][t], low, high);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) send(s, tile, i, sum + i * kChains);
    if (held) multiply_held(s, tile, from);
  }
  RNNFAST_INLINE void multiply_held(int s, int tile, const E* from) const {
#pragma unroll 1
    for (int i = 0; i < held && has_sum(kOwn + i); ++i) {
      Sum sum[kChains] = {};
#pragma unroll
      for (int t = 0; t < kLength; ++t) {
        const E* const here = from + t * kTile<E>;
        multiply_tile<E>(sum[t % kChains], load_chunk(held_of(i, t)).number, load_word(here),
                         load_word(here + kHigh));
      }
      send(s, tile, kOwn + i, sum);
    }
  }
  // this warp's i-th sum, in its chains
  RNNFAST_INLINE void send(int s, int tile, int i, const Sum* chains) const {
    if (!has_sum(i)) return;
    Quad quad;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      A sum = chains[0][k];
      if (kChains > 1) sum += chains[kChains - 1][k];
      quad.word[k] = word_of(&sum);
    }
    const Shared<A> place = exchange.buffer(number_of(s)).from(tile * kBatch * my.ld + to);
    store_async(reinterpret_cast<Quad*>(place.get()), quad, exchange.arrival(number_of(s), tile),
                owner_of(i));
  }
};

template <class Cell, class E, int kUnits, bool kPlain>
RNNFAST_KERNEL void __launch_bounds__(kScatterThreads, 1)
    resident_scatter(const RNNFAST_READ_ONLY Directions<ResidentBackward<E>> both) {
  const ResidentBackward<E>& p = of_this_block<Team::kCluster>(both);
  typedef ScatterThread<Cell, E, kUnits, kPlain> Thread;
  Thread thread(p);
  typename Thread::Registers w;
  typename Thread::A dh[Thread::kCells];
  typename Thread::Saved saved = {};
  thread.load_weights(w);
  for (int tile = 0; tile < thread.my.batches; ++tile) thread.load_gradients(tile);
  const int last = thread.steps - 1;
  Steps step = Steps::of(p.rows, last);
  thread.load_saved(last, 0, step, thread.before(step, last - 1, 1), saved);
  thread.exchange.begin();
  for (int s = last;;) {
    int tile = 0;
    do {
      if (s < last)
        thread.gather(s + 1, tile, dh);
      else
        thread.begin_with(tile, dh);
      typename Thread::Made made;
      const Pair wanted = thread.take_part(s, tile, dh);
      thread.cells(s, tile, step, wanted, saved, dh, made);
      thread.product(s, tile, w);
      // all the rest while what was sent is on its way
      thread.store(tile, step, wanted, made);
      thread.load_next(s, tile, step, saved);
    } while (++tile < thread.my.batches);
    if (--s < 0) break;
    step = thread.before(step, s, 1);
  }
  for (int tile = 0; tile < thread.my.batches; ++tile) {
    thread.gather(0, tile, dh);
    thread.leave_first(tile, dh);
  }
  thread.exchange.end();
}

template <class E>
const char* resident_scatter(Mode mode, const ResidentBackward<E>* directions, const ResidentPlan& plan,
                             void* stream) {
  return rough::with_cell(mode, [&](auto cell) {
    typedef decltype(cell) Cell;
    const auto launch = [&]<int kUnits>() {
      return is_plain(directions->rows, directions->resets)
                 ? launch_teams(resident_scatter<Cell, E, kUnits, true>, plan, stream, directions)
                 : launch_teams(resident_scatter<Cell, E, kUnits, false>, plan, stream, directions);
    };
    if constexpr (scatter_length(Cell::kGates, 64, sizeof(E)) <= kLongestSum)
      if (plan.units == 64) return launch.template operator()<64>();
    return launch.template operator()<32>();
  });
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT_SCATTER(E) \
  template const char* resident_scatter(Mode, const ResidentBackward<E>*, const ResidentPlan&, void*);
