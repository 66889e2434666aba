// The resident kernel backward: what travels is dL/d(pre-activations), here da. (In a cluster see
// resident_scatter.cuh, too.)
#pragma once
#include "cuda/backward_cells.cuh"
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

// What a thread knows, and the parts of a step. dL/dh of 16 units is made by two warps or more, each over a
// part of the sum; the first two then have the whole of 8 units each.
template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
struct BackwardThread
    : BackwardCells<BackwardThread<Cell, E, kTiles, kTeam, kPlain>, Cell, E, /*kCells=*/2, kPlain> {
  typedef typename ComputeType<E>::type A;
  typedef BackwardCells<BackwardThread, Cell, E, 2, kPlain> Cells;
  typedef typename Cells::Saved Saved;
  typedef typename Cells::Made Made;
  static constexpr int G = Cell::kGates;
  static constexpr bool kSeveral = kTeam != Team::kBlock;
  // whether there are registers for what was saved of the next step while this one's product runs
  static constexpr bool kAhead = kPlain || kSeveral;
  static constexpr int kOwn = (G * kTiles + 1) / 2;  // instructions of a warp with W in registers
  typedef Weights<E, 1, kOwn, 2> W;                  // two chains, for the instruction's latency
  typedef typename W::Registers Registers;

  const ResidentBackward<E>& p;
  Place<E, kOwn, 2, kTeam> my{p.links};
  int base = my.group * 2 * kWarpUnits + my.row, unit = kept(base + my.part * kWarpUnits);
  int H = static_cast<int>(p.H), Hp = static_cast<int>(p.Hp), batch = static_cast<int>(p.batch);
  int steps = static_cast<int>(p.steps);
  SharedMemory shared;
  int numbers = G * static_cast<int>(p.Hw);  // of a row of da: gate after gate
  static constexpr int kPacketPairs = packet_pairs(sizeof(E), true, kPlain, kHopper);
  Exchange<E, kTeam, kPacketPairs> exchange = take_exchange<E, kTeam, kPacketPairs>(shared, my, numbers);
  W weights{shared, my};
  Parts<A, 4, 2> parts = take_parts<A, 4, 2>(shared, my.warps, my.lane);
  // [batches, 2, threads] each, from this thread's on: dL/dc, and the part of dL/dh that does not pass W_hh
  Shared<A> own = shared.take<A>(0).from(thread_index()).kept();

  RNNFAST_INLINE explicit BackwardThread(const ResidentBackward<E>& parameters) : p(parameters) {}

  // the number that step s of the walk sends with: numbers grow
  RNNFAST_INLINE int number_of(int s) const { return steps - s; }
  RNNFAST_INLINE int tiles() const { return my.batches; }
  // what this thread has of a tile of 8 rows: a unit in two rows
  RNNFAST_INLINE int unit_of(int) const { return unit; }
  RNNFAST_INLINE int batch_row(int tile, int n) const { return my.batch_row(tile, n); }
  RNNFAST_INLINE bool mine(int tile, int n) const {
    return my.part < 2 && my.batch_row(tile, n) < batch && unit < H;
  }
  RNNFAST_INLINE Pair of_tile(int tile) const {
    return {unit < H ? rows_of_batch(my.batch_row(tile, 0), batch).bits : 0};
  }
  RNNFAST_INLINE A& dc_of(int tile, int n) const { return own[(tile * 2 + n) * block_size()]; }
  RNNFAST_INLINE A& direct_of(int tile, int n) const {
    return own[((my.batches + tile) * 2 + n) * block_size()];
  }

  RNNFAST_INLINE void load_weights(Registers& w) const {
    const int ldw = static_cast<int>(p.ldw), k = my.part * my.length + my.offset;
    const E* const first = row_at(p.w_hh_t, base, ldw * static_cast<int>(sizeof(E))) + k;
    weights.load(w, [&](int i, int number) -> uint32_t {
      const bool is = base + i * kWarpUnits < H && number < ldw - k;
      return is ? as_operand<E>(load_word(first + i * kWarpUnits * ldw + number)) : 0;
    });
  }

  // the gradients of the last state; what has not come is 0
  RNNFAST_INLINE void load_gradients() {
    const int places = exchange.kBuffers * exchange.size;
    for (int i = thread_index(); i < places; i += block_size()) narrow_operand(A(0), exchange.buffers[i]);
    for (int tile = 0; tile < my.batches; ++tile) Cells::load_gradients(tile);
  }

  // dL/dh of two rows: da W_hh from the da of step `from`, and what did not pass W_hh
  RNNFAST_INLINE void carry(int from, int tile, const Registers& w, A* dh) {
    exchange.receive(number_of(from), tile);
    typename W::Sums sum = {};
    const E* const da = my.operand(exchange.buffer(number_of(from)), tile);
    weights.multiply(w, exchange, da, sum);
    if (my.held) weights.multiply_held(da, sum);
    parts.leave(true, my.warp, [&](int i) { return sum[0][i] + sum[1][i]; });
#pragma unroll
    for (int n = 0; n < 2; ++n) dh[n] = direct_of(tile, n);
#pragma unroll 2
    for (int other = 0; other < my.split; ++other) {
      const auto part = parts.of(my.warp_of(other))[my.part % 2 * kLanes];
#pragma unroll
      for (int n = 0; n < 2; ++n) dh[n] += part.number[n];
    }
    for (int n = 0; n < 2; ++n)
      if (!kPlain) Cells::pass_back(from, tile, n, dh[n]);
    parts.next();
  }

  // the cells of this thread's rows, and what they send to the step before
  RNNFAST_INLINE void cells(int s, int tile, const Steps& step, const Pair& wanted, const Saved& saved,
                            const A* dh, Made& made) const {
    Cells::make(s, tile, step, wanted, saved, dh, made);
    const int Hw = static_cast<int>(p.Hw);
    exchange.send(number_of(s), tile, my.column, unit, Hw, unit < Hw, made.sent);
  }
};

