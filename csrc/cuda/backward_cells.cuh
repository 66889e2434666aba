// What the resident kernels backward have in common: the cells of a thread in a step, what they read of what
// was saved, and what they leave for the weight gradients.
#pragma once
#include "cuda/walk.cuh"

namespace rnnfast::cuda {

// Thread is the kernel's own and has this as its base. It knows its p, H, Hp, batch, steps and how many tiles
// of 8 rows there are; the unit (unit_of) and the row of the batch (batch_row) of each of its kCells cells of
// a tile, whether there is such a cell (mine) and, in a plain walk, which there are (of_tile); and it keeps
// dL/dc (dc_of) and the part of dL/dh that does not pass W_hh (direct_of).
template <class Thread, class Cell, class E, int kCells, bool kPlain>
struct BackwardCells {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots;
  // What was saved of a step, and dy. Numbers of a tensor stay as they are until they are needed: to make
  // floats of them would be to wait for them. So does h before the step in plain walks, where y has it but
  // for step 0; in others it is one of three, and chosen here.
  typedef std::conditional_t<kPlain, E, A> Before;
  struct Saved {
    A state[S][kCells], c[kCells], c_before[kCells];
    Before before[kCells];
    E dy[kCells];
  };
  // dL/d(pre-activations), which a step may not have
  struct Made {
    A da[G][kCells], dx[G][kCells];
    E sent[G][kCells];  // da as products read it, or 0
  };

  RNNFAST_INLINE const Thread& self() const { return static_cast<const Thread&>(*this); }

  // the gradients of the last state
  RNNFAST_INLINE void load_gradients(int tile) const {
    const Thread& thread = self();
    for (int n = 0; n < kCells; ++n) {
      const int64_t at = thread.batch_row(tile, n) * thread.p.H + thread.unit_of(n);
      thread.dc_of(tile, n) = thread.mine(tile, n) && thread.p.dcn ? thread.p.dcn[at] : A(0);
      thread.direct_of(tile, n) = thread.mine(tile, n) && thread.p.dhn ? thread.p.dhn[at] : A(0);
    }
  }

  // where the rows of step s stand, so many steps before the one whose rows stand at `now`
  RNNFAST_INLINE Steps before(const Steps& now, int s, int steps_before) const {
    const auto& rows = self().p.rows;
    if (kPlain) return {now.at - steps_before * static_cast<int>(rows.step)};
    return Steps::of(rows, s < 0 ? 0 : s);
  }
  // What was saved of step s, whose rows and those of the step before are these. Who has no row or no unit
  // reads that of another, for numbers that go nowhere; and so it is before the first step.
  RNNFAST_INLINE void load_saved(int s, int tile, const Steps& step, const Steps& before,
                                 Saved& saved) const {
    const Thread& thread = self();
    const auto& p = thread.p;
    const unsigned last = static_cast<unsigned>(p.N) - 1;
    const int size = static_cast<int>(sizeof(A)), ldy = static_cast<int>(p.ldy) * static_cast<int>(sizeof(E));
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      const unsigned of = least(thread.unit_of(n), thread.H - 1);
      const int b = thread.batch_row(tile, n);
      const unsigned at = least(static_cast<unsigned>(step.place(p.rows, b)), last);
      const unsigned at_before = least(static_cast<unsigned>(before.place(p.rows, b)), last);
      const A* const gates = row_at(p.gates + of, at, S * thread.Hp * size);
#pragma unroll
      for (int j = 0; j < S; ++j) saved.state[j][n] = *row_at(gates, j, thread.Hp * size);
      if (Cell::kHasCell) saved.c[n] = *row_at(p.cells + of, at, thread.Hp * size);
      saved.dy[n] = p.dy ? *row_at(p.dy + of, at, ldy) : E{};
      const bool begin = begins_now(s, b), reset = is_reset(s, b, n);
      const int64_t first = int64_t{least(b, thread.batch - 1)} * thread.H + of;
      if (Cell::kHasCell) {
        const A* const from = begin ? p.c0 + first : row_at(p.cells + of, at_before, thread.Hp * size);
        saved.c_before[n] = *from;
        if (reset) saved.c_before[n] = p.resets.c[first];
      }
      if (Cell::kBlends) {
        const E* const h_before = row_at(p.y + of, at_before, ldy);
        if constexpr (kPlain)
          saved.before[n] = *h_before;
        else
          saved.before[n] = reset ? p.resets.h[first] : begin ? p.h0[first] : A(widened(*h_before));
      }
    }
  }
  RNNFAST_INLINE bool begins_now(int s, int row) const {
    if (kPlain) return s <= 0;
    const Thread& thread = self();
    const int b = made_anew(row);
    return s <= 0 || (b < thread.batch && takes_part(thread.p.rows, s, b) && begins(thread.p.rows, s, b));
  }
  // whether this thread has a cell of that row, which begins anew in step s
  RNNFAST_INLINE bool is_reset(int s, int row, int n) const {
    if (kPlain) return false;
    const Thread& thread = self();
    const auto& p = thread.p;
    const int b = made_anew(row);
    if (!p.resets.at || s < 0 || b >= thread.batch || thread.unit_of(n) >= thread.H) return false;
    return takes_part(p.rows, s, b) && has(p.resets, place_of(p.rows, s, b));
  }
  // h before step s, for a cell that blends it
  RNNFAST_INLINE A state_before(int s, int tile, int n, const Saved& saved) const {
    if constexpr (!Cell::kBlends) return 0;
    if constexpr (!kPlain) return saved.before[n];
    if (s > 0) return widened(saved.before[n]);
    const Thread& thread = self();
    const int b = least(made_anew(thread.batch_row(tile, n)), thread.batch - 1);
    return thread.p.h0[int64_t{b} * thread.H + least(thread.unit_of(n), thread.H - 1)];
  }
  // of the tile after this one, of this step or the one before
  RNNFAST_INLINE void load_next(int s, int tile, const Steps& now, Saved& saved) const {
    const bool more = tile + 1 < self().tiles();
    const int back = more ? 0 : 1;
    load_saved(s - back, more ? tile + 1 : 0, before(now, s - back, back),
               before(now, s - back - 1, back + 1), saved);
  }

