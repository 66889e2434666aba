// The recurrent layer's ops on the CPU: forward and backward of LSTM, GRU and RNN over one layer, one or both
// directions. The recurrence is a kernel of csrc/cpu, and so are the big products that make the gradients.
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros.h>

#include "launch.h"
#include "layer.h"

namespace rnnfast {
namespace {

// dense and in the dtype that products read; rows of bfloat16 are whole lines, as the kernel asks
Tensor operand(const Tensor& t, at::ScalarType type) {
  const Tensor rows = dense(t, type);
  if (type != at::kBFloat16) return rows;
  const int64_t n = rows.size(-1), more = whole_lines<Bfloat16>(n) - n;
  if (more) return at::constant_pad_nd(rows, {0, more});
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 4 ? rows.clone() : rows;
}
Tensor operand(const OptTensor& t, at::ScalarType type) { return t ? operand(*t, type) : Tensor(); }

// the dtype that the products of a layer with this x read
at::ScalarType element_type(const Kernels& k, const Tensor& x, at::ScalarType accumulation) {
  return k.bf16 && x.scalar_type() == at::kBFloat16 ? at::kBFloat16 : accumulation;
}

template <class E>
using TorchType = std::conditional_t<std::is_same_v<E, Bfloat16>, at::BFloat16, E>;

template <class E>
const E* in(const Tensor& t, int64_t offset = 0) {
  return t.defined() ? reinterpret_cast<const E*>(t.const_data_ptr<TorchType<E>>()) + offset : nullptr;
}

template <class E>
E* out(const Tensor& t, int64_t offset = 0) {
  return t.defined() && t.numel() ? reinterpret_cast<E*>(t.mutable_data_ptr<TorchType<E>>()) + offset
                                  : nullptr;
}

// The input product's gradients are launches of their own.
Shape shape_of(const LayerSizes& s, const Kernels& k, bool wide, bool backward) {
  return {s.T,
          s.B,
          s.N,
          backward ? 0 : s.I,
          s.H,
          s.P,
          s.gates,
          s.P == s.H ? 1 : 2,
          k.vector_bytes / (wide ? 8 : 4),
          backward};
}

// What forward saves of each direction, see layout_of: of an RNN nothing, if y is what it would be
int64_t gate_numbers(const LayerSizes& s, const Tensor& x) {
  const bool in_y = s.slots == 1 && x.scalar_type() == accumulation_type(x);
  return in_y ? 0 : gate_rows(s.N) * s.slots * padded(s.H);
}
int64_t cell_numbers(const LayerSizes& s) { return s.N * padded(s.H); }

Tensor saved_empty(const LayerSizes& s, const Kernels& k, int64_t numbers, at::TensorOptions options) {
  const Tensor saved = kept_empty({numbers}, options);
  return k.fills_padding(s.H, saved.element_size()) ? saved : saved.zero_();
}

template <class E>
void forward_directions(const Kernels& k, const LayerSizes& s, const Walk& walk, const Tensor& x,
                        const Tensor& h0, const Tensor& c0, const std::array<Weights, 2>& weights,
                        const Tensor& y, const Tensor& hn, const Tensor& cn, const Tensor& gates,
                        const Tensor& cells) {
  typedef typename ComputeType<E>::type A;
  Shape shape = shape_of(s, k, sizeof(A) == 8, /*backward=*/false);
  if (sizeof(E) < sizeof(A)) {
    shape.inputs = (s.I + 1) / 2, shape.reads = (s.P + 1) / 2;  // pairs
    shape.matrix_unit = k.matrix_unit;
  }
  shape.directions = static_cast<int>(s.D);
  std::array<ForwardParams<E>, 2> directions{};
  for (int64_t d = 0; d < s.D; ++d) {
    const Weights& w = weights[d];
    ForwardParams<E>& p = directions[d];
    p.walk = walk;
    p.walk.reverse = d == 1;
    p.I = s.I, p.H = s.H, p.P = s.P;
    p.x = in<E>(x);
    p.w_ih = in<E>(w.w_ih), p.w_hh = in<E>(w.w_hh), p.w_hr = in<E>(w.w_hr);
    p.b_ih = in<A>(w.b_ih), p.b_hh = in<A>(w.b_hh);
    p.h0 = in<A>(h0, d * s.B * s.P);
    p.c0 = in<A>(c0, d * s.B * s.H);
    p.y = out<E>(y, d * s.P);
    p.ldy = s.D * s.P;
    p.hn = out<A>(hn, d * s.B * s.P);
    p.cn = out<A>(cn, d * s.B * s.H);
    p.gates = out<A>(gates, d * gates.numel() / s.D);
    p.cells = out<A>(cells, d * cells.numel() / s.D);
  }
  launch("recurrent", shape, sizeof(A) == 4, [&](int d, Plan plan, void* workspace, Team::Member* member) {
    return k.layer(E()).forward(s.mode, &directions[d], plan, workspace, member);
  });
}

// What backward leaves of one direction; see BackwardParams
struct DirectionGradients {
  Tensor da, dx, dprojected, hidden;
};

// da and the like, whose rows products read: whole lines
template <class E>
Tensor gradient_rows(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  const Tensor whole = kept_empty({rows, whole_lines<E>(columns)}, options);
  if (whole.size(1) == columns) return whole;
  whole.narrow(1, columns, whole.size(1) - columns).zero_();
  return whole.narrow(1, 0, columns);
}

// of as many directions as the plan has, from `first` on
template <class E>
std::array<DirectionGradients, 2> backward_directions(
    const Kernels& k, const LayerSizes& s, Plan plan, const Walk& walk, int64_t first,
    const std::array<Weights, 2>& weights, const Tensor& h0, const Tensor& c0, const Tensor& y,
    const Tensor& dy, const Tensor& dhn, const Tensor& dcn, const Tensor& gates, const Tensor& cells,
    const Tensor& dh0, const Tensor& dc0, std::array<bool, 2> need_w_hr) {
  typedef typename ComputeType<E>::type A;
  const int64_t GH = s.gates * s.H;
  const at::TensorOptions options = y.options();
  std::array<DirectionGradients, 2> gradients;
  std::array<BackwardParams<E>, 2> directions{};
  for (int i = 0; i < plan.directions(); ++i) {
    const int64_t d = first + i;
    const Weights& w = weights[d];
    DirectionGradients& r = gradients[i];
    r.da = gradient_rows<E>(s.N, GH, options);
    r.dx = s.slots > s.gates ? gradient_rows<E>(s.N, GH, options) : r.da;
    if (w.w_hr.defined()) r.dprojected = gradient_rows<E>(s.N, s.P, options);
    if (w.w_hr.defined() && need_w_hr[d]) r.hidden = kept_empty({s.N, s.H}, options);
    BackwardParams<E>& p = directions[i];
    p.walk = walk;
    p.walk.reverse = d == 1;
    p.H = s.H, p.P = s.P;
    p.w_hh = in<E>(w.w_hh), p.w_hr = in<E>(w.w_hr);
    p.h0 = in<A>(h0, d * s.B * s.P);
    p.c0 = in<A>(c0, d * s.B * s.H);
    p.y = in<E>(y, d * s.P);
    p.dy = in<E>(dy, d * s.P);
    p.ldy = s.D * s.P;
    p.dhn = in<A>(dhn, d * s.B * s.P);
    p.dcn = in<A>(dcn, d * s.B * s.H);
    p.gates = gates.numel() ? in<A>(gates, d * gates.numel() / s.D) : nullptr;
    p.cells = s.has_cell ? in<A>(cells, d * cells.numel() / s.D) : nullptr;
    p.da = out<E>(r.da);
    p.dx = r.dx.is_same(r.da) ? nullptr : out<E>(r.dx);
    p.dprojected = out<E>(r.dprojected);
    p.hidden = out<E>(r.hidden);
    p.dh0 = out<A>(dh0, d * s.B * s.P);
    p.dc0 = out<A>(dc0, d * s.B * s.H);
  }
  launch_with("recurrent_backward", plan, sizeof(A) == 4,
              [&](Plan how, void* workspace, Team::Member* member) {
                return k.layer(E()).backward(s.mode, directions.data(), how, workspace, member);
              });
  return gradients;
}

}  // namespace

RecurrentResult recurrent(std::string_view mode, const Tensor& x, const Tensor& h0, const OptTensor& c0,
                          const Tensor& w_ih, const Tensor& w_hh, const OptTensor& b_ih,
                          const OptTensor& b_hh, const OptTensor& w_hr, const OptTensor& w_ih_r,
                          const OptTensor& w_hh_r, const OptTensor& b_ih_r, const OptTensor& b_hh_r,
                          const OptTensor& w_hr_r, const OptTensor& batch_sizes, bool batch_first, bool save,
                          const OptTensor& lengths, const OptTensor& resets, const OptTensor& h_mask,
                          const OptTensor& zoneout_mask) {
  constexpr const char* op = "rnnfast::recurrent";
  refuse_reserved(op, lengths, resets, h_mask, zoneout_mask);
  const LayerSizes s = check_layer(op, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r,
                                   b_hh_r, w_hr_r, batch_sizes, batch_first);
  const at::ScalarType type = accumulation_type(x);
  const at::TensorOptions options = x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous);
  const Kernels& k = kernels();
  const at::ScalarType element = element_type(k, x, type);
  const Tensor y = kept_empty(output_shape(s), options.dtype(element));
  const auto nothing = [&] { return kept_empty({0}, options); };
  const Tensor hn = kept_empty({s.D, s.B, s.P}, options);
  const Tensor cn = s.has_cell ? kept_empty({s.D, s.B, s.H}, options) : nothing();
  const Tensor gates = save ? saved_empty(s, k, s.D * gate_numbers(s, x), options) : nothing();
  const Tensor cells = save && s.has_cell ? saved_empty(s, k, s.D * cell_numbers(s), options) : nothing();
  if (s.N > 0) {
    const auto weights = all_weights([&](const auto& w) { return operand(w, element); },
                                     [&](const auto& b) { return dense(b, type); }, w_ih, w_hh, b_ih, b_hh,
                                     w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r);
    const WalkStorage storage = walk_of(s, batch_sizes);
    const auto run = element == at::kDouble     ? forward_directions<double>
                     : element == at::kBFloat16 ? forward_directions<Bfloat16>
                                                : forward_directions<float>;
    run(k, s, storage.walk, operand(x, element), dense(h0, type), dense(c0, type), weights, y, hn, cn, gates,
        cells);
  } else {
    gates.zero_();  // the biases' row
  }
  const at::ScalarType back = x.scalar_type();
  return {cast(y, back), cast(hn, back), cast(cn, back), gates, cells};
}

