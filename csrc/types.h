// What the ops and the kernels of every device agree on: the cells by name, and what a tensor stores.
#pragma once
#include <cstdint>

// The cells: the mode of each in the ops, and its class in csrc/cells. Whatever goes over all cells is made
// of this list: names, switches, counts (cells/facts.h), what Python knows.
#define RNNFAST_CELLS(X) \
  X(lstm, Lstm)          \
  X(gru, Gru)            \
  X(rnn_tanh, RnnTanh)   \
  X(rnn_relu, RnnRelu)

namespace rnnfast {

enum class Mode {
#define RNNFAST_MODE(name, Cell) k##Cell,
  RNNFAST_CELLS(RNNFAST_MODE)
#undef RNNFAST_MODE
};

// What a tensor stores (E), and what is computed with (A): halves stay in memory and in products.
struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
template <class E>
struct ComputeType {
  typedef E type;
};
template <>
struct ComputeType<Bfloat16> {
  typedef float type;
};
template <>
struct ComputeType<Half> {
  typedef float type;
};

// Rows of hidden units, and of what is made of them, are padded to a multiple of so many numbers.
constexpr int64_t kPad = 16;

// Before which steps a row forgets its state, and what it begins anew from
template <class A>
struct Resets {
  const bool* at = nullptr;        // [N]: of each row of x; or null: nowhere
  const A* h = nullptr;            // [B, P]; on the CPU null: zeros
  const A* c = nullptr;            // [B, H], as h; null in a cell without c
  A *dh = nullptr, *dc = nullptr;  // backward: the same, what they get is added; or null
};

}  // namespace rnnfast
