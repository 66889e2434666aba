// The recurrent layer one launch per time step, for any width, dtype and GPU: the plainest of its kernels and
// the oracle of the others. The sums of a unit's gates meet in one thread, which finishes the cell.
#pragma once
#include "cuda/episodes.cuh"
#include "cuda/launch_tiles.cuh"

namespace rnnfast::cuda {

// y and the next state of one unit
template <class E, class A>
RNNFAST_INLINE void emit(const ForwardLayer<E>& p, const ForwardStep& s, int64_t b, int64_t unit, A value) {
  narrow(value, p.h[1 - s.parity][b * p.Pp + unit]);
  narrow(value, p.y[(s.row + b * s.stride) * p.ldy + unit]);
  if (b >= s.ends || !within(p.lengths, s.next, b)) p.hn[b * p.P + unit] = value;
}

// Where what gate g has from h is added: a cell with one slot more keeps that of its last gate apart.
template <class Cell>
RNNFAST_BOTH constexpr int hidden_slot(int g) {
  return Cell::kSlots > Cell::kGates && g == Cell::kGates - 1 ? Cell::kSlots - 1 : g;
}

// a number of a row, or of none: 0
template <class E>
RNNFAST_INLINE typename ComputeType<E>::type number(const E* row, int64_t i) {
  return row ? widened(row[i]) : 0;
}

// What backward reads of a row and unit, and c of every step
template <class Cell, class Params, class A>
RNNFAST_INLINE void save(const Params& p, int64_t at, int64_t unit, const A* state, A cell) {
  constexpr int S = Cell::kSlots;
  if (p.gates) {
#pragma unroll
    for (int j = 0; j < S; ++j) p.gates[(at * S + j) * p.Hp + unit] = state[j];
  }
  if (Cell::kHasCell && p.cells) p.cells[at * p.Hp + unit] = cell;
  if (Cell::kHasCell && p.cs) narrow(cell, p.cs[at * p.ldc + unit]);
}

// a = W_hh h + input + b, then the cell
template <class Cell, class Element>
struct ForwardTask {
  typedef Element W, R;
  typedef typename ComputeType<W>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots, kSums = G;

  ForwardLayer<W> p;
  ForwardStep s;
  const A* input;

  RNNFAST_BOTH int64_t units() const { return p.H; }
  RNNFAST_BOTH int64_t rows() const { return s.n; }
  RNNFAST_BOTH int64_t length() const { return p.Pp; }
  RNNFAST_INLINE const W* weights(int64_t unit, int gate) const {
    return p.w_hh + (gate * p.H + unit) * p.Pp;
  }
  RNNFAST_INLINE int64_t place(int64_t b) const { return s.row + b * s.stride; }
  RNNFAST_INLINE const W* row(int64_t b) const {
    return (has(p.resets, place(b)) ? p.anew : p.h[s.parity]) + b * p.Pp;
  }

  RNNFAST_BOTH auto of_many_rows() const {
    return ForwardTask<typename RoughOf<Cell>::Type, Element>{p, s, input};
  }

  struct Given {
    A input[G], c, h;  // of gate g: W_ih x + b_ih; the state before
  };
  RNNFAST_INLINE Given given(int64_t unit, int64_t b) const {
    Given given{};
#pragma unroll
    for (int g = 0; g < G; ++g)
      given.input[g] = input[(b * G + g) * p.H + unit] + number(p.b_ih, g * p.H + unit);
    const bool anew = has(p.resets, place(b));
    if (Cell::kHasCell) given.c = anew ? p.resets.c[b * p.H + unit] : p.c[b * p.Hp + unit];
    if (Cell::kBlends) given.h = anew ? p.resets.h[b * p.P + unit] : p.state[b * p.Pp + unit];
    return given;
  }

  RNNFAST_INLINE void finish(const A* sums, const Given& given, int64_t unit, int64_t b) const {
    if (!within(p.lengths, s.t, b)) return;
    A state[S], cell = given.c;
#pragma unroll
    for (int j = 0; j < S; ++j) state[j] = 0;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      state[g] += given.input[g];
      state[hidden_slot<Cell>(g)] += sums[g] + number(p.b_hh, g * p.H + unit);
    }
    const A value = Cell::forward(state, cell, given.h);
    save<Cell>(p, place(b), unit, state, cell);
    if (Cell::kHasCell) p.c[b * p.Hp + unit] = cell;
    if (Cell::kBlends) p.state[b * p.Pp + unit] = value;
    if (p.m)
      narrow(value, p.m[b * p.Hp + unit]);
    else
      emit(p, s, b, unit, value);
  }
};

// h' = W_hr (o tanh(c'))
template <class Element>
struct ProjectTask : OfSumsAlone {
  typedef Element W, R;
  typedef typename ComputeType<W>::type A;
  static constexpr int kSums = 1;

  ForwardLayer<W> p;
  ForwardStep s;

