// See checks.h.
#include "ops/checks.h"

#include <c10/util/StringUtil.h>

#include <optional>

namespace rnnfast {
namespace {

// An argument's name: of the weights those of the reverse direction end in _r
struct Name {
  const char *text, *suffix = "";

  Name(const char* name, const char* end = "") : text(name), suffix(end) {}
};
std::ostream& operator<<(std::ostream& to, const Name& name) { return to << name.text << name.suffix; }

// What the checks of one call say: the op's name, and x, whose dtype and device all others must have
struct Call {
  const char* op;
  const Tensor& x;

  void like_x(Name name, const Tensor& t) const {
    TORCH_CHECK(t.defined(), op, ": ", name, " is an undefined tensor");
    TORCH_CHECK(t.device() == x.device(), op, ": ", name, " is on ", t.device(), ", expected ", x.device(),
                ", the device of x");
    TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " has dtype ", t.scalar_type(),
                ", expected ", x.scalar_type(), ", the dtype of x");
    TORCH_CHECK(t.layout() == at::kStrided, op, ": ", name, " has layout ", t.layout(),
                ", expected a dense tensor");
  }

  void shape(Name name, const Tensor& t, at::IntArrayRef expected) const {
    like_x(name, t);
    TORCH_CHECK(t.sizes() == expected, op, ": ", name, " has shape ", t.sizes(), ", expected ", expected);
  }

  // given where it is expected and nowhere else; `when` ends the sentence
  void optional(Name name, const Tensor& t, bool expected, at::IntArrayRef size, const char* when) const {
    TORCH_CHECK(!t.defined() || expected, op, ": ", name, " has shape ", t.sizes(), ", expected None ", when);
    TORCH_CHECK(t.defined() || !expected, op, ": ", name, " is None, expected shape ", size, " ", when);
    if (expected) shape(name, t, size);
  }

  // a dense tensor of its output's shape; None counts as zero
  void gradient(Name name, const Tensor& t, at::IntArrayRef size) const {
    if (t.defined()) shape(name, t, size);
  }

  // what forward saved for backward
  void saved(Name name, const Tensor& t, at::IntArrayRef size) const {
    TORCH_CHECK(t.defined() && t.device() == x.device() && t.scalar_type() == accumulation_type(x) &&
                    t.sizes() == size,
                op, ": ", name, " has dtype ", t.scalar_type(), " and shape ", t.sizes(), ", expected ",
                accumulation_type(x), " and ", size, " as the forward op saves it");
  }

  void input(int64_t dims) const {
    TORCH_CHECK(x.defined(), op, ": x is an undefined tensor");
    TORCH_CHECK(x.layout() == at::kStrided, op, ": x has layout ", x.layout(), ", expected a dense tensor");
    TORCH_CHECK(x.dim() == dims, op, ": x has ", x.dim(), " dimensions, expected ", dims);
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble ||
                    x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf,
                op, ": x has dtype ", x.scalar_type(), ", expected float32, float64, bfloat16 or float16");
  }

  void steps(int64_t T) const {
    TORCH_CHECK(T > 0, op, ": Expected sequence length to be larger than 0 in RNN, got x of shape ",
                x.sizes());
  }

  // int64 on the CPU, [T], positive, non-increasing, with the sum N
  void batch_sizes(const Tensor& sizes) const {
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
    TORCH_CHECK(sum == x.size(0), op, ": batch_sizes sum to ", sum, ", expected ", x.size(0),
                ", the rows of x");
  }
};

std::string names_of_cells() {
  std::string names;
  for (const CellFacts& cell : kCells) names += (names.empty() ? "" : ", ") + std::string(cell.name);
  return names;
}

// of one direction; `first` are those of the other, of which the biases and the projection say what to expect
void check_weights(const Call& call, const LayerSizes& s, const Weights& w, const Weights& first,
                   const char* suffix) {
  const int64_t GH = s.gates * s.H;
  call.optional({"w_ih", suffix}, w.w_ih, true, {GH, s.I}, "(gates x hidden, input)");
  call.optional({"w_hh", suffix}, w.w_hh, true, {GH, s.P}, "(gates x hidden, output)");
  call.optional({"b_ih", suffix}, w.b_ih, first.b_ih.defined(), {GH}, "like b_ih");
  call.optional({"b_hh", suffix}, w.b_hh, first.b_hh.defined(), {GH}, "like b_hh");
  call.optional({"w_hr", suffix}, w.w_hr, s.projected, {s.P, s.H}, "like w_hr");
}

}  // namespace

Mode parse_mode(const char* op, std::string_view name) {
  for (const CellFacts& cell : kCells)
    if (name == cell.name) return cell.mode;
  TORCH_CHECK(false, op, ": mode is '", name, "', expected one of ", names_of_cells());
}

static std::vector<int64_t> shape_of_steps(const LayerSizes& s, int64_t width) {
  if (s.packed) return {s.N, s.D * width};
  return s.batch_first ? std::vector<int64_t>{s.B, s.T, s.D * width}
                       : std::vector<int64_t>{s.T, s.B, s.D * width};
}
std::vector<int64_t> output_shape(const LayerSizes& s) { return shape_of_steps(s, s.P); }
std::vector<int64_t> cells_shape(const LayerSizes& s) { return shape_of_steps(s, s.H); }

