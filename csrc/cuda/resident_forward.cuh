// The resident kernel forward: what travels is h.
#pragma once
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

// Sums of a thread for each row: the gates of a unit, or two units of a cell with one gate
template <class Cell>
constexpr int kSlots = Cell::kGates == 1 ? 2 : 4;

// which gate's product with h goes to a slot, and which gate's with x; -1: none
template <class Cell>
RNNFAST_INLINE constexpr int hidden_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  if (Cell::kSlots == Cell::kGates) return slot < Cell::kGates ? slot : -1;
  return slot < Cell::kGates - 1 ? slot : slot == Cell::kSlots - 1 ? Cell::kGates - 1 : -1;
}
template <class Cell>
RNNFAST_INLINE constexpr int input_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  return slot < Cell::kGates ? slot : -1;
}

// What a thread knows, and the parts of a step
template <class Cell, class E, int kTiles, bool kTeam>
struct ForwardThread {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots;
  static constexpr int kSums = kSlots<Cell>;
  static constexpr int kBlocks = G == 1 ? kSums : 1;  // one gate: each slot is another unit
  typedef Weights<E, kSums / 2, kTiles, 1> W;
  // What a thread has in its registers, arrays of the kernel:
  typedef typename W::Registers Registers;
  typedef typename W::Sums Sums;  // [kSums / 2, 4]: slots 2 i and 2 i + 1, of each two rows
  typedef A Input[kSums][2];      // what x adds to the slots in the next product
  typedef E Sent[kBlocks][2];     // h on its way to the next step
  struct State {
    A h[kBlocks][2], c[kBlocks][2];
  };
  // what the cells of a tile made, beside the gates in the place of the sums: h', c', and of which rows
  struct Made {
    A h[kBlocks][2], c[kBlocks][2];
    bool present[2];
  };

  const ResidentForward<E>& p;
  Place<E, kTiles, 1, kTeam> my{p.links};
  int base = my.group * kWarpUnits * kBlocks + my.row;  // unit of slot 0
  SharedMemory shared;
  Exchange<E, kTeam> exchange = take_exchange(shared, my, p.Hw);
  W weights{shared, my};
  // [warps, kSums, kWarpUnits], from this thread's on: registers are for W
  A* bias = shared.take<A>(my.warps * kSums * kWarpUnits) + my.warp * kSums * kWarpUnits + my.row;
  // of all but the first of the warps that share a sum, which adds them up
  Parts<A, kSums * 2> parts = take_parts<A, kSums * 2>(shared, my.warps - my.groups);
  // [batches, kBlocks, 2, threads], from this thread's on: c, or the h that a cell blends
  A* own = shared.take<A>(0) + thread_index();

  RNNFAST_INLINE explicit ForwardThread(const ResidentForward<E>& parameters) : p(parameters) {}

  RNNFAST_INLINE int unit_of(int slot) const { return base + (G == 1 ? slot * kWarpUnits : 0); }
  RNNFAST_INLINE A& own_of(int tile, int k, int n) const {
    return own[((tile * kBlocks + k) * 2 + n) * block_size()];
  }

  RNNFAST_INLINE void load_weights(Registers& w) const {
    weights.load(w, [&](int slot, int k) -> uint32_t {
      const int hidden = hidden_gate<Cell>(slot);
      // a unit beyond the last computes what nobody stores
      const int64_t row = hidden * p.H + least<int64_t>(unit_of(slot), p.H - 1);
      const E* const from = p.w_hh + row * p.ldw + my.part * my.length + my.offset + k;
      return hidden >= 0 ? as_operand<E>(load_word(from)) : 0;
    });
  }

