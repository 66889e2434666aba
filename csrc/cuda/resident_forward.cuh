// The resident kernel forward: what travels is h.
#pragma once
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

// Sums of a thread for each row: the gates of a unit, or two units of a cell with one gate
template <class Cell>
constexpr int kSlots = Cell::kGates == 1 ? 2 : 4;

// What a thread knows, and the parts of a step. What it has in its registers are arrays and structs of the
// kernel.
template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
struct ForwardThread {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots;
  static constexpr bool kSeveral = kTeam != Team::kBlock;
  static constexpr int kSums = kSlots<Cell>;
  static constexpr int kBlocks = G == 1 ? kSums : 1;  // one gate: each slot is another unit
  typedef Weights<E, kSums / 2, kTiles, 1> W;
  typedef typename W::Registers Registers;
  typedef typename W::Sums Sums;  // [kSums / 2, 4]: slots 2 i and 2 i + 1, of each two rows
  typedef A Input[kSums][2];      // what x adds to the slots in the next product
  typedef E Sent[kBlocks][2];     // h on its way to the next step
  struct State {
    A h[kBlocks][2], c[kBlocks][2];
  };
  // what the cells of a tile made, beside the gates in the place of the sums: h' and c'
  struct Made {
    A h[kBlocks][2], c[kBlocks][2];
  };
  // What this thread's two rows of a tile do in a step
  struct Doing {
    Pair take_part, end;
    Pair begin_anew;  // in the step after it
  };

  // where a step's rows stand of y and of what x adds, and of that in the step after it
  struct Walk {
    Steps rows, input, after;

    RNNFAST_INLINE explicit Walk(const ResidentForward<E>& p) { find(p, 0); }
    // to step s of this launch, the next one
    RNNFAST_INLINE void go(const ResidentForward<E>& p, int s) {
      if (kPlain) {
        rows.at += static_cast<int>(p.rows.step);
        input = after;
        after.at += static_cast<int>(p.input_rows.step);
      } else {
        find(p, s);
      }
    }
    RNNFAST_INLINE void find(const ResidentForward<E>& p, int s) {
      const int64_t step = p.links.first_step + s;
      rows = Steps::of(p.rows, step), input = Steps::of(p.input_rows, step);
      after = Steps::of(p.input_rows, least(step + 1, p.rows.steps - 1));
    }
  };

  const ResidentForward<E>& p;
  Place<E, kTiles, 1, kTeam> my{p.links};
  int base = kept(my.group * kWarpUnits * kBlocks + my.row);  // unit of slot 0
  int H = static_cast<int>(p.H), steps = static_cast<int>(p.steps), batch = static_cast<int>(p.batch);
  // whether anything is stored for backward (1), and c of every step (2), where there is a register for it
  static constexpr bool kKnows = kSeveral && (S == G || sizeof(E) == 2);
  int saves = kKnows ? kept((p.gates ? 1 : 0) | (p.cs ? 2 : 0)) : 0;
  SharedMemory shared;
  static constexpr int kPacketPairs = packet_pairs(sizeof(E), false, kPlain, kHopper);
  Exchange<E, kTeam, kPacketPairs> exchange = take_exchange<E, kTeam, kPacketPairs>(shared, my, p.Hw);
  W weights{shared, my};
  // [warps, kWarpUnits], of this thread's unit on
  Shared<Several<A, kSums>> bias =
      shared.take<Several<A, kSums>>(my.warps * kWarpUnits).from(my.warp * kWarpUnits + my.row);
  // of all but the first of the warps that share a sum, which adds them up
  Parts<A, kSums * 2, 4> parts = take_parts<A, kSums * 2, 4>(shared, my.warps - my.groups, my.lane);
  // [batches, kBlocks, 2, threads], from this thread's on: c, or the h that a cell blends
  Shared<A> own = shared.take<A>(0).from(thread_index()).kept();

  RNNFAST_INLINE explicit ForwardThread(const ResidentForward<E>& parameters) : p(parameters) {}

  RNNFAST_INLINE int unit_of(int slot) const { return base + (G == 1 ? slot * kWarpUnits : 0); }
  RNNFAST_INLINE A& own_of(int tile, int k, int n) const {
    return own[((tile * kBlocks + k) * 2 + n) * block_size()];
  }