LayerSizes check_layer(const char* op, const LayerArguments& a) {
  LayerSizes s(parse_mode(op, a.mode));
  const Call call{op, a.x};
  const auto& [w, reverse] = a.weights;
  s.packed = a.batch_sizes.defined();
  s.batch_first = a.batch_first && !s.packed;
  s.D = reverse.w_ih.defined() ? 2 : 1;

  call.input(s.packed ? 2 : 3);
  s.I = a.x.size(-1);
  if (s.packed) {
    call.batch_sizes(a.batch_sizes);
    s.N = a.x.size(0);
    s.T = a.batch_sizes.size(0);
    s.B = s.T ? a.batch_sizes.select(0, 0).item<int64_t>() : 0;
  } else {
    s.T = a.x.size(s.batch_first ? 1 : 0);
    s.B = a.x.size(s.batch_first ? 0 : 1);
    s.N = s.T * s.B;
  }
  call.steps(s.T);

  call.like_x("w_ih", w.w_ih);
  call.like_x("w_hh", w.w_hh);
  TORCH_CHECK(w.w_hh.dim() == 2 && w.w_hh.size(0) > 0 && w.w_hh.size(0) % s.gates == 0, op,
              ": w_hh has shape ", w.w_hh.sizes(),
              ", expected 2 dimensions, the first a positive multiple of ", s.gates, ", the gates");
  s.H = w.w_hh.size(0) / s.gates;
  s.projected = w.w_hr.defined();
  if (s.projected) {
    TORCH_CHECK(s.has_cell, op, ": w_hr has shape ", w.w_hr.sizes(), ", expected None for ", a.mode);
    call.like_x("w_hr", w.w_hr);
    TORCH_CHECK(w.w_hr.dim() == 2 && w.w_hr.size(0) > 0, op, ": w_hr has shape ", w.w_hr.sizes(),
                ", expected 2 dimensions, [projection, ", s.H, "]");
  }
  s.P = s.projected ? w.w_hr.size(0) : s.H;

  check_weights(call, s, w, w, "");
  if (s.D == 2) {
    check_weights(call, s, reverse, w, "_r");
  } else {
    const std::pair<const char*, const Tensor&> rest[] = {{"w_hh_r", reverse.w_hh},
                                                          {"b_ih_r", reverse.b_ih},
                                                          {"b_hh_r", reverse.b_hh},
                                                          {"w_hr_r", reverse.w_hr}};
    for (const auto& [name, t] : rest)
      TORCH_CHECK(!t.defined(), op, ": ", name, " has shape ", t.sizes(),
                  ", expected None where w_ih_r is None");
  }
  call.shape("h0", a.h0, {s.D, s.B, s.P});
  const std::string of_mode = s.has_cell ? c10::str("for ", a.mode) : "for a cell without c";
  call.optional("c0", a.c0, s.has_cell, {s.D, s.B, s.H}, of_mode.c_str());
  return s;
}

void check_episodes(const char* op, const LayerSizes& s, const Tensor& x, const EpisodeArguments& a) {
  const Call call{op, x};
  const std::pair<const char*, const Tensor&> all[] = {
      {"lengths", a.lengths}, {"resets", a.resets}, {"reset_h", a.reset_h}, {"reset_c", a.reset_c}};
  for (const auto& [name, t] : all)
    TORCH_CHECK(!t.defined() || !s.packed, op, ": ", name, " has shape ", t.sizes(),
                ", expected None for packed x");
  if (const Tensor& t = a.lengths; t.defined()) {
    TORCH_CHECK(t.scalar_type() == at::kLong && t.sizes() == at::IntArrayRef({s.B}), op, ": lengths is a ",
                t.scalar_type(), " tensor of shape ", t.sizes(), ", expected int64 of shape [", s.B,
                "], one for each row of the batch");
    TORCH_CHECK(t.device().is_cpu() || t.device() == x.device(), op, ": lengths is on ", t.device(),
                ", expected cpu or ", x.device(), ", the device of x");
    if (t.device().is_cpu()) {  // elsewhere the host would have to wait for it
      const Tensor dense = t.contiguous();
      const int64_t* const n = dense.const_data_ptr<int64_t>();
      for (int64_t b = 0; b < s.B; ++b)
        TORCH_CHECK(n[b] >= 0 && n[b] <= s.T, op, ": lengths[", b, "] is ", n[b], ", expected 0 to ", s.T,
                    ", the time steps of x");
    }
  }
  if (const Tensor& t = a.resets; t.defined()) {
    const std::vector<int64_t> size =
        s.batch_first ? std::vector<int64_t>{s.B, s.T} : std::vector<int64_t>{s.T, s.B};
    TORCH_CHECK(s.D == 1, op, ": resets has shape ", t.sizes(),
                ", expected None for a layer in both directions");
    TORCH_CHECK(t.scalar_type() == at::kBool && t.sizes() == at::IntArrayRef(size), op, ": resets is a ",
                t.scalar_type(), " tensor of shape ", t.sizes(), ", expected bool of shape ",
                at::IntArrayRef(size), s.batch_first ? " (batch, time)" : " (time, batch)");
    TORCH_CHECK(t.device() == x.device(), op, ": resets is on ", t.device(), ", expected ", x.device(),
                ", the device of x");
  }
  TORCH_CHECK(!a.reset_c.defined() || s.has_cell, op, ": reset_c has shape ", a.reset_c.sizes(),
              ", expected None for a cell without c");
  TORCH_CHECK(!s.has_cell || a.reset_h.defined() == a.reset_c.defined(), op,
              ": expected both of reset_h and reset_c, or none");
  const auto state = [&](const char* name, const Tensor& t, int64_t units) {
    if (!t.defined()) return;
    TORCH_CHECK(a.resets.defined(), op, ": ", name, " has shape ", t.sizes(),
                ", expected None without resets");
    const int64_t rows = t.dim() == 3 && t.size(1) == 1 ? 1 : s.B;
    call.shape(name, t, {s.D, rows, units});
  };
  state("reset_h", a.reset_h, s.P);
  state("reset_c", a.reset_c, s.H);
}

