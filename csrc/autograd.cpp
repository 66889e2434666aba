// The forward ops' autograd kernels. The backward ops get theirs, for double backward, in rnnfast/ops.py.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops.h"

namespace rnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls an op under this kernel. A backward that nobody differentiates need not pass its own autograd kernel,
// which is Python's.
template <class F, class... Args>
auto call_below(const c10::TypedOperatorHandle<F>& op, Args&&... args) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(std::forward<Args>(args)...);
}

template <class F, class... Args>
auto call_backward(const c10::TypedOperatorHandle<F>& op, Args&&... args) {
  return at::GradMode::is_enabled() ? op.call(std::forward<Args>(args)...)
                                    : call_below(op, std::forward<Args>(args)...);
}

// Forward-mode AD would be dropped in silence here: rnnfast.functional takes the reference path for it.
void refuse_forward_gradient(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK(!t.defined() || !t._fw_grad(/*level=*/0).defined(), op, ": ", name,
              " carries a forward-mode gradient, which this op does not propagate; call it through "
              "rnnfast.functional");
}

// The same for what comes into a backward; gradients beyond the names are of outputs that carry none.
void refuse_forward_gradients(const char* op, std::initializer_list<const char*> names,
                              const variable_list& grads) {
  size_t i = 0;
  for (const char* name : names) refuse_forward_gradient(op, name, grads[i++]);
}

// Whether to record; a graph without what its backward reads is refused.
bool must_record(const char* op, bool any_requires_grad, bool save) {
  if (!at::GradMode::is_enabled() || !any_requires_grad) return false;
  TORCH_CHECK(save, op,
              ": save is False, but an argument requires grad; pass save=True or call it under no_grad");
  return true;
}

OptTensor optional(const Tensor& t) { return t.defined() ? OptTensor(t) : std::nullopt; }

constexpr const char* kNames[kGradients] = {"x",    "h0",     "c0",     "w_ih",   "w_hh",   "b_ih",  "b_hh",
                                            "w_hr", "w_ih_r", "w_hh_r", "b_ih_r", "b_hh_r", "w_hr_r"};

struct Recurrent : torch::autograd::Function<Recurrent> {
  static variable_list forward(AutogradContext* ctx, std::string_view mode, const Tensor& x, const Tensor& h0,
                               const OptTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                               const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                               const OptTensor& w_ih_r, const OptTensor& w_hh_r, const OptTensor& b_ih_r,
                               const OptTensor& b_hh_r, const OptTensor& w_hr_r, const OptTensor& batch_sizes,
                               bool batch_first) {
    static const auto op = find_op<decltype(recurrent)>("rnnfast::recurrent");
    auto [y, hn, cn, gates, cells] = call_below(
        op, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r,
        batch_sizes, batch_first, /*save=*/true, OptTensor(), OptTensor(), OptTensor(), OptTensor());
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable(c0 ? variable_list{gates, cells} : variable_list{cn, gates, cells});
    ctx->save_for_backward({x, h0, c0.value_or(Tensor()), w_ih, w_hh, b_ih.value_or(Tensor()),
                            b_hh.value_or(Tensor()), w_hr.value_or(Tensor()), w_ih_r.value_or(Tensor()),
                            w_hh_r.value_or(Tensor()), b_ih_r.value_or(Tensor()), b_hh_r.value_or(Tensor()),
                            w_hr_r.value_or(Tensor()), batch_sizes.value_or(Tensor()), y, gates, cells});
    ctx->saved_data["mode"] = std::string(mode);
    ctx->saved_data["batch_first"] = batch_first;
    return {y, hn, cn, gates, cells};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = find_op<decltype(recurrent_backward)>("rnnfast::recurrent_backward");
    const variable_list s = ctx->get_saved_variables();
    refuse_forward_gradients("rnnfast::recurrent_backward", {"dy", "dhn", "dcn"}, grads);
    // Only the tensors that were given count among the edges of the graph.
    std::array<bool, kGradients> needs{};
    for (int i = 0, edge = 0; i < kGradients; ++i)
      if (s[i].defined()) needs[i] = ctx->needs_input_grad(edge++);
    const auto result = call_backward(
        op, optional(grads[0]), optional(grads[1]), optional(grads[2]), ctx->saved_data["mode"].toStringRef(),
        s[0], s[1], optional(s[2]), s[3], s[4], optional(s[5]), optional(s[6]), optional(s[7]),
        optional(s[8]), optional(s[9]), optional(s[10]), optional(s[11]), optional(s[12]), optional(s[13]),
        ctx->saved_data["batch_first"].toBool(), s[14], s[15], s[16], needs);
    variable_list out = std::apply([](auto&... t) { return variable_list{t...}; }, result);
    for (int i = 0; i < kGradients; ++i)
      if (!needs[i]) out[i] = Tensor();
    out.insert(out.begin(), Tensor());            // mode
    out.insert(out.end(), {Tensor(), Tensor()});  // batch_sizes, batch_first
    return out;
  }
};