  // What step s gives to the state before it: past a reset that is another one.
  RNNFAST_INLINE void pass_back(int s, int tile, int n, A& dh) const {
    const Thread& thread = self();
    const auto& p = thread.p;
    if (!p.resets.at || !thread.mine(tile, n)) return;
    const int64_t b = made_anew(thread.batch_row(tile, n));
    if (!takes_part(p.rows, s, b) || !has(p.resets, place_of(p.rows, s, b))) return;
    const int64_t at = b * p.H + made_anew(thread.unit_of(n));
    p.resets.dh[at] += dh;
    dh = 0;
    if (!Cell::kHasCell) return;
    p.resets.dc[at] += thread.dc_of(tile, n);
    thread.dc_of(tile, n) = 0;
  }

  // the gradients of the state that a row began with
  RNNFAST_INLINE void leave(int tile, int n, A dh) const {
    const Thread& thread = self();
    const int64_t at = thread.batch_row(tile, n) * thread.p.H + thread.unit_of(n);
    thread.p.dh0[at] = dh;
    if (Cell::kHasCell) thread.p.dc0[at] = thread.dc_of(tile, n);
  }

  // and of all cells of a tile, where its rows began in the first step
  RNNFAST_INLINE void leave_first(int tile, const A* dh) const {
    const Thread& thread = self();
#pragma unroll
    for (int n = 0; n < kCells; ++n)
      if (thread.mine(tile, n) && takes_part(thread.p.rows, 0, thread.batch_row(tile, n)))
        leave(tile, n, dh[n]);
  }

  RNNFAST_INLINE Pair take_part(int s, int tile, const A* dh) const {
    const Thread& thread = self();
    if (kPlain) return thread.of_tile(tile);
    // a row whose first step was the one after s leaves
    Pair pair;
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      const int b = made_anew(thread.batch_row(tile, n));
      if (thread.unit_of(n) >= thread.H || b >= thread.batch) continue;
      const bool is = takes_part(thread.p.rows, s, b);
      pair.add(n, is);
      if (!is && s + 1 < thread.steps && takes_part(thread.p.rows, s + 1, b)) leave(tile, n, dh[n]);
    }
    return pair;
  }

  RNNFAST_INLINE void make(int s, int tile, const Steps& step, const Pair& wanted, const Saved& saved,
                           const A* dh, Made& made) const {
    const Thread& thread = self();
    const auto& p = thread.p;
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      A state[S], da[G], dx[G], dc = thread.dc_of(tile, n);
#pragma unroll
      for (int j = 0; j < S; ++j) state[j] = saved.state[j][n];
      const bool is = wanted.has(n);
      if (Cell::kHasCell && p.dcs) {
        if (is)
          dc += widened(p.dcs[step.place(p.rows, thread.batch_row(tile, n)) * p.ldc + thread.unit_of(n)]);
      }
      const A direct = Cell::backward(state, state_before(s, tile, n, saved), saved.c_before[n], saved.c[n],
                                      dh[n] + widened(saved.dy[n]), dc, da, dx);
      if (is) thread.direct_of(tile, n) = direct, thread.dc_of(tile, n) = dc;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        narrow_operand(is ? da[g] : A(0), made.sent[g][n]);
        made.da[g][n] = da[g];
        if (S > G) made.dx[g][n] = dx[g];
      }
    }
  }

  // what the weight gradients are made of
  RNNFAST_INLINE void store(int tile, const Steps& step, const Pair& wanted, const Made& made) const {
    const Thread& thread = self();
    const auto& p = thread.p;
    const int bytes = static_cast<int>(p.Kp) * static_cast<int>(sizeof(E));
    const auto place_of_row = [&](E* to, int n) {
      const int at = step.place(p.rows, thread.batch_row(tile, n));
      return made_here(row_at(to + static_cast<unsigned>(thread.unit_of(n)), at, bytes));
    };
    const auto put = [&](const auto(&values)[G][kCells], E* row, int n) {
#pragma unroll
      for (int g = 0; g < G; ++g)
        if (wanted.has(n)) narrow(values[g][n], *row_at(row, g, thread.H * static_cast<int>(sizeof(E))));
    };
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      // halves are what products read
      if constexpr (sizeof(E) == 2)
        put(made.sent, place_of_row(p.da, n), n);
      else
        put(made.da, place_of_row(p.da, n), n);
      if (S > G) put(made.dx, place_of_row(p.dx, n), n);
    }
  }
};

}  // namespace rnnfast::cuda