void refuse_reserved(const char* op, const RecurrentArguments& a) {
  const std::pair<const char*, const Tensor&> reserved[] = {{"h_mask", a.h_mask},
                                                            {"zoneout_mask", a.zoneout_mask}};
  for (const auto& [name, t] : reserved)
    TORCH_CHECK(!t.defined(), op, ": ", name, " has shape ", t.sizes(), ", expected None: not supported yet");
}

void check_layer_backward(const char* op, const LayerSizes& s, const RecurrentBackwardArguments& a,
                          at::IntArrayRef gates, at::IntArrayRef cells) {
  const Call call{op, a.layer.x};
  call.shape("y", a.y, output_shape(s));
  call.gradient("dy", a.dy, output_shape(s));
  call.gradient("dhn", a.dhn, {s.D, s.B, s.P});
  TORCH_CHECK(!a.dcn.defined() || s.has_cell, op, ": dcn has shape ", a.dcn.sizes(),
              ", expected None for a cell without c");
  call.gradient("dcn", a.dcn, {s.D, s.B, s.H});
  TORCH_CHECK(!a.dcs.defined() || s.has_cell, op, ": dcs has shape ", a.dcs.sizes(),
              ", expected None for a cell without c");
  call.gradient("dcs", a.dcs, cells_shape(s));
  call.saved("gates", a.gates, gates);
  if (s.has_cell) call.saved("cells", a.cells, cells);
}

DeepSizes check_deep(const char* op, const DeepArguments& a) {
  const Call call{op, a.x};
  DeepSizes s{};
  call.input(3);
  TORCH_CHECK(!a.weights.empty() && a.weights.size() <= kMaxDepth, op, ": weights has ", a.weights.size(),
              " tensors, expected 1 to ", kMaxDepth);
  TORCH_CHECK(a.biases.empty() || a.biases.size() == a.weights.size(), op, ": biases has ", a.biases.size(),
              " tensors, expected 0 or ", a.weights.size(), ", one for each of weights");
  TORCH_CHECK(a.negative_slope >= 0, op, ": negative_slope is ", a.negative_slope, ", expected at least 0");
  s.B = a.x.size(0), s.T = a.x.size(1), s.I = a.x.size(2);
  s.depth = static_cast<int>(a.weights.size());
  call.steps(s.T);
  call.like_x("h0", a.h0);
  TORCH_CHECK(a.h0.dim() == 2 && a.h0.size(0) == s.B && a.h0.size(1) > 0, op, ": h0 has shape ", a.h0.sizes(),
              ", expected [", s.B, ", hidden]");
  s.H = a.h0.size(1);
  int64_t reads = s.I + s.H;
  for (int l = 0; l < s.depth; ++l) {
    const Tensor& w = a.weights[l];
    const std::string name = c10::str("weights[", l, "]");
    call.like_x(name.c_str(), w);
    const bool last = l + 1 == s.depth;
    TORCH_CHECK(w.dim() == 2 && w.size(1) == reads && w.size(0) > 0 && (!last || w.size(0) == s.H), op, ": ",
                name, " has shape ", w.sizes(), ", expected [",
                last ? std::to_string(s.H) : std::string("width"), ", ", reads, "]");
    s.width[l] = reads = w.size(0);
    if (!last) s.saved += s.T * s.B * padded(reads);
    if (!a.biases.empty()) call.shape(c10::str("biases[", l, "]").c_str(), a.biases[l], {reads});
  }
  return s;
}

void check_deep_backward(const char* op, const DeepSizes& s, const DeepBackwardArguments& a) {
  const Call call{op, a.deep.x};
  call.shape("y", a.y, {s.B, s.T, s.H});
  call.gradient("dy", a.dy, {s.B, s.T, s.H});
  call.gradient("dhn", a.dhn, {s.B, s.H});
  call.saved("acts", a.acts, {s.saved});
}

}  // namespace rnnfast