RecurrentGradients recurrent_backward(const OptTensor& dy, const OptTensor& dhn, const OptTensor& dcn,
                                      std::string_view mode, const Tensor& x, const Tensor& h0,
                                      const OptTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                                      const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                                      const OptTensor& w_ih_r, const OptTensor& w_hh_r,
                                      const OptTensor& b_ih_r, const OptTensor& b_hh_r,
                                      const OptTensor& w_hr_r, const OptTensor& batch_sizes, bool batch_first,
                                      const Tensor& y, const Tensor& gates, const Tensor& cells,
                                      std::array<bool, kGradients> needs) {
  constexpr const char* op = "rnnfast::recurrent_backward";
  const LayerSizes s = check_layer(op, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r,
                                   b_hh_r, w_hr_r, batch_sizes, batch_first);
  check_layer_backward(op, s, dy, dhn, dcn, x, y, gates, {s.D * gate_numbers(s, x)}, cells,
                       {s.D * cell_numbers(s)});

  const at::ScalarType type = accumulation_type(x);
  const at::TensorOptions options = x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous);
  const Kernels& k = kernels();
  const at::ScalarType element = element_type(k, x, type);
  const auto weights = all_weights([&](const auto& w) { return dense(w, element); },
                                   [&](const auto& b) { return dense(b, type); }, w_ih, w_hh, b_ih, b_hh,
                                   w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r);
  const Tensor x_rows = dense(x, element).view({s.N, s.I}), y_dense = dense(y, element);
  const Tensor h0_dense = dense(h0, type), c0_dense = dense(c0, type);
  const Tensor h0_rows = cast(h0_dense, element);  // for dW_hh, beside those of y
  const Tensor dy_dense = dense(dy, element), dhn_dense = dense(dhn, type);
  const Tensor dcn_dense = s.has_cell ? dense(dcn, type) : Tensor();
  const Tensor gates_dense = gates.contiguous(), cells_dense = cells.contiguous();
  const Tensor dh0 = kept_empty({s.D, s.B, s.P}, options);
  const Tensor dc0 = s.has_cell ? kept_empty({s.D, s.B, s.H}, options) : Tensor();
  const WalkStorage storage = walk_of(s, batch_sizes);
  const auto wanted = wanted_gradients(needs, s, b_ih, b_hh);

  Shape shape = shape_of(s, k, type == at::kDouble, /*backward=*/true);
  shape.matrix_unit = element == at::kBFloat16 && k.matrix_unit;
  // side by side both have their da and dx, which is memory that one after the other does not take; with
  // more than a few rows it would buy 0 to 4 % of time
  constexpr int64_t kFewRows = 4, kLittleBytes = 4 << 20;
  const int64_t numbers = s.N * s.gates * s.H * (s.slots > s.gates ? 2 : 1);
  if (s.B <= kFewRows || numbers * y_dense.element_size() <= kLittleBytes)
    shape.directions = static_cast<int>(s.D);
  const Plan plan = choose_plan(shape);

  std::array<Tensor, kGradients> grads;
  grads[1] = dh0;
  grads[2] = dc0;
  std::array<DirectionGradients, 2> made;  // those of d and, side by side, of the next
  for (int64_t d = 0; d < s.D; ++d) {
    const int first = 3 + 5 * static_cast<int>(d);  // of this direction's weights among the gradients
    const int i = static_cast<int>(d) % plan.directions();
    if (i == 0 && s.N > 0) {
      const auto run = element == at::kDouble     ? backward_directions<double>
                       : element == at::kBFloat16 ? backward_directions<Bfloat16>
                                                  : backward_directions<float>;
      made = run(k, s, plan, storage.walk, d, weights, h0_dense, c0_dense, y_dense, dy_dense, dhn_dense,
                 dcn_dense, gates_dense, cells_dense, dh0, dc0, {wanted[3 + 4], wanted[3 + 5 + 4]});
    }
    DirectionGradients r = std::move(made[i]);
    if (s.N == 0) {
      dh0.zero_();
      if (s.has_cell) dc0.zero_();
      r.da = r.dx = at::zeros({0, s.gates * s.H}, options);
      r.dprojected = at::zeros({0, s.P}, options);
      r.hidden = at::zeros({0, s.H}, options);
    }
    if (wanted[0]) {
      if (d == 0) grads[0] = gradient_buffer(s.N, s.I, options);
      multiply(k, grads[0], r.dx, weights[d].w_ih, /*accumulate=*/d > 0);
    }
    // db comes along with dW, or alone
    Tensor &db_x = grads[first + 2], &db_h = grads[first + 3];
    std::vector<WeightGradient> pair;
    std::vector<const void*> previous;
    if (wanted[first]) pair.push_back({r.dx, x_rows, &grads[first], wanted[first + 2] ? &db_x : nullptr});
    if (wanted[first + 1]) {
      previous = previous_states(storage.reversed(d == 1), h0_rows, d * s.B * s.P, y_dense, d * s.P);
      pair.push_back(
          {r.da, h0_rows, &grads[first + 1], wanted[first + 3] ? &db_h : nullptr, previous.data()});
    }
    weight_gradients(k, pair);
    if (wanted[first + 2] && !db_x.defined()) db_x = r.dx.sum(0, false, type);
    if (wanted[first + 3] && !db_h.defined()) db_h = r.da.sum(0, false, type);
    if (wanted[first + 4]) weight_gradients(k, {{r.dprojected, r.hidden, &grads[first + 4], nullptr}});
  }
  if (wanted[0]) grads[0] = gradient_of(grads[0], s.I).view(x.sizes());
  for (int i = 0; i < kGradients; ++i)
    grads[i] = wanted[i] ? cast(grads[i], x.scalar_type()) : kept_empty({0}, x.options());
  return std::tuple_cat(grads);
}

}  // namespace rnnfast
