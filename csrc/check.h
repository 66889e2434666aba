// Argument checks of the ops, on the path that Python really takes: each names the argument, what came and
// what was expected, and gives the sizes that the rest works with.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include "cpu/params.h"
#include "ops.h"

namespace rnnfast {

struct LayerSizes {
  Mode mode;
  bool has_cell;
  int gates, slots;
  int64_t T, B, N, I, H, P, D;
  bool packed, batch_first, projected;
};

inline Mode parse_mode(const char* op, std::string_view mode) {
  if (mode == "lstm") return Mode::kLstm;
  if (mode == "gru") return Mode::kGru;
  if (mode == "rnn_tanh") return Mode::kRnnTanh;
  if (mode == "rnn_relu") return Mode::kRnnRelu;
  TORCH_CHECK(false, op, ": mode is '", mode, "', expected one of lstm, gru, rnn_tanh, rnn_relu");
}

inline int gates_of(Mode mode) { return mode == Mode::kLstm ? 4 : mode == Mode::kGru ? 3 : 1; }

// dtype and device of x are what all others must have
inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  TORCH_CHECK(t.defined(), op, ": ", name, " is an undefined tensor");
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " is on ", t.device(), ", expected ", x.device(),
              ", the device of x");
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " has dtype ", t.scalar_type(),
              ", expected ", x.scalar_type(), ", the dtype of x");
  TORCH_CHECK(t.layout() == at::kStrided, op, ": ", name, " has layout ", t.layout(),
              ", expected a dense tensor");
}

inline void check_shape(const char* op, const char* name, const Tensor& t, const Tensor& x,
                        at::IntArrayRef expected) {
  check_like(op, name, t, x);
  TORCH_CHECK(t.sizes() == expected, op, ": ", name, " has shape ", t.sizes(), ", expected ", expected);
}

inline void check_optional(const char* op, const char* name, const OptTensor& t, const Tensor& x,
                           bool expected, at::IntArrayRef shape, const char* when) {
  TORCH_CHECK(!t || expected, op, ": ", name, " has shape ", t->sizes(), ", expected None ", when);
  TORCH_CHECK(t || !expected, op, ": ", name, " is None, expected shape ", shape, " ", when);
  if (t) check_shape(op, name, *t, x, shape);
}

inline void check_input(const char* op, const Tensor& x, int64_t dims) {
  TORCH_CHECK(x.defined(), op, ": x is an undefined tensor");
  TORCH_CHECK(x.layout() == at::kStrided, op, ": x has layout ", x.layout(), ", expected a dense tensor");
  TORCH_CHECK(x.dim() == dims, op, ": x has ", x.dim(), " dimensions, expected ", dims);
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble ||
                  x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf,
              op, ": x has dtype ", x.scalar_type(), ", expected float32, float64, bfloat16 or float16");
}

// batch_sizes: int64 on the CPU, [T], positive, non-increasing, with the sum N
inline void check_batch_sizes(const char* op, const Tensor& sizes, int64_t N) {
  TORCH_CHECK(sizes.device().is_cpu() && sizes.scalar_type() == at::kLong && sizes.dim() == 1, op,
              ": batch_sizes is a ", sizes.scalar_type(), " tensor of ", sizes.dim(), " dimensions on ",
              sizes.device(), ", expected int64 of 1 dimension on cpu");
  const Tensor dense = sizes.contiguous();
  const int64_t* n = dense.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < dense.numel(); ++t) {
    TORCH_CHECK(n[t] > 0, op, ": batch_sizes[", t, "] is ", n[t], ", expected a positive number");
    TORCH_CHECK(t == 0 || n[t] <= n[t - 1], op, ": batch_sizes[", t, "] is ", n[t], ", expected at most ",
                n[t - 1], ", the one before it");
    sum += n[t];
  }
  TORCH_CHECK(sum == N, op, ": batch_sizes sum to ", sum, ", expected ", N, ", the rows of x");
}

