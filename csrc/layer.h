// What the recurrent layer's ops share on every device: the weights by direction, the order of the rows, and
// the checks of arguments that belong together.
#pragma once
#include <array>
#include <utility>
#include <vector>

#include "check.h"
#include "walk.h"

namespace rnnfast {

struct Weights {
  Tensor w_ih, w_hh, b_ih, b_hh, w_hr;
};

// of both directions: matrices as w(matrix) makes them, biases as b(bias) does; what is absent is undefined
template <class W, class B>
std::array<Weights, 2> all_weights(const W& w, const B& b, const Tensor& w_ih, const Tensor& w_hh,
                                   const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                                   const OptTensor& w_ih_r, const OptTensor& w_hh_r, const OptTensor& b_ih_r,
                                   const OptTensor& b_hh_r, const OptTensor& w_hr_r) {
  return {Weights{w(w_ih), w(w_hh), b(b_ih), b(b_hh), w(w_hr)},
          Weights{w(w_ih_r), w(w_hh_r), b(b_ih_r), b(b_hh_r), w(w_hr_r)}};
}

inline WalkStorage walk_of(const LayerSizes& s, const OptTensor& batch_sizes) {
  return s.packed ? WalkStorage::packed(*batch_sizes) : WalkStorage::dense(s.T, s.B, s.batch_first);
}

inline std::vector<int64_t> output_shape(const LayerSizes& s) {
  if (s.packed) return {s.N, s.D * s.P};
  return s.batch_first ? std::vector<int64_t>{s.B, s.T, s.D * s.P}
                       : std::vector<int64_t>{s.T, s.B, s.D * s.P};
}

// what is only room in the schema
inline void refuse_reserved(const char* op, const OptTensor& lengths, const OptTensor& resets,
                            const OptTensor& h_mask, const OptTensor& zoneout_mask) {
  const std::pair<const char*, const OptTensor*> reserved[] = {
      {"lengths", &lengths}, {"resets", &resets}, {"h_mask", &h_mask}, {"zoneout_mask", &zoneout_mask}};
  for (const auto& [name, value] : reserved)
    TORCH_CHECK(!*value, op, ": ", name, " has shape ", (*value)->sizes(),
                ", expected None: not supported yet");
}

inline void check_layer_backward(const char* op, const LayerSizes& s, const OptTensor& dy,
                                 const OptTensor& dhn, const OptTensor& dcn, const Tensor& x, const Tensor& y,
                                 const Tensor& gates, at::IntArrayRef gates_shape, const Tensor& cells,
                                 at::IntArrayRef cells_shape) {
  check_shape(op, "y", y, x, output_shape(s));
  check_gradient(op, "dy", dy, x, output_shape(s));
  check_gradient(op, "dhn", dhn, x, {s.D, s.B, s.P});
  TORCH_CHECK(!dcn || s.has_cell, op, ": dcn has shape ", dcn->sizes(),
              ", expected None for a cell without c");
  check_gradient(op, "dcn", dcn, x, {s.D, s.B, s.H});
  check_saved(op, "gates", gates, x, gates_shape);
  if (s.has_cell) check_saved(op, "cells", cells, x, cells_shape);
}

// Which gradients to make: those that are needed, of tensors that were given
inline std::array<bool, kGradients> wanted_gradients(const std::array<bool, kGradients>& needs,
                                                     const LayerSizes& s, const OptTensor& b_ih,
                                                     const OptTensor& b_hh) {
  std::array<bool, kGradients> wanted = needs;
  wanted[2] &= s.has_cell;
  for (int d = 0; d < 2; ++d) {
    const bool given[] = {true, true, b_ih.has_value(), b_hh.has_value(), s.projected};
    for (int i = 0; i < 5; ++i) wanted[3 + 5 * d + i] &= d < s.D && given[i];
  }
  return wanted;
}

}  // namespace rnnfast