  RNNFAST_INLINE void load_bias() const {
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot) {
      const int unit = unit_of(slot), hidden = hidden_gate<Cell>(slot), input = input_gate<Cell>(slot);
      A sum = 0;
      if (unit < p.H && input >= 0 && p.b_ih) sum += widened(p.b_ih[input * p.H + unit]);
      if (unit < p.H && hidden >= 0 && p.b_hh) sum += widened(p.b_hh[hidden * p.H + unit]);
      if (my.lane % 4 == 0) bias[slot * kWarpUnits] = sum;
    }
  }

  // whether row b begins anew in step s of this launch
  RNNFAST_INLINE bool anew(int64_t s, int64_t b) const {
    return b < p.batch && has(p.resets, place_of(p.rows, p.links.first_step + s, b));
  }

  // the state before: h of all units as if it had come, and what the cells of this thread need
  RNNFAST_INLINE void load_state(State& state) const {
    const int places = exchange.buffer_count() * my.rows * my.ld;
    for (int i = thread_index(); i < places; i += block_size()) {
      // into all buffers: a row may begin later
      const int64_t b = my.first + i % (my.rows * my.ld) / my.ld, k = i % my.ld;
      const A* const from = anew(0, b) ? p.resets.h + b * p.H : p.h_before + b * p.Hp;
      narrow_operand(b < p.batch && k < p.H ? from[k] : A(0), exchange.buffers[i]);
    }
    for (int tile = 0; tile < my.batches; ++tile)
#pragma unroll
      for (int k = 0; k < kBlocks; ++k)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int64_t b = my.batch_row(tile, n), unit = unit_of(k);
          const bool mine = b < p.batch && unit < p.H, is_anew = anew(0, b);
          const A* const h = is_anew ? p.resets.h + b * p.H : p.h_before + b * p.Hp;
          const A* const c = is_anew ? p.resets.c + b * p.H : p.c + b * p.Hp;
          state.h[k][n] = Cell::kBlends && mine ? h[unit] : A(0);
          state.c[k][n] = Cell::kHasCell && mine ? c[unit] : A(0);
          if (kTeam) own_of(tile, k, n) = Cell::kHasCell ? state.c[k][n] : state.h[k][n];
        }
  }

  // what x adds in step s of this launch, and 0 where nothing
  RNNFAST_INLINE void load_input(int64_t s, int tile, Input& next) const {
    const int64_t step = p.links.first_step + s;
    const int H = static_cast<int>(p.H), row = G * H;
    const A* const input = p.input + place_of(p.input_rows, step, my.batch_row(tile, 0)) * row + base;
    const int64_t present = rows_of(p.rows, step);
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int gate = input_gate<Cell>(slot), unit = unit_of(slot);
        const bool there = my.batch_row(tile, n) < present && unit < H && gate >= 0 && my.part == 0;
        next[slot][n] = there ? input[n * row + gate * H + unit - base] : A(0);
      }
  }
  // of the tile after this one, of this step or the next
  RNNFAST_INLINE void load_next(int s, int tile, Input& next) const {
    const int next_tile = tile + 1 < my.batches ? tile + 1 : 0, next_step = next_tile ? s : s + 1;
    if (next_step < p.steps) load_input(next_step, next_tile, next);
  }

  // sum = W_ih x + b + W_hh h, or this warp's part of it
  RNNFAST_INLINE void product(int s, int tile, const Registers& w, const Input& next, Sums& sum) const {
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        sum[slot / 2][slot % 2 * 2 + n] = next[slot][n] + (my.part == 0 ? bias[slot * kWarpUnits] : A(0));
    const E* const h = my.operand(exchange.buffer(s), tile);
    weights.multiply(w, exchange, h, sum);
#pragma unroll 2
    for (int t = 0; t < my.held; ++t) weights.multiply_held(t, h, sum);
  }

  // of a row that has not begun, or has ended, what came
  RNNFAST_INLINE void keep(int s, int tile, Sent& sent) const {
    if (!p.rows.sizes && !p.rows.lengths) return;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        if (unit_of(k) < p.H) sent[k][n] = exchange.number(s, tile * kBatch + my.column + n, unit_of(k));
  }

  RNNFAST_INLINE A& gate_of(Sums& sum, int k, int j, int n) const {
    const int slot = G == 1 ? k : j;
    return sum[slot / 2][slot % 2 * 2 + n];
  }

  // the whole sums, in the first of the warps that share them
  RNNFAST_INLINE void add_parts(Sums& sum) {
    if constexpr (kTeam) {
      parts.leave(my.part > 0, my.warp - my.groups, my.lane, [&](int i) { return sum[i / 4][i % 4]; });
      if (my.part == 0)
        for (int other = 1; other < my.split; ++other)
#pragma unroll
          for (int i = 0; i < kSums * 2; ++i)
            sum[i / 4][i % 4] += parts.of(my.warp_of(other) - my.groups)[i * kLanes + my.lane];
      parts.next();
    }
  }

  // the cells of this thread's units and rows, and what they send to the next step; the sums become gates
  RNNFAST_INLINE void cells(int s, int tile, Sums& sum, State& kept, Sent& sent, Made& made) const {
    const int64_t step = p.links.first_step + s;
#pragma unroll
    for (int n = 0; n < 2; ++n) made.present[n] = takes_part(p.rows, step, my.batch_row(tile, n));
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      const int unit = unit_of(k);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        A state[S];
#pragma unroll
        for (int j = 0; j < S; ++j) state[j] = gate_of(sum, k, j, n);
        if (kTeam) (Cell::kHasCell ? kept.c : kept.h)[k][n] = own_of(tile, k, n);
        made.c[k][n] = kept.c[k][n];
        made.h[k][n] = Cell::forward(state, made.c[k][n], kept.h[k][n]);
#pragma unroll
        for (int j = 0; j < S; ++j) gate_of(sum, k, j, n) = state[j];
        if (unit >= p.H || !made.present[n]) continue;  // no unit, not yet, or no more
        kept.h[k][n] = made.h[k][n];
        kept.c[k][n] = made.c[k][n];
        if (kTeam) own_of(tile, k, n) = (Cell::kHasCell ? made.c : made.h)[k][n];
        narrow_operand(made.h[k][n], sent[k][n]);
        if (!kTeam) store(s, tile, k, n, sum, made);  // what was sent is there at once
      }
      if (s + 1 == p.steps) continue;
      if (p.resets.at) begin_anew(s + 1, tile, k, kept, sent);
      exchange.send(s + 1, tile * kBatch + my.column, unit, unit < p.Hw, sent[k]);
    }
  }

  // what rows go on from that begin anew in step s
  RNNFAST_INLINE void begin_anew(int s, int tile, int k, State& kept, Sent& sent) const {
    const int unit = unit_of(k);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = made_anew(my.batch_row(tile, n));
      if (unit >= p.H || !anew(s, b)) continue;
      const A h = p.resets.h[b * p.H + unit];
      narrow_operand(h, sent[k][n]);
      A& mine = kTeam ? own_of(tile, k, n) : (Cell::kHasCell ? kept.c : kept.h)[k][n];
      mine = Cell::kHasCell ? p.resets.c[b * p.H + unit] : h;
    }
  }

  // y, what backward needs, and after the last step (of the launch or of the row) the state
  RNNFAST_INLINE void store(int s, int tile, int k, int n, Sums& sum, const Made& made) const {
    const int64_t step = p.links.first_step + s;
    const int b = my.batch_row(tile, n), unit = unit_of(k);
    if (unit >= p.H || !made.present[n]) return;
    const int Hp = static_cast<int>(p.Hp);
    const int64_t at = place_of(p.rows, step, b);
    const A value = made.h[k][n], cell = made.c[k][n];
    narrow(value, p.y[at * static_cast<int>(p.ldy) + unit]);
    if (p.gates) {
      A* const gates = p.gates + at * (S * Hp) + unit;
#pragma unroll
      for (int j = 0; j < S; ++j) gates[j * Hp] = gate_of(sum, k, j, n);
    }
    if (Cell::kHasCell && p.cells) p.cells[at * Hp + unit] = cell;
    if (Cell::kHasCell && p.cs) narrow(cell, p.cs[at * static_cast<int>(p.ldc) + unit]);
    if (s + 1 < p.steps && !ends(p.rows, step, b)) return;
    p.h[b * p.Hp + unit] = value;
    if (Cell::kHasCell) p.c[b * p.Hp + unit] = cell;
  }
  RNNFAST_INLINE void store(int s, int tile, Sums& sum, const Made& made) const {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) store(s, tile, k, n, sum, made);
  }
};