  RNNFAST_INLINE void load_weights(Registers& w) const {
    weights.load(w, [&](int slot, int k) -> uint32_t {
      const int hidden = hidden_gate<Cell>(slot);
      // a unit beyond the last computes what nobody stores
      const int64_t row = hidden * p.H + least(unit_of(slot), H - 1);
      const E* const from = p.w_hh + row * p.ldw + my.part * my.length + my.offset + k;
      return hidden >= 0 ? as_operand<E>(load_word(from)) : 0;
    });
  }

  RNNFAST_INLINE void load_bias() const {
    Several<A, kSums> sums{};
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot) {
      const int unit = unit_of(slot), hidden = hidden_gate<Cell>(slot), input = input_gate<Cell>(slot);
      if (unit >= H || my.part > 0) continue;
      if (input >= 0 && p.b_ih) sums.number[slot] += widened(p.b_ih[input * p.H + unit]);
      if (hidden >= 0 && p.b_hh) sums.number[slot] += widened(p.b_hh[hidden * p.H + unit]);
    }
    if (my.lane % 4 == 0) bias[0] = sums;
  }

  // whether row b begins anew in step s of this launch
  RNNFAST_INLINE bool anew(int64_t s, int64_t b) const {
    return b < p.batch && has(p.resets, place_of(p.rows, p.links.first_step + s, b));
  }

  // the state before: h of all units as if it had come, and what the cells of this thread need
  RNNFAST_INLINE void load_state(State& state) const {
    const int places = exchange.kBuffers * exchange.size, first = my.first - my.column;
    for (int i = thread_index(); i < places; i += block_size()) {
      // into all buffers: a row may begin later
      const int64_t b = first + i % exchange.size / my.ld, k = i % my.ld;
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
          if (kSeveral) own_of(tile, k, n) = Cell::kHasCell ? state.c[k][n] : state.h[k][n];
        }
  }

  // What x adds in a step. Who has no row or no unit reads that of another, for sums that nobody stores; and
  // so it is after the last step.
  RNNFAST_INLINE void load_input(const Steps& step, int tile, Input& next) const {
    const unsigned last = static_cast<unsigned>(p.inputs) - 1;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const unsigned at = least(static_cast<unsigned>(step.at + my.batch_row(tile, n)), last);
      const A* const input = row_at(p.input, at, G * H * static_cast<int>(sizeof(A)));
#pragma unroll
      for (int slot = 0; slot < kSums; ++slot) {
        const int gate = input_gate<Cell>(slot), unit = least(unit_of(slot), H - 1);
        next[slot][n] = gate >= 0 ? input[static_cast<unsigned>(gate * H + unit)] : A(0);
      }
    }
  }
  // of the tile after this one, of this step or the next
  RNNFAST_INLINE void load_next(int tile, const Walk& walk, Input& next) const {
    const bool more = tile + 1 < my.batches;
    load_input(more ? walk.input : walk.after, more ? tile + 1 : 0, next);
  }

  // sum = W_ih x + b + W_hh h, or this warp's part of it
  RNNFAST_INLINE void product(int s, int tile, const Registers& w, const Input& next, Sums& sum) const {
    const Several<A, kSums> constant = bias[0];
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n) sum[slot / 2][slot % 2 * 2 + n] = next[slot][n] + constant.number[slot];
    const E* const h = my.operand(exchange.buffer(s), tile);
    weights.multiply(w, exchange, h, sum);
    if (!my.held) return;
    weights.multiply_held(h, sum);
  }

  // and what is sent of rows that do not take part
  RNNFAST_INLINE Doing doing(int s, int tile, Sent& sent) const {
    if (kPlain) return {rows_of_batch(my.batch_row(tile, 0), batch), {s + 1 == steps ? 3 : 0}, {0}};
    const int64_t step = p.links.first_step + s;
    keep(s, tile, sent);
    Doing doing;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = made_anew(my.batch_row(tile, n));
      doing.take_part.add(n, takes_part(p.rows, step, b));
      doing.end.add(n, s + 1 == steps || ends(p.rows, step, b));
      doing.begin_anew.add(n, p.resets.at && s + 1 < steps && anew(s + 1, b));
    }
    return doing;
  }

  // of a row that has not begun, or has ended, what came
  RNNFAST_INLINE void keep(int s, int tile, Sent& sent) const {
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        if (unit_of(k) < H) sent[k][n] = exchange.number(s, tile * kBatch + my.column + n, unit_of(k));
  }

  RNNFAST_INLINE A& gate_of(Sums& sum, int k, int j, int n) const {
    const int slot = G == 1 ? k : j;
    return sum[slot / 2][slot % 2 * 2 + n];
  }

  // the whole sums, in the first of the warps that share them
  RNNFAST_INLINE void add_parts(Sums& sum) {
    if constexpr (kSeveral) {
      parts.leave(my.part > 0, my.warp - my.groups, [&](int i) { return sum[i / 4][i % 4]; });
      if (my.part == 0)
#pragma unroll 1
        for (int other = 1; other < my.split; ++other)
#pragma unroll
          for (int i = 0; i < kSums / 2; ++i) {
            const auto part = parts.of(my.warp_of(other) - my.groups)[i * kLanes];
#pragma unroll
            for (int n = 0; n < 4; ++n) sum[i][n] += part.number[n];
          }
      parts.next();
    }
  }

  // the cells of this thread's units and rows, and what they send to the next step; the sums become gates
  RNNFAST_INLINE void cells(int s, int tile, const Steps& step, const Doing& doing, Sums& sum, State& kept,
                            Sent& sent, Made& made) const {
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      const int unit = unit_of(k);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        A state[S];
#pragma unroll
        for (int j = 0; j < S; ++j) state[j] = gate_of(sum, k, j, n);
        if (kSeveral) (Cell::kHasCell ? kept.c : kept.h)[k][n] = own_of(tile, k, n);
        made.c[k][n] = kept.c[k][n];
        made.h[k][n] = Cell::forward(state, made.c[k][n], kept.h[k][n]);
#pragma unroll
        for (int j = 0; j < S; ++j) gate_of(sum, k, j, n) = state[j];
        if (unit >= H || !doing.take_part.has(n)) continue;  // no unit, not yet, or no more
        kept.h[k][n] = made.h[k][n];
        kept.c[k][n] = made.c[k][n];
        if (kSeveral) own_of(tile, k, n) = (Cell::kHasCell ? made.c : made.h)[k][n];
        narrow_operand(made.h[k][n], sent[k][n]);
      }
    }
    if (!kSeveral) store(tile, step, doing, sum, made);  // what was sent is there at once
    if (s + 1 == steps) return;
    if (!kPlain) begin_anew(doing, tile, kept, sent);
    exchange.send(s + 1, tile, my.column, base, kWarpUnits, base < static_cast<int>(p.Hw), sent);
  }

  // what rows go on from that begin anew in the next step
  RNNFAST_INLINE void begin_anew(const Doing& doing, int tile, State& kept, Sent& sent) const {
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (unit_of(k) >= H || !doing.begin_anew.has(n)) continue;
        const int64_t at = made_anew(my.batch_row(tile, n)) * p.H + unit_of(k);
        const A h = p.resets.h[at];
        narrow_operand(h, sent[k][n]);
        A& mine = kSeveral ? own_of(tile, k, n) : (Cell::kHasCell ? kept.c : kept.h)[k][n];
        mine = Cell::kHasCell ? p.resets.c[at] : h;
      }
  }

  RNNFAST_INLINE bool saves_gates() const { return kKnows ? saves & 1 : p.gates != nullptr; }
  RNNFAST_INLINE bool saves_cells() const { return kKnows ? saves & 2 : p.cs != nullptr; }
  RNNFAST_INLINE bool more_than_y(const Pair& last) const {
    return kKnows ? saves | last.bits : p.gates || p.cs || last.bits;
  }

  // y, what backward needs, and after the last step (of the launch or of the row) the state
  RNNFAST_INLINE void store(int tile, int k, const Steps& step, const Doing& doing, Sums& sum,
                            const Made& made) const {
    const Pair wanted{unit_of(k) < H ? doing.take_part.bits : 0};
    put(p.y, p.ldy, tile, k, step, wanted, made.h);
    const Pair last{wanted.bits & doing.end.bits};
    if (more_than_y(last)) {
      save(tile, k, step, wanted, sum, made);
      leave(tile, k, last, made);
    }
  }
  RNNFAST_INLINE void store(int tile, const Steps& step, const Doing& doing, Sums& sum,
                            const Made& made) const {
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) store(tile, k, step, doing, sum, made);
  }
  // the numbers of unit k in the rows of `to` that this thread's two are; the places are made of the
  // parameters while all threads still do the same
  template <class T>
  RNNFAST_INLINE void put(T* to, int64_t ld, int tile, int k, const Steps& step, const Pair& wanted,
                          const A (&values)[kBlocks][2]) const {
    T* const place[2] = {place_of_row(to, ld, tile, k, step, 0), place_of_row(to, ld, tile, k, step, 1)};
#pragma unroll
    for (int n = 0; n < 2; ++n)
      if (wanted.has(n)) narrow(values[k][n], *place[n]);
  }
  template <class T>
  RNNFAST_INLINE T* place_of_row(T* to, int64_t ld, int tile, int k, const Steps& step, int n) const {
    const int at = step.place(p.rows, my.batch_row(tile, n));
    const int bytes = static_cast<int>(ld) * static_cast<int>(sizeof(T));
    return made_here(row_at(to + static_cast<unsigned>(unit_of(k)), at, bytes));
  }
  RNNFAST_INLINE void save(int tile, int k, const Steps& step, const Pair& wanted, Sums& sum,
                           const Made& made) const {
    A* const place[2] = {place_of_row(p.gates, S * p.Hp, tile, k, step, 0),
                         place_of_row(p.gates, S * p.Hp, tile, k, step, 1)};
    if (saves_gates()) {
      const int apart = static_cast<int>(p.Hp * sizeof(A));
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < S; ++j)
          if (wanted.has(n)) *row_at(place[n], j, apart) = gate_of(sum, k, j, n);
      if (Cell::kHasCell) put(p.cells, p.Hp, tile, k, step, wanted, made.c);
    }
    if (Cell::kHasCell && saves_cells()) put(p.cs, p.ldc, tile, k, step, wanted, made.c);
  }
  RNNFAST_INLINE void leave(int tile, int k, const Pair& rows, const Made& made) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!rows.has(n)) continue;
      const int64_t at = my.batch_row(tile, n) * p.Hp + unit_of(k);
      p.h[at] = made.h[k][n];
      if (Cell::kHasCell) p.c[at] = made.c[k][n];
    }
  }
};

