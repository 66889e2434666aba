// The resident kernel backward: what travels is dL/d(pre-activations), here da.
#pragma once
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

// What a thread knows, and the parts of a step. dL/dh of 16 units is made by two warps or more, each over a
// part of the sum; the first two then have the whole of 8 units each.
template <class Cell, class E, int kTiles, bool kTeam>
struct BackwardThread {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots;
  static constexpr int kOwn = (G * kTiles + 1) / 2;  // instructions of a warp with W in registers
  typedef Weights<E, 1, kOwn, 2> W;                  // two chains, for the instruction's latency
  typedef typename W::Registers Registers;
  // what was saved of a row of a step
  struct Saved {
    A state[S], c, c_before, before, dy;
  };
  // dL/d(pre-activations) of two rows, which a step may not have
  struct Made {
    A da[G][2], dx[G][2];
    E sent[G][2];  // da as it travels, or 0
    bool there[2];
  };

  const ResidentBackward<E>& p;
  Place<E, kOwn, 2, kTeam> my{p.links};
  int base = my.group * 2 * kWarpUnits + my.row, unit = base + my.part * kWarpUnits;
  SharedMemory shared;
  int numbers = G * static_cast<int>(p.Hw);  // of a row of da: gate after gate
  Exchange<E, kTeam> exchange = take_exchange(shared, my, numbers);
  W weights{shared, my};
  Parts<A, 4> parts = take_parts<A, 4>(shared, my.warps);
  // [batches, 2, threads] each, from this thread's on: dL/dc, and the part of dL/dh that does not pass W_hh
  A* own = shared.take<A>(0) + thread_index();

  RNNFAST_INLINE explicit BackwardThread(const ResidentBackward<E>& parameters) : p(parameters) {}

  RNNFAST_INLINE int steps() const { return static_cast<int>(p.steps); }
  // the number that step s of the walk sends with: numbers grow
  RNNFAST_INLINE int number_of(int s) const { return steps() - s; }
  // whether this thread does a cell of column n of its two in a tile of 8 rows
  RNNFAST_INLINE bool mine(int tile, int n) const {
    return my.part < 2 && my.batch_row(tile, n) < p.batch && unit < p.H;
  }
  RNNFAST_INLINE A& dc_of(int tile, int n) const { return own[(tile * 2 + n) * block_size()]; }
  RNNFAST_INLINE A& direct_of(int tile, int n) const {
    return own[((my.batches + tile) * 2 + n) * block_size()];
  }

  RNNFAST_INLINE void load_weights(Registers& w) const {
    weights.load(w, [&](int i, int number) -> uint32_t {
      const int64_t of = base + i * kWarpUnits, k = my.part * my.length + my.offset + number;
      const E* const from = p.w_hh_t + of * p.ldw + k;
      return of < p.H && k < p.ldw ? as_operand<E>(load_word(from)) : 0;
    });
  }

  // the gradients of the last state; what has not come is 0
  RNNFAST_INLINE void load_gradients() {
    const int places = exchange.buffer_count() * my.rows * my.ld;
    for (int i = thread_index(); i < places; i += block_size()) narrow_operand(A(0), exchange.buffers[i]);
    for (int tile = 0; tile < my.batches; ++tile)
      for (int n = 0; n < 2; ++n) {
        const int64_t at = my.batch_row(tile, n) * p.H + unit;
        dc_of(tile, n) = mine(tile, n) && p.dcn ? p.dcn[at] : A(0);
        direct_of(tile, n) = mine(tile, n) && p.dhn ? p.dhn[at] : A(0);
      }
  }

  // f(where it stands, its place in `of`) of all that was saved of row b
  template <class F>
  RNNFAST_INLINE void each_saved(int s, int b, Saved& of, const F& f) const {
    const int64_t at = place_of(p.rows, s, b);
    const bool anew = has(p.resets, at), first_of_row = anew || begins(p.rows, s, b);
    const int64_t before =
        (Cell::kHasCell || Cell::kBlends) && !first_of_row ? place_of(p.rows, s - 1, b) : 0;
    const int Hp = static_cast<int>(p.Hp), ldy = static_cast<int>(p.ldy);
    const A* const gates = p.gates + at * (S * Hp) + unit;
#pragma unroll
    for (int j = 0; j < S; ++j) f(gates + j * Hp, of.state[j]);
    if (Cell::kHasCell) {
      f(p.cells + at * Hp + unit, of.c);
      const A* const first = (anew ? p.resets.c : p.c0) + b * p.H + unit;
      f(first_of_row ? first : p.cells + before * Hp + unit, of.c_before);
    }
    if (Cell::kBlends && first_of_row) f((anew ? p.resets.h : p.h0) + b * p.H + unit, of.before);
    if (Cell::kBlends && !first_of_row) f(p.y + before * ldy + unit, of.before);
    if (p.dy) f(p.dy + at * ldy + unit, of.dy);
  }
  // what the next tile's cells need, into the cache only: while the product runs, registers are for W.
  // Not for one block: all of its warps do cells, and what they take to ask is longer than the wait.
  RNNFAST_INLINE void prefetch_next(int s, int tile) const {
    const int next_tile = tile + 1 < my.batches ? tile + 1 : 0;
    const int next_step = next_tile ? s : s - 1;
    if (next_step < 0) return;
    for (int n = 0; n < 2; ++n) {
      Saved unused;
      const int b = my.batch_row(next_tile, n);
      if (mine(next_tile, n) && takes_part(p.rows, next_step, b))
        each_saved(next_step, b, unused, [](const auto* from, A&) { prefetch(from); });
    }
  }