RecurrentResult recurrent_autograd(std::string_view mode, const Tensor& x, const Tensor& h0,
                                   const OptTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                                   const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                                   const OptTensor& w_ih_r, const OptTensor& w_hh_r, const OptTensor& b_ih_r,
                                   const OptTensor& b_hh_r, const OptTensor& w_hr_r,
                                   const OptTensor& batch_sizes, bool batch_first, bool save,
                                   const OptTensor& lengths, const OptTensor& resets, const OptTensor& h_mask,
                                   const OptTensor& zoneout_mask) {
  const OptTensor all[kGradients] = {x,    h0,     c0,     w_ih,   w_hh,   b_ih,  b_hh,
                                     w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r};
  bool any = false;
  for (int i = 0; i < kGradients; ++i) {
    if (!all[i]) continue;
    refuse_forward_gradient("rnnfast::recurrent", kNames[i], *all[i]);
    any |= all[i]->requires_grad();
  }
  // what is only room in the schema is refused by the op itself
  const bool extra = lengths || resets || h_mask || zoneout_mask;
  if (extra || !must_record("rnnfast::recurrent", any, save)) {
    static const auto op = find_op<decltype(recurrent)>("rnnfast::recurrent");
    return call_below(op, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r,
                      w_hr_r, batch_sizes, batch_first, save, lengths, resets, h_mask, zoneout_mask);
  }
  auto r = Recurrent::apply(mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r,
                            w_hr_r, batch_sizes, batch_first);
  return {r[0], r[1], r[2], r[3], r[4]};
}

struct DeepTransition : torch::autograd::Function<DeepTransition> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& h0,
                               at::TensorList weights, at::TensorList biases, double negative_slope) {
    static const auto op = find_op<decltype(deep_transition)>("rnnfast::deep_transition");
    auto [y, hn, acts] = call_below(op, x, h0, weights, biases, negative_slope, /*save=*/true);
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({acts});
    variable_list saved = {x, h0, y, acts};
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), biases.begin(), biases.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["slope"] = negative_slope;
    ctx->saved_data["depth"] = static_cast<int64_t>(weights.size());
    return {y, hn, acts};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = find_op<decltype(deep_transition_backward)>("rnnfast::deep_transition_backward");
    const variable_list s = ctx->get_saved_variables();
    refuse_forward_gradients("rnnfast::deep_transition_backward", {"dy", "dhn"}, grads);
    const int64_t depth = ctx->saved_data["depth"].toInt();
    const at::TensorList rest = at::TensorList(s).slice(4);
    const auto [dx, dh0, dw, db] = call_backward(
        op, optional(grads[0]), optional(grads[1]), s[0], s[1], rest.slice(0, depth), rest.slice(depth),
        ctx->saved_data["slope"].toDouble(), s[2], s[3], ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    variable_list out = {ctx->needs_input_grad(0) ? dx : Tensor(), ctx->needs_input_grad(1) ? dh0 : Tensor()};
    out.insert(out.end(), dw.begin(), dw.end());
    out.insert(out.end(), db.begin(), db.end());
    out.emplace_back();  // negative_slope
    return out;
  }
};

DeepResult deep_transition_autograd(const Tensor& x, const Tensor& h0, at::TensorList weights,
                                    at::TensorList biases, double negative_slope, bool save) {
  bool any = false;
  const auto visit = [&](const char* name, const Tensor& t) {
    refuse_forward_gradient("rnnfast::deep_transition", name, t);
    any |= t.requires_grad();
  };
  visit("x", x);
  visit("h0", h0);
  for (const Tensor& w : weights) visit("weights", w);
  for (const Tensor& b : biases) visit("biases", b);
  if (!must_record("rnnfast::deep_transition", any, save)) {
    static const auto op = find_op<decltype(deep_transition)>("rnnfast::deep_transition");
    return call_below(op, x, h0, weights, biases, negative_slope, save);
  }
  auto r = DeepTransition::apply(x, h0, weights, biases, negative_slope);
  return {r[0], r[1], r[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnfast, Autograd, m) {
  m.impl("recurrent", &recurrent_autograd);
  m.impl("deep_transition", &deep_transition_autograd);
}

}  // namespace rnnfast