inline LayerSizes check_layer(const char* op, std::string_view mode_name, const Tensor& x, const Tensor& h0,
                              const OptTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                              const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                              const OptTensor& w_ih_r, const OptTensor& w_hh_r, const OptTensor& b_ih_r,
                              const OptTensor& b_hh_r, const OptTensor& w_hr_r, const OptTensor& batch_sizes,
                              bool batch_first) {
  LayerSizes s{};
  s.mode = parse_mode(op, mode_name);
  s.has_cell = s.mode == Mode::kLstm;
  s.gates = gates_of(s.mode);
  s.slots = s.mode == Mode::kLstm || s.mode == Mode::kGru ? 4 : 1;
  s.packed = batch_sizes.has_value();
  s.batch_first = batch_first && !s.packed;
  s.D = w_ih_r ? 2 : 1;

  check_input(op, x, s.packed ? 2 : 3);
  s.I = x.size(-1);
  if (s.packed) {
    check_batch_sizes(op, *batch_sizes, x.size(0));
    s.N = x.size(0);
    s.T = batch_sizes->size(0);
    s.B = s.T ? batch_sizes->select(0, 0).item<int64_t>() : 0;
  } else {
    s.T = x.size(s.batch_first ? 1 : 0);
    s.B = x.size(s.batch_first ? 0 : 1);
    s.N = s.T * s.B;
  }
  TORCH_CHECK(s.T > 0, op, ": Expected sequence length to be larger than 0 in RNN, got x of shape ",
              x.sizes());

  check_like(op, "w_hh", w_hh, x);
  TORCH_CHECK(w_hh.dim() == 2 && w_hh.size(0) > 0 && w_hh.size(0) % s.gates == 0, op, ": w_hh has shape ",
              w_hh.sizes(), ", expected 2 dimensions, the first a positive multiple of ", s.gates,
              ", the gates");
  s.H = w_hh.size(0) / s.gates;
  if (w_hr) {
    TORCH_CHECK(s.has_cell, op, ": w_hr has shape ", w_hr->sizes(), ", expected None for ", mode_name);
    check_like(op, "w_hr", *w_hr, x);
    TORCH_CHECK(w_hr->dim() == 2 && w_hr->size(0) > 0, op, ": w_hr has shape ", w_hr->sizes(),
                ", expected 2 dimensions, [projection, ", s.H, "]");
  }
  s.projected = w_hr.has_value();
  s.P = s.projected ? w_hr->size(0) : s.H;

  const int64_t GH = s.gates * s.H;
  const auto direction = [&](const char* const names[5], const OptTensor& ih, const OptTensor& hh,
                             const OptTensor& bi, const OptTensor& bh, const OptTensor& hr) {
    check_optional(op, names[0], ih, x, true, {GH, s.I}, "(gates x hidden, input)");
    check_optional(op, names[1], hh, x, true, {GH, s.P}, "(gates x hidden, output)");
    check_optional(op, names[2], bi, x, b_ih.has_value(), {GH}, "like b_ih");
    check_optional(op, names[3], bh, x, b_hh.has_value(), {GH}, "like b_hh");
    check_optional(op, names[4], hr, x, w_hr.has_value(), {s.P, s.H}, "like w_hr");
  };
  static constexpr const char* kForward[] = {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};
  static constexpr const char* kReverse[] = {"w_ih_r", "w_hh_r", "b_ih_r", "b_hh_r", "w_hr_r"};
  direction(kForward, w_ih, w_hh, b_ih, b_hh, w_hr);
  if (s.D == 2) {
    direction(kReverse, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r);
  } else {
    const OptTensor* rest[] = {&w_hh_r, &b_ih_r, &b_hh_r, &w_hr_r};
    for (int i = 0; i < 4; ++i)
      TORCH_CHECK(!*rest[i], op, ": ", kReverse[i + 1], " has shape ", (*rest[i])->sizes(),
                  ", expected None where w_ih_r is None");
  }
  check_shape(op, "h0", h0, x, {s.D, s.B, s.P});
  check_optional(op, "c0", c0, x, s.has_cell, {s.D, s.B, s.H},
                 s.has_cell ? "for lstm" : "for a cell without c");
  return s;
}