  // dL/dh of two rows: da W_hh from the da of step `from`, and what did not pass W_hh
  RNNFAST_INLINE void carry(int from, int tile, const Registers& w, A* dh) {
    typename W::Sums sum = {};
    const E* const da = my.operand(exchange.buffer(number_of(from)), tile);
    weights.multiply(w, exchange, da, sum);
    for (int t = 0; t < my.held; t += 2) weights.multiply_held(t, da, sum);
    parts.leave(true, my.warp, my.lane, [&](int i) { return sum[0][i] + sum[1][i]; });
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      dh[n] = direct_of(tile, n);
      for (int other = 0; other < my.split; ++other)
        dh[n] += parts.of(my.warp_of(other))[(my.part % 2 * 2 + n) * kLanes + my.lane];
      pass_back(from, tile, n, dh[n]);
    }
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

  // the cell of one row, if there is one: what it makes, and what goes on to the step before
  RNNFAST_INLINE void cell(int s, int tile, int n, A dh, Made& made) const {
    made.there[n] = false;
    if (!mine(tile, n)) return;
    const int b = my.batch_row(tile, n);
    if (!takes_part(p.rows, s, b)) {
      if (s + 1 < steps() && takes_part(p.rows, s + 1, b)) leave(tile, n, dh);
      return;
    }
    Saved of{};
    each_saved(s, b, of, [](const auto* from, A& to) { to = widened(*from); });
    A dc = dc_of(tile, n);
    if (Cell::kHasCell && p.dcs) dc += widened(p.dcs[place_of(p.rows, s, b) * p.ldc + unit]);
    A da[G], dx[G];
    direct_of(tile, n) = Cell::backward(of.state, of.before, of.c_before, of.c, dh + of.dy, dc, da, dx);
    dc_of(tile, n) = dc;
    made.there[n] = true;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      narrow_operand(da[g], made.sent[g][n]);
      made.da[g][n] = da[g];
      if (S > G) made.dx[g][n] = dx[g];
    }
    if (!kTeam) store(s, tile, n, made);
  }

  // what the weight gradients are made of
  RNNFAST_INLINE void store(int s, int tile, int n, const Made& made) const {
    if (!made.there[n]) return;
    const int H = static_cast<int>(p.H);
    const int64_t at = place_of(p.rows, s, my.batch_row(tile, n)) * static_cast<int>(p.Kp) + unit;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      narrow(made.da[g][n], p.da[at + g * H]);
      if (S > G) narrow(made.dx[g][n], p.dx[at + g * H]);
    }
  }

  // the cells of this thread's rows, and what they send to the step before
  RNNFAST_INLINE void cells(int s, int tile, const A* dh) const {
    Made made;
#pragma unroll
    for (int g = 0; g < G; ++g) made.sent[g][0] = made.sent[g][1] = E{};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      cell(s, tile, n, dh[n], made);
    }
#pragma unroll
    for (int g = 0; g < G; ++g)
      exchange.send(number_of(s), tile * kBatch + my.column, g * static_cast<int>(p.Hw) + unit, unit < p.Hw,
                    made.sent[g]);
    // a team does it while what was sent is on its way
#pragma unroll
    for (int n = 0; n < 2; ++n)
      if (kTeam) store(s, tile, n, made);
  }
};

template <class Cell, class E, int kTiles, bool kTeam>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_backward(ResidentBackward<E> p) {
  typedef BackwardThread<Cell, E, kTiles, kTeam> Thread;
  Thread thread(p);
  typename Thread::Registers w;
  typename Thread::A dh[2];
  thread.load_weights(w);
  thread.load_gradients();
  thread.exchange.begin();
  const int steps = thread.steps();
  for (int s = steps - 1; s >= 0; --s) {
    if (s + 1 < steps) thread.exchange.receive(thread.number_of(s + 1));
    for (int tile = 0; tile < thread.my.batches; ++tile) {
      if (kTeam) thread.prefetch_next(s, tile);
      if (s + 1 < steps) {
        thread.carry(s + 1, tile, w, dh);
      } else {
        dh[0] = thread.direct_of(tile, 0);
        dh[1] = thread.direct_of(tile, 1);
      }
      if (thread.my.part < 2) thread.cells(s, tile, dh);
    }
    thread.exchange.finish();
  }
  thread.exchange.receive(thread.number_of(0));
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
