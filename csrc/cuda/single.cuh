// The only step of a call, its input product included, in one launch: sums of two parts, W_ih x and W_hh h,
// by the tiles of the stepwise kernel. It reads the caller's tensors as they are: nothing is padded or
// converted.
#pragma once
#include "cuda/steps.cuh"

namespace rnnfast::cuda {

// Row b of the state that the step begins from, or null for zeros
template <class Layer>
RNNFAST_INLINE bool begins_anew(const Layer& p, int64_t b) {
  return p.anew && p.anew[b];
}
template <class Layer>
RNNFAST_INLINE const typename Layer::Element* hidden_before(const Layer& p, int64_t b) {
  if (!begins_anew(p, b)) return p.h0 + b * p.H;
  return p.reset_h ? p.reset_h + b * p.ld_reset_h : nullptr;
}
template <class Layer>
RNNFAST_INLINE const typename Layer::Element* cell_before(const Layer& p, int64_t b) {
  if (!begins_anew(p, b)) return p.c0 + b * p.H;
  return p.reset_c ? p.reset_c + b * p.ld_reset_c : nullptr;
}
// whether rows of n numbers that begin at these all begin at multiples of 16 bytes
template <class E>
bool all_even(int64_t n, std::initializer_list<const E*> first) {
  bool all = n * sizeof(E) % 16 == 0;
  for (const E* of : first) all &= reinterpret_cast<uintptr_t>(of) % 16 == 0;
  return all;
}

template <class Cell, class Element>
struct SingleTask : OfSumsAlone {
  typedef Element W, R;
  typedef typename ComputeType<W>::type A;
  static constexpr int G = Cell::kGates, S = Cell::kSlots, kSums = S;
  enum Part { kOfInput, kOfHidden };

  SingleStep<W> p;
  bool whole[2];  // of each part

  // a sum for each slot: of a cell with one more than gates, each of the last two has but one part
  RNNFAST_INLINE static constexpr int gate(int slot, int part) {
    return part == kOfInput ? input_gate<Cell>(slot) : hidden_gate<Cell>(slot);
  }
  RNNFAST_INLINE static constexpr bool counts(int slot, int part) { return gate(slot, part) >= 0; }

  RNNFAST_BOTH int64_t units() const { return p.H; }
  RNNFAST_BOTH int64_t rows() const { return p.B; }
  RNNFAST_BOTH int64_t length(int part) const { return part == kOfInput ? p.I : p.H; }
  RNNFAST_BOTH bool even(int part) const { return whole[part]; }
  RNNFAST_INLINE const W* weights(int64_t unit, int slot, int part) const {
    return (part == kOfInput ? p.w_ih : p.w_hh) + (most(gate(slot, part), 0) * p.H + unit) * length(part);
  }
  RNNFAST_INLINE const W* row(int64_t b, int part) const {
    return part == kOfInput ? p.x + b * p.I : hidden_before(p, b);
  }

  RNNFAST_INLINE void finish(const A* sums, const Given&, int64_t unit, int64_t b) const {
    A slots[S], cell{}, blended{};
#pragma unroll
    for (int j = 0; j < S; ++j) slots[j] = sums[j];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      slots[g] += number(p.b_ih, g * p.H + unit);
      slots[hidden_slot<Cell>(g)] += number(p.b_hh, g * p.H + unit);
    }
    if (Cell::kHasCell) cell = number(cell_before(p, b), unit);
    if (Cell::kBlends) blended = number(hidden_before(p, b), unit);
    const A value = Cell::forward(slots, cell, blended);
    save<Cell>(p, b, unit, slots, cell);
    narrow(value, p.y[b * p.ldy + unit]);
    narrow(value, p.hn[b * p.H + unit]);
    if (Cell::kHasCell) narrow(cell, p.cn[b * p.H + unit]);
  }
};
template <class Cell, class E>
constexpr int kParts<SingleTask<Cell, E>> = 2;

template <class E>
const char* single_step(Mode mode, const SingleStep<E>& p, void* stream) {
  static_assert(kSingleRows == kRows && kSingleMatrixRows == kMatrixTiles * 8);
  const bool of_input = all_even<E>(p.I, {p.x, p.w_ih});
  const bool of_hidden = all_even<E>(p.H, {p.h0, p.w_hh, p.reset_h});
  return with_cell(mode, [&](auto cell) {
    return launch_tiles(SingleTask<decltype(cell), E>{{}, p, {of_input, of_hidden}}, false, stream);
  });
}

}  // namespace rnnfast::cuda