template <class Cell, class E, int kTiles, bool kTeam>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_forward(ResidentForward<E> p) {
  typedef ForwardThread<Cell, E, kTiles, kTeam> Thread;
  Thread thread(p);
  typename Thread::Registers w;
  typename Thread::State state;
  typename Thread::Input next;
  thread.load_weights(w);
  thread.load_bias();
  thread.load_state(state);
  thread.load_input(0, 0, next);
  thread.exchange.begin();
  for (int s = 0; s < p.steps; ++s) {
    if (s > 0) thread.exchange.receive(s);
    for (int tile = 0; tile < thread.my.batches; ++tile) {
      typename Thread::Sums sum;
      thread.product(s, tile, w, next, sum);
      typename Thread::Sent sent = {};
      thread.keep(s, tile, sent);
      thread.add_parts(sum);
      typename Thread::Made made;
      // a team does all the rest while what was sent is on its way
      if (!kTeam) thread.load_next(s, tile, next);
      if (thread.my.part == 0) thread.cells(s, tile, sum, state, sent, made);
      if (kTeam) thread.load_next(s, tile, next);
      if (kTeam && thread.my.part == 0) thread.store(s, tile, sum, made);
    }
    thread.exchange.finish();
  }
  thread.exchange.end();
}

}  // namespace rnnfast::cuda