template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1)
    resident_backward(const RNNFAST_READ_ONLY Directions<ResidentBackward<E>> both) {
  const ResidentBackward<E>& p = of_this_block<kTeam>(both);
  typedef BackwardThread<Cell, E, kTiles, kTeam, kPlain> Thread;
  Thread thread(p);
  typename Thread::Registers w;
  typename Thread::A dh[2];
  typename Thread::Saved saved = {};
  thread.load_weights(w);
  thread.load_gradients();
  const int last = thread.steps - 1;
  const bool does_cells = thread.my.part < 2;
  Steps step = Steps::of(p.rows, last);
  if (does_cells && Thread::kAhead) thread.load_saved(last, 0, step, thread.before(step, last - 1, 1), saved);
  thread.exchange.begin();
  for (int s = last;;) {
    int tile = 0;
    do {
      if (s < last) {
        thread.carry(s + 1, tile, w, dh);
      } else {
        dh[0] = thread.direct_of(tile, 0);
        dh[1] = thread.direct_of(tile, 1);
      }
      if (does_cells) {
        typename Thread::Made made;
        const Pair wanted = thread.take_part(s, tile, dh);
        if (!Thread::kAhead) thread.load_saved(s, tile, step, thread.before(step, s - 1, 1), saved);
        thread.cells(s, tile, step, wanted, saved, dh, made);
        // All the rest while what was sent is on its way; in one block, where it is there at once, what takes
        // longest comes first.
        if (Thread::kSeveral) thread.store(tile, step, wanted, made);
        if (Thread::kAhead) thread.load_next(s, tile, step, saved);
        if (!Thread::kSeveral) thread.store(tile, step, wanted, made);
      }
    } while (++tile < thread.my.batches);
    thread.exchange.finish();
    if (--s < 0) break;
    step = thread.before(step, s, 1);
  }
  for (int tile = 0; tile < thread.my.batches; ++tile) {
    thread.carry(0, tile, w, dh);
    thread.leave_first(tile, dh);
  }
  thread.exchange.end();
}

}  // namespace rnnfast::cuda
