// The resident kernel backward: what travels is dL/d(pre-activations), here da.
#pragma once
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

// What a thread knows, and the parts of a step. dL/dh of 16 units is made by two warps or more, each over a
// part of the sum; the first two then have the whole of 8 units each.
template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
struct BackwardThread {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots;
  static constexpr bool kSeveral = kTeam != Team::kBlock;
  // whether there are registers for what was saved of the next step while this one's product runs
  static constexpr bool kAhead = kPlain || kSeveral;
  static constexpr int kOwn = (G * kTiles + 1) / 2;  // instructions of a warp with W in registers
  typedef Weights<E, 1, kOwn, 2> W;                  // two chains, for the instruction's latency
  typedef typename W::Registers Registers;
  // what was saved of two rows of a step
  struct Saved {
    A state[S][2], c[2], c_before[2], before[2], dy[2];
  };
  // dL/d(pre-activations) of two rows, which a step may not have
  struct Made {
    A da[G][2], dx[G][2];
    E sent[G][2];  // da as it travels, or 0
  };

  const ResidentBackward<E>& p;
  Place<E, kOwn, 2, kTeam> my{p.links};
  int base = my.group * 2 * kWarpUnits + my.row, unit = kept(base + my.part * kWarpUnits);
  int H = static_cast<int>(p.H), Hp = static_cast<int>(p.Hp), batch = static_cast<int>(p.batch);
  int steps = static_cast<int>(p.steps);
  SharedMemory shared;
  int numbers = G * static_cast<int>(p.Hw);  // of a row of da: gate after gate
  Exchange<E, kTeam> exchange = take_exchange<E, kTeam>(shared, my, numbers);
  W weights{shared, my};
  Parts<A, 4, 2> parts = take_parts<A, 4, 2>(shared, my.warps, my.lane);
  // [batches, 2, threads] each, from this thread's on: dL/dc, and the part of dL/dh that does not pass W_hh
  Shared<A> own = shared.take<A>(0).from(thread_index()).kept();

  RNNFAST_INLINE explicit BackwardThread(const ResidentBackward<E>& parameters) : p(parameters) {}

  // the number that step s of the walk sends with: numbers grow
  RNNFAST_INLINE int number_of(int s) const { return steps - s; }
  // whether this thread does a cell of column n of its two in a tile of 8 rows
  RNNFAST_INLINE bool mine(int tile, int n) const {
    return my.part < 2 && my.batch_row(tile, n) < batch && unit < H;
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
    for (int tile = 0; tile < my.batches; ++tile)
      for (int n = 0; n < 2; ++n) {
        const int64_t at = my.batch_row(tile, n) * p.H + unit;
        dc_of(tile, n) = mine(tile, n) && p.dcn ? p.dcn[at] : A(0);
        direct_of(tile, n) = mine(tile, n) && p.dhn ? p.dhn[at] : A(0);
      }
  }

