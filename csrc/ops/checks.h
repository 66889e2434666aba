// Argument checks of the ops, on the path that Python really takes: each names the argument, what came and
// what was expected, and gives the sizes that the rest works with.
#pragma once
#include "cells/facts.h"
#include "cpu/params.h"
#include "ops/arguments.h"

namespace rnnfast {

// Throws for a name that no cell has.
Mode parse_mode(const char* op, std::string_view name);

inline at::ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct LayerSizes {
  Mode mode;
  bool has_cell;
  int gates, slots;
  int64_t T = 0, B = 0, N = 0, I = 0, H = 0, P = 0, D = 0;
  bool packed = false, batch_first = false, projected = false;

  // of this cell: its facts
  explicit LayerSizes(Mode cell)
      : mode(cell),
        has_cell(facts_of(cell).has_cell),
        gates(facts_of(cell).gates),
        slots(facts_of(cell).slots) {}
};

LayerSizes check_layer(const char* op, const LayerArguments& a);
std::vector<int64_t> output_shape(const LayerSizes& s);  // of y
std::vector<int64_t> cells_shape(const LayerSizes& s);   // of c of every step
// what is only room in the schema
void refuse_reserved(const char* op, const RecurrentArguments& a);
// the lengths and resets of its rows
void check_episodes(const char* op, const LayerSizes& s, const Tensor& x, const EpisodeArguments& a);
// of the backward op: what came with the layer's own arguments; gates and cells are of the forward op's
// making
void check_layer_backward(const char* op, const LayerSizes& s, const RecurrentBackwardArguments& a,
                          at::IntArrayRef gates, at::IntArrayRef cells);

struct DeepSizes {
  int64_t T, B, I, H;
  int depth;
  int64_t width[kMaxDepth];
  int64_t saved;  // numbers in acts, when saved
};

DeepSizes check_deep(const char* op, const DeepArguments& a);
void check_deep_backward(const char* op, const DeepSizes& s, const DeepBackwardArguments& a);

}  // namespace rnnfast