  RNNFAST_BOTH int64_t units() const { return p.P; }
  RNNFAST_BOTH int64_t rows() const { return s.n; }
  RNNFAST_BOTH int64_t length() const { return p.Hp; }
  RNNFAST_INLINE const W* weights(int64_t unit, int) const { return p.w_hr + unit * p.Hp; }
  RNNFAST_INLINE const W* row(int64_t b) const { return p.m + b * p.Hp; }
  RNNFAST_BOTH ProjectTask of_many_rows() const { return *this; }
  RNNFAST_INLINE void finish(const A* sums, const Given&, int64_t unit, int64_t b) const {
    if (within(p.lengths, s.t, b)) emit(p, s, b, unit, sums[0]);
  }
};

template <class Cell, class Element>
struct Backward {
  typedef Element W, R;
  typedef typename ComputeType<W>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots, kSums = 1;

  BackwardLayer<W> p;
  BackwardStep s;

  RNNFAST_INLINE int64_t place(int64_t b) const { return s.row + b * s.stride; }
  // the same, or another one for a row that this step has not
  RNNFAST_INLINE int64_t saved_row(int64_t b) const { return place(most<int64_t>(least(b, s.n - 1), 0)); }
  RNNFAST_INLINE bool takes_part(int64_t b) const { return b < s.n && within(p.lengths, s.t, b); }
  RNNFAST_INLINE bool in_later(int64_t b) const { return b < s.later_n && within(p.lengths, s.later_t, b); }
  // of a row that takes part
  RNNFAST_INLINE bool begins(int64_t b) const { return b >= s.begins || !within(p.lengths, s.before_t, b); }

  // The state that row b started from, unit of the output
  RNNFAST_INLINE A previous_state(int64_t b, int64_t unit) const {
    if (has(p.resets, saved_row(b))) return p.resets.h[b * p.P + unit];
    if (begins(b)) return p.h0[b * p.P + unit];
    return widened(p.y[(s.previous + b * s.stride) * p.ldy + unit]);
  }

  // What a later step, which row b has, gives to the state before it: past a reset that is another one.
  RNNFAST_INLINE A passed_back(A gradient, int64_t b, A* of_resets, int64_t i) const {
    if (!has(p.resets, s.later + b * s.stride)) return gradient;
    of_resets[i] += gradient;
    return 0;
  }
  // dL/dh of row b when this step begins, beside what passes W_hh: from the later step, or dhn; and dL/dc
  RNNFAST_INLINE A carried(int64_t b, int64_t unit) const {
    return in_later(b) ? p.direct[b * p.Pp + unit] : p.dhn ? p.dhn[b * p.P + unit] : A(0);
  }
  RNNFAST_INLINE A carried_cell(int64_t b, int64_t unit) const {
    return in_later(b) ? p.dc[b * p.Hp + unit] : p.dcn ? p.dcn[b * p.H + unit] : A(0);
  }
  // what of these reaches the row's state; asked for once
  RNNFAST_INLINE A received(A sum, A carried, int64_t b, int64_t unit) const {
    return in_later(b) ? passed_back(sum + carried, b, p.resets.dh, b * p.P + unit) : carried;
  }
  RNNFAST_INLINE A received_cell(A carried, int64_t b, int64_t unit) const {
    return in_later(b) ? passed_back(carried, b, p.resets.dc, b * p.H + unit) : carried;
  }
  RNNFAST_INLINE A output_gradient(int64_t b, int64_t unit) const {
    return p.dy ? A(widened(p.dy[saved_row(b) * p.ldy + unit])) : A(0);
  }

  RNNFAST_INLINE const W* later_row(int64_t b) const {
    return p.da + (s.later + least(b, s.later_n ? s.later_n - 1 : 0) * s.stride) * p.Kp;
  }

  // What the cell of (b, unit) was made of
  struct Saved {
    A state[S], c, c_before, dc, dcs;
  };
  RNNFAST_INLINE Saved saved(int64_t b, int64_t unit) const {
    const int64_t at = saved_row(b);
    Saved saved{};
    const A* const gates = p.gates + at * S * p.Hp + unit;
#pragma unroll
    for (int j = 0; j < S; ++j) saved.state[j] = gates[j * p.Hp];
    if (!Cell::kHasCell) return saved;
    saved.c = p.cells[at * p.Hp + unit];
    const A* const before = has(p.resets, at) ? p.resets.c + b * p.H
                            : begins(b)       ? p.c0 + b * p.H
                                              : p.cells + (s.previous + b * s.stride) * p.Hp;
    saved.c_before = before[unit];
    saved.dc = carried_cell(b, unit);
    if (p.dcs) saved.dcs = widened(p.dcs[at * p.ldc + unit]);
    return saved;
  }

  // dL/dh' of (b, unit) through the cell; h: the state before, without a projection
  RNNFAST_INLINE void through_cell(A dvalue, const Saved& saved, A h, int64_t b, int64_t unit,
                                   bool projected) const {
    const int64_t at = place(b);
    A da[G], dx[G], dcell{};
    if (Cell::kHasCell) dcell = received_cell(saved.dc, b, unit) + saved.dcs;
    if (projected && p.hidden) narrow(Cell::output(saved.state, saved.c), p.hidden[at * p.H + unit]);
    const A direct = Cell::backward(saved.state, h, saved.c_before, saved.c, dvalue, dcell, da, dx);
    if (Cell::kHasCell) p.dc[b * p.Hp + unit] = dcell;
    if (!projected) p.direct[b * p.Pp + unit] = direct;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      narrow(da[g], p.da[at * p.Kp + g * p.H + unit]);
      if (S > G) narrow(dx[g], p.dx[at * p.Kp + g * p.H + unit]);
    }
  }
};