  // where the rows of step s stand, so many steps before the one whose rows stand at `now`
  RNNFAST_INLINE Steps before(const Steps& now, int s, int steps_before) const {
    if (kPlain) return {now.at - steps_before * static_cast<int>(p.rows.step)};
    return Steps::of(p.rows, s < 0 ? 0 : s);
  }
  // What was saved of step s, whose rows and those of the step before are these. Who has no row or no unit
  // reads that of another, for numbers that go nowhere; and so it is before the first step.
  RNNFAST_INLINE void load_saved(int s, int tile, const Steps& step, const Steps& before,
                                 Saved& saved) const {
    const unsigned of = least(unit, H - 1), last = static_cast<unsigned>(p.N) - 1;
    const int size = static_cast<int>(sizeof(A)), ldy = static_cast<int>(p.ldy) * static_cast<int>(sizeof(E));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = my.batch_row(tile, n);
      const unsigned at = least(static_cast<unsigned>(step.place(p.rows, b)), last);
      const unsigned at_before = least(static_cast<unsigned>(before.place(p.rows, b)), last);
      const A* const gates = row_at(p.gates + of, at, S * Hp * size);
#pragma unroll
      for (unsigned j = 0; j < S; ++j) saved.state[j][n] = gates[j * static_cast<unsigned>(Hp)];
      if (Cell::kHasCell) saved.c[n] = *row_at(p.cells + of, at, Hp * size);
      saved.dy[n] = p.dy ? A(widened(*row_at(p.dy + of, at, ldy))) : A(0);
      const bool begin = kPlain ? s <= 0 : begins_now(s, made_anew(b));
      const int64_t first = int64_t{least(b, batch - 1)} * H + of;
      if (Cell::kHasCell) {
        const A* const from = begin ? p.c0 + first : row_at(p.cells + of, at_before, Hp * size);
        saved.c_before[n] = *from;
      }
      if (Cell::kBlends) {
        if (begin)
          saved.before[n] = p.h0[first];
        else
          saved.before[n] = widened(*row_at(p.y + of, at_before, ldy));
      }
      if (!kPlain) load_reset(s, made_anew(b), saved, n);
    }
  }
  RNNFAST_INLINE bool begins_now(int s, int b) const {
    return s <= 0 || (b < batch && takes_part(p.rows, s, b) && begins(p.rows, s, b));
  }
  // of a row that begins anew in step s: the state before
  RNNFAST_INLINE void load_reset(int s, int b, Saved& saved, int n) const {
    if (!p.resets.at || s < 0 || b >= batch || unit >= H) return;
    if (!takes_part(p.rows, s, b) || !has(p.resets, place_of(p.rows, s, b))) return;
    const int64_t at = int64_t{b} * p.H + unit;
    if (Cell::kHasCell) saved.c_before[n] = p.resets.c[at];
    if (Cell::kBlends) saved.before[n] = p.resets.h[at];
  }
  // of the tile after this one, of this step or the one before
  RNNFAST_INLINE void load_next(int s, int tile, const Steps& now, Saved& saved) const {
    const bool more = tile + 1 < my.batches;
    const int back = more ? 0 : 1;
    load_saved(s - back, more ? tile + 1 : 0, before(now, s - back, back),
               before(now, s - back - 1, back + 1), saved);
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
      if (!kPlain) pass_back(from, tile, n, dh[n]);
    parts.next();
  }

  // What step s gives to the state before it: past a reset that is another one.
  RNNFAST_INLINE void pass_back(int s, int tile, int n, A& dh) const {
    if (!p.resets.at || !mine(tile, n)) return;
    const int64_t b = made_anew(my.batch_row(tile, n));
    if (!takes_part(p.rows, s, b) || !has(p.resets, place_of(p.rows, s, b))) return;
    const int64_t at = b * p.H + made_anew(unit);
    p.resets.dh[at] += dh;
    dh = 0;
    if (!Cell::kHasCell) return;
    p.resets.dc[at] += dc_of(tile, n);
    dc_of(tile, n) = 0;
  }

  // the gradients of the state that a row began with
  RNNFAST_INLINE void leave(int tile, int n, A dh) const {
    const int64_t at = my.batch_row(tile, n) * p.H + unit;
    p.dh0[at] = dh;
    if (Cell::kHasCell) p.dc0[at] = dc_of(tile, n);
  }

  RNNFAST_INLINE Pair take_part(int s, int tile, const A* dh) const {
    if (kPlain) return {unit < H ? rows_of_batch(my.batch_row(tile, 0), batch).bits : 0};
    // a row whose first step was the one after s leaves
    Pair pair;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = made_anew(my.batch_row(tile, n));
      if (unit >= H || b >= batch) continue;
      const bool is = takes_part(p.rows, s, b);
      pair.add(n, is);
      if (!is && s + 1 < steps && takes_part(p.rows, s + 1, b)) leave(tile, n, dh[n]);
    }
    return pair;
  }

  // the cells of this thread's rows, and what they send to the step before
  RNNFAST_INLINE void cells(int s, int tile, const Steps& step, const Pair& wanted, const Saved& saved,
                            const A* dh, Made& made) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      A state[S], da[G], dx[G], dc = dc_of(tile, n);
#pragma unroll
      for (int j = 0; j < S; ++j) state[j] = saved.state[j][n];
      const bool is = wanted.has(n);
      if (Cell::kHasCell && p.dcs) {
        if (is) dc += widened(p.dcs[step.place(p.rows, my.batch_row(tile, n)) * p.ldc + unit]);
      }
      const A direct = Cell::backward(state, saved.before[n], saved.c_before[n], saved.c[n],
                                      dh[n] + saved.dy[n], dc, da, dx);
      if (is) direct_of(tile, n) = direct, dc_of(tile, n) = dc;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        narrow_operand(is ? da[g] : A(0), made.sent[g][n]);
        made.da[g][n] = da[g];
        if (S > G) made.dx[g][n] = dx[g];
      }
    }
    const int Hw = static_cast<int>(p.Hw);
    exchange.send(number_of(s), tile, my.column, unit, Hw, unit < Hw, made.sent);
  }

  // what the weight gradients are made of
  RNNFAST_INLINE void store(int tile, const Steps& step, const Pair& wanted, const Made& made) const {
    const int bytes = static_cast<int>(p.Kp) * static_cast<int>(sizeof(E));
    const auto place_of_row = [&](E* to, int n) {
      const int at = step.place(p.rows, my.batch_row(tile, n));
      return made_here(row_at(to + static_cast<unsigned>(unit), at, bytes));
    };
    const auto put = [&](const auto(&values)[G][2], E* row, int n) {
#pragma unroll
      for (int g = 0; g < G; ++g)
        if (wanted.has(n)) narrow(values[g][n], row[static_cast<unsigned>(g * H)]);
    };
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      // halves are what travelled
      if constexpr (sizeof(E) == 2)
        put(made.sent, place_of_row(p.da, n), n);
      else
        put(made.da, place_of_row(p.da, n), n);
      if (S > G) put(made.dx, place_of_row(p.dx, n), n);
    }
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
#pragma unroll
    for (int n = 0; n < 2; ++n)
      if (thread.mine(tile, n) && takes_part(p.rows, 0, thread.my.batch_row(tile, n)))
        thread.leave(tile, n, dh[n]);
  }
  thread.exchange.end();
}

}  // namespace rnnfast::cuda