template <class Cell, class E, int kTiles, Team kTeam, bool kPlain>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1)
    resident_forward(const RNNFAST_READ_ONLY Directions<ResidentForward<E>> both) {
  const ResidentForward<E>& p = of_this_block<kTeam>(both);
  typedef ForwardThread<Cell, E, kTiles, kTeam, kPlain> Thread;
  Thread thread(p);
  typename Thread::Registers w;
  typename Thread::State state;
  typename Thread::Input next = {};
  thread.load_weights(w);
  thread.load_bias();
  thread.load_state(state);
  typename Thread::Walk walk(p);
  const bool does_cells = thread.my.part == 0;
  if (does_cells) thread.load_input(walk.input, 0, next);
  thread.exchange.begin();
  for (int s = 0;;) {
    int tile = 0;
    do {
      if (s > 0) thread.exchange.receive(s, tile);
      typename Thread::Sums sum;
      thread.product(s, tile, w, next, sum);
      typename Thread::Sent sent = {};
      const auto doing = thread.doing(s, tile, sent);
      thread.add_parts(sum);
      if (does_cells) {
        typename Thread::Made made;
        // one block asks before its cells, where there are registers for what comes; a team does all the rest
        // while what was sent is on its way
        constexpr bool kEarly = kPlain && !Thread::kSeveral;
        if (kEarly) thread.load_next(tile, walk, next);
        thread.cells(s, tile, walk.rows, doing, sum, state, sent, made);
        if (!kEarly) thread.load_next(tile, walk, next);
        if (Thread::kSeveral) thread.store(tile, walk.rows, doing, sum, made);
      }
    } while (++tile < thread.my.batches);
    thread.exchange.finish();
    if (++s == thread.steps) break;
    walk.go(p, s);
  }
  thread.exchange.end();
}

}  // namespace rnnfast::cuda