// dL/dh = (da of the later step) W_hh + ..., then the cell; or, with a projection, only what it multiplies
template <class Cell, class Element>
struct CarryTask : Backward<Cell, Element> {
  typedef Backward<Cell, Element> Base;
  typedef Element W;
  typedef typename Base::A A;
  using Base::p;
  using Base::s;

  RNNFAST_BOTH int64_t units() const { return p.P; }
  RNNFAST_BOTH int64_t rows() const { return s.n < s.later_n ? s.later_n : s.n; }
  RNNFAST_BOTH int64_t length() const { return s.later_n ? p.Kp : 0; }
  RNNFAST_INLINE const W* weights(int64_t unit, int) const { return p.w_hh_t + unit * p.Kp; }
  RNNFAST_INLINE const W* row(int64_t b) const { return this->later_row(b); }

  RNNFAST_BOTH auto of_many_rows() const { return CarryTask<typename RoughOf<Cell>::Type, Element>{{p, s}}; }

  struct Given {
    A dh, dy, h;
    typename Base::Saved saved;  // without a projection
  };
  RNNFAST_INLINE Given given(int64_t unit, int64_t b) const {
    Given given{};
    given.dh = this->carried(b, unit);
    if (!p.w_hr_t) given.saved = this->saved(b, unit);
    given.dy = this->output_gradient(b, unit);
    given.h = this->previous_state(b, unit);
    return given;
  }

  RNNFAST_INLINE void finish(const A* sums, const Given& given, int64_t unit, int64_t b) const {
    const bool projected = p.w_hr_t, takes_part = this->takes_part(b);
    if (!takes_part && !this->in_later(b)) return;
    const A dh = this->received(sums[0], given.dh, b, unit);
    if (!takes_part) {
      p.dh0[b * p.P + unit] = dh;
      if (Cell::kHasCell && !projected) p.dc0[b * p.H + unit] = this->received_cell(given.saved.dc, b, unit);
      return;
    }
    const A dvalue = dh + given.dy;
    if (p.h_previous) narrow(given.h, p.h_previous[this->place(b) * p.P + unit]);
    if (projected)
      narrow(dvalue, p.dprojected[this->place(b) * p.Pp + unit]);
    else
      this->through_cell(dvalue, given.saved, given.h, b, unit, false);
  }
};

// dL/d(o tanh(c)) = dh W_hr, then the cell
template <class Cell, class Element>
struct UnprojectTask : Backward<Cell, Element> {
  typedef Backward<Cell, Element> Base;
  typedef Element W;
  typedef typename Base::A A;
  using Base::p;
  using Base::s;

  RNNFAST_BOTH int64_t units() const { return p.H; }
  RNNFAST_BOTH int64_t rows() const { return s.n < s.later_n ? s.later_n : s.n; }
  RNNFAST_BOTH int64_t length() const { return s.n ? p.Pp : 0; }
  RNNFAST_INLINE const W* weights(int64_t unit, int) const { return p.w_hr_t + unit * p.Pp; }
  RNNFAST_INLINE const W* row(int64_t b) const {
    return p.dprojected + this->place(least(b, s.n ? s.n - 1 : 0)) * p.Pp;
  }

  RNNFAST_BOTH auto of_many_rows() const {
    return UnprojectTask<typename RoughOf<Cell>::Type, Element>{{p, s}};
  }

  typedef typename Base::Saved Given;
  RNNFAST_INLINE Given given(int64_t unit, int64_t b) const { return this->saved(b, unit); }
  RNNFAST_INLINE void finish(const A* sums, const Given& saved, int64_t unit, int64_t b) const {
    if (this->takes_part(b))
      this->through_cell(sums[0], saved, A(0), b, unit, true);
    else if (this->in_later(b))
      p.dc0[b * p.H + unit] = this->received_cell(saved.dc, b, unit);
  }
};

template <class E>
const char* forward_step(Mode mode, const ForwardLayer<E>& layer, const ForwardStep& step,
                         const typename ComputeType<E>::type* input, void* stream) {
  const char* const error = with_cell(mode, [&](auto cell) {
    return launch_tiles(ForwardTask<decltype(cell), E>{layer, step, input}, step.follows, stream);
  });
  return error || !layer.w_hr ? error : launch_tiles(ProjectTask<E>{{}, layer, step}, true, stream);
}

template <class E>
const char* backward_step(Mode mode, const BackwardLayer<E>& layer, const BackwardStep& step, void* stream) {
  const char* const error = with_cell(mode, [&](auto cell) {
    return launch_tiles(CarryTask<decltype(cell), E>{layer, step}, step.follows, stream);
  });
  return error || !layer.w_hr_t ? error : launch_tiles(UnprojectTask<Lstm, E>{layer, step}, true, stream);
}

}  // namespace rnnfast::cuda