// Gradients are dense tensors of their output's shape; None counts as zero.
inline void check_gradient(const char* op, const char* name, const OptTensor& t, const Tensor& x,
                           at::IntArrayRef shape) {
  if (t) check_shape(op, name, *t, x, shape);
}

inline at::ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// What forward saved for backward
inline void check_saved(const char* op, const char* name, const Tensor& t, const Tensor& x,
                        at::IntArrayRef shape) {
  TORCH_CHECK(t.defined() && t.device() == x.device() && t.scalar_type() == accumulation_type(x) &&
                  t.sizes() == shape,
              op, ": ", name, " has dtype ", t.scalar_type(), " and shape ", t.sizes(), ", expected ",
              accumulation_type(x), " and ", shape, " as the forward op saves it");
}

struct DeepSizes {
  int64_t T, B, I, H;
  int depth;
  int64_t width[kMaxDepth];
  int64_t saved;  // numbers in acts, when saved
};

inline DeepSizes check_deep(const char* op, const Tensor& x, const Tensor& h0, at::TensorList weights,
                            at::TensorList biases, double negative_slope) {
  DeepSizes s{};
  check_input(op, x, 3);
  TORCH_CHECK(!weights.empty() && weights.size() <= kMaxDepth, op, ": weights has ", weights.size(),
              " tensors, expected 1 to ", kMaxDepth);
  TORCH_CHECK(biases.empty() || biases.size() == weights.size(), op, ": biases has ", biases.size(),
              " tensors, expected 0 or ", weights.size(), ", one for each of weights");
  TORCH_CHECK(negative_slope >= 0, op, ": negative_slope is ", negative_slope, ", expected at least 0");
  s.B = x.size(0), s.T = x.size(1), s.I = x.size(2);
  s.depth = static_cast<int>(weights.size());
  TORCH_CHECK(s.T > 0, op, ": Expected sequence length to be larger than 0 in RNN, got x of shape ",
              x.sizes());
  check_like(op, "h0", h0, x);
  TORCH_CHECK(h0.dim() == 2 && h0.size(0) == s.B && h0.size(1) > 0, op, ": h0 has shape ", h0.sizes(),
              ", expected [", s.B, ", hidden]");
  s.H = h0.size(1);
  int64_t reads = s.I + s.H;
  for (int l = 0; l < s.depth; ++l) {
    const Tensor& w = weights[l];
    const std::string name = c10::str("weights[", l, "]");
    check_like(op, name.c_str(), w, x);
    const bool last = l + 1 == s.depth;
    TORCH_CHECK(w.dim() == 2 && w.size(1) == reads && w.size(0) > 0 && (!last || w.size(0) == s.H), op, ": ",
                name, " has shape ", w.sizes(), ", expected [",
                last ? std::to_string(s.H) : std::string("width"), ", ", reads, "]");
    s.width[l] = reads = w.size(0);
    if (!last) s.saved += s.T * s.B * padded(reads);
    if (!biases.empty()) check_shape(op, c10::str("biases[", l, "]").c_str(), biases[l], x, {reads});
  }
  return s;
}

inline void check_deep_backward(const char* op, const DeepSizes& s, const OptTensor& dy, const OptTensor& dhn,
                                const Tensor& x, const Tensor& y, const Tensor& acts) {
  check_shape(op, "y", y, x, {s.B, s.T, s.H});
  check_gradient(op, "dy", dy, x, {s.B, s.T, s.H});
  check_gradient(op, "dhn", dhn, x, {s.B, s.H});
  check_saved(op, "acts", acts, x, {s.saved});
}

}  // namespace rnnfast
