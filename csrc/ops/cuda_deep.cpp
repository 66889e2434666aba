// The deep-transition RNN's ops on a GPU, as in cuda_layer.cpp.
#include <ATen/ops/cat.h>

#include <limits>

#include "cuda/plan.h"
#include "ops/checks.h"
#include "ops/cuda_resident.h"
#include "ops/ops.h"

namespace rnnfast::cuda {
namespace {

int64_t widest(const DeepSizes& s) { return *std::max_element(s.width, s.width + s.depth); }

ResidentPlan plan_of(const char* op, const DeepSizes& s, const Tensor& x) {
  check_waited();
  // rows, with those beyond the batch, and products are counted in 32 bits
  const bool countable =
      s.T * std::max<int64_t>(s.B + kBatch, s.depth) <= std::numeric_limits<int32_t>::max();
  const ResidentPlan plan =
      !countable ? kOneLaunchAStep
                 : choose_plan(DeepShape{static_cast<int>(x.element_size()), products_are_tf32(), widest(s),
                                         s.depth, s.B, planned_device(current_device()), s.T});
  set_last_run(op, plan);
  return plan;
}

// W of layer l as it multiplies what travels: of layer 0 what reads h
Tensor travelling_weight(const DeepSizes& s, const std::vector<Tensor>& weights, int l) {
  return l ? weights[l] : weights[0].narrow(1, s.I, s.H);
}

// What resident kernels forward and backward have in common; `w` has to live until the launch.
template <class Params>
Params resident_params(const DeepSizes& s, const DeepArguments& a, const ResidentPlan& plan,
                       const std::vector<Tensor>& products, Tensor& w) {
  typedef typename Params::Element E;
  typedef typename Params::A A;
  Params p{};
  Tensor no_places;
  p.links = links_of(plan, s.B, 0, a.x, no_places);
  p.products = s.depth, p.H = s.H, p.batch = s.B, p.times = s.T;
  p.width = travelling(widest(s), 1, false);
  p.ldw = kTile<E> * plan.held * plan.split;
  p.slope = static_cast<A>(a.negative_slope);
  w = at::zeros({s.depth, p.width, p.ldw}, products[0].options());
  for (int i = 0; i < s.depth; ++i) {
    p.units[i] = products[i].size(0);
    w[i].narrow(0, 0, p.units[i]).narrow(1, 0, products[i].size(1)).copy_(products[i]);
  }
  p.w = in<E>(w);
  return p;
}

// f(begin, steps, input): what x adds in layer 0 to the rows of these steps, one step after the other
template <class F>
void for_input(const DeepSizes& s, const DeepArguments& a, at::ScalarType type, const F& f) {
  const Tensor w_x = a.weights[0].narrow(1, 0, s.I);
  const int64_t chunk = input_chunk(s.B * s.width[0] * static_cast<int64_t>(c10::elementSize(type)));
  for (int64_t begin = 0; begin < s.T; begin += chunk) {
    const int64_t steps = std::min(chunk, s.T - begin);
    const Tensor rows = a.x.narrow(1, begin, steps).transpose(0, 1).reshape({steps * s.B, s.I});
    f(begin, steps, input_product(rows, w_x, type, products_are_tf32()));
  }
}

template <class E>
void forward_resident(const DeepSizes& s, const DeepArguments& a, const ResidentPlan& plan, const Tensor& y,
                      const Tensor& hn, const Tensor& acts) {
  typedef typename ComputeType<E>::type A;
  std::vector<Tensor> products;
  for (int l = 0; l < s.depth; ++l) products.push_back(travelling_weight(s, a.weights, l));
  Tensor w, bias;
  auto p = resident_params<ResidentDeepForward<E>>(s, a, plan, products, w);
  if (!a.biases.empty()) {
    bias = at::zeros({s.depth, p.width}, w.options());
    for (int l = 0; l < s.depth; ++l) bias[l].narrow(0, 0, s.width[l]).copy_(a.biases[l]);
  }
  const Tensor h = padded_state(a.h0, hn.options());
  p.bias = in<E>(bias), p.h = out<A>(h), p.Hp = padded(s.H), p.y = out<E>(y);
  int64_t saved = 0;
  for (int l = 0; l + 1 < s.depth && acts.numel(); ++l) {
    p.acts[l] = out<A>(acts, saved), p.lda[l] = padded(s.width[l]);
    saved += s.T * s.B * p.lda[l];
  }
  for_input(s, a, hn.scalar_type(), [&](int64_t begin, int64_t steps, const Tensor& input) {
    p.first_step = begin, p.steps = steps, p.input = in<A>(input);
    check_launch(resident_deep_forward(p, plan, current_stream(y.device())));
  });
  hn.copy_(h.narrow(1, 0, s.H));
}

// Row (t, b) of x, y and what is saved is b T + t: the rows of one step are T apart.
template <class E>
void forward_stepwise(const DeepSizes& s, const DeepArguments& a, const Tensor& y, const Tensor& hn,
                      const Tensor& acts) {
  typedef typename ComputeType<E>::type A;
  const at::TensorOptions options = hn.options();
  const int last = s.depth - 1;
  const int64_t Hp = padded(s.H), W0 = s.width[0];
  std::vector<Tensor> w, b, inner;
  for (int l = 0; l <= last; ++l) {
    w.push_back(padded_rows(travelling_weight(s, a.weights, l)));
    b.push_back(a.biases.empty() ? Tensor() : a.biases[l].contiguous());
    if (l < last && acts.numel() == 0) inner.push_back(padded_zeros(s.B, s.width[l], options));
  }
  const Tensor h[] = {padded_state(a.h0, options), padded_state(a.h0, options)};
  void* const stream = current_stream(a.x.device());
  for_input(s, a, hn.scalar_type(), [&](int64_t begin, int64_t steps, const Tensor& input) {
    for (int64_t t = begin; t < begin + steps; ++t) {
      const A* reads = in<A>(h[t & 1]);
      int64_t ld = Hp, saved = 0;
      for (int l = 0; l <= last; ++l) {
        const int64_t W = padded(s.width[l]);
        DeepLayer<E> p{};
        p.n = s.B, p.units = s.width[l], p.K = w[l].size(1), p.tf32 = products_are_tf32();
        p.w = in<E>(w[l]), p.bias = in<E>(b[l]);
        p.rows = reads, p.ld = ld;
        if (l == 0) p.input = in<A>(input, (t - begin) * s.B * W0);
        p.slope = static_cast<A>(a.negative_slope);
        p.follows = l > 0 || t > begin;
        if (l == last) {
          p.out = out<A>(h[1 - (t & 1)]), p.ldo = Hp;
          p.y = out<E>(y, t * s.H), p.ldy = s.T * s.H;
          p.hn = t + 1 == s.T ? out<A>(hn) : nullptr;
        } else if (inner.empty()) {
          p.out = out<A>(acts, saved + t * W), p.ldo = s.T * W;
          saved += s.T * s.B * W;
        } else {
          p.out = out<A>(inner[l]), p.ldo = W;
        }
        check_launch(deep_layer(p, stream));
        reads = p.out, ld = p.ldo;
      }
    }
  });
}

// What backward leaves: da of each layer [N, padded width], dh0 [B, H]
struct Left {
  std::vector<Tensor> da;
  Tensor dh0;
};

// h before each step: y of the step before, and h0 before the first; [N, H]
Tensor states_before(const DeepSizes& s, const Tensor& h0, const Tensor& y) {
  return at::cat({h0.unsqueeze(1), y.narrow(1, 0, s.T - 1)}, 1).view({s.T * s.B, s.H});
}

template <class E>
void backward_resident(const DeepSizes& s, const DeepBackwardArguments& a, const ResidentPlan& plan,
                       const Tensor& acts, const Left& left) {
  typedef typename ComputeType<E>::type A;
  const at::ScalarType type = accumulation_type(a.deep.x);
  const Tensor dy = dense(a.dy, type), dhn = dense(a.dhn, type);
  const int last = s.depth - 1;
  std::vector<Tensor> products;
  for (int l = last; l >= 0; --l) products.push_back(travelling_weight(s, a.deep.weights, l).t());
  Tensor w;
  auto p = resident_params<ResidentDeepBackward<E>>(s, a.deep, plan, products, w);
  p.dy = in<A>(dy), p.dhn = in<A>(dhn), p.dh0 = out<A>(left.dh0);
  int64_t saved = 0;
  for (int l = 0; l <= last; ++l) {
    const int i = l < last ? last - 1 - l : last;
    p.da[i] = out<E>(left.da[l]), p.ldd[i] = left.da[l].size(1);
    if (l < last) p.acts[i] = in<A>(acts, saved);
    saved += s.T * s.B * p.ldd[i];
  }
  check_launch(resident_deep_backward(p, plan, current_stream(w.device())));
}

template <class E>
void backward_stepwise(const DeepSizes& s, const DeepBackwardArguments& a, const Tensor& acts,
                       const Left& left) {
  typedef typename ComputeType<E>::type A;
  const auto& [da, dh0] = left;
  const at::ScalarType type = accumulation_type(a.deep.x);
  const Tensor dy = dense(a.dy), dhn = dense(a.dhn, type);
  const int last = s.depth - 1;
  std::vector<Tensor> w_t;
  std::vector<int64_t> saved = {0};  // where the activations of each layer begin
  for (int l = 0; l <= last; ++l) {
    w_t.push_back(padded_rows(travelling_weight(s, a.deep.weights, l).t()));
    saved.push_back(saved.back() + s.T * s.B * padded(s.width[l]));
  }
  void* const stream = current_stream(acts.device());
  for (int64_t t = s.T - 1; t >= -1; --t) {
    const auto da_of = [&](int l, int64_t time) { return out<E>(da[l], time * da[l].size(1)); };
    DeepStateBackward<E> p{};
    p.n = s.B, p.units = s.H, p.K = t + 1 < s.T ? w_t[0].size(1) : 0, p.tf32 = products_are_tf32();
    p.w_t = in<E>(w_t[0]), p.below = da_of(0, std::min(t + 1, s.T - 1)), p.ld = s.T * da[0].size(1);
    p.dhn = in<A>(dhn), p.dh0 = out<A>(dh0);
    p.ldy = s.T * s.H;
    p.follows = t + 1 < s.T;
    if (t >= 0) {
      p.dy = in<E>(dy, t * s.H);
      p.da = da_of(last, t), p.ldd = s.T * da[last].size(1);
    }
    check_launch(deep_state_backward(p, stream));
    for (int l = last; t >= 0 && l > 0; --l) {
      const int64_t W = padded(s.width[l - 1]);
      DeepInnerBackward<E> q{};
      q.n = s.B, q.units = s.width[l - 1], q.K = w_t[l].size(1), q.tf32 = products_are_tf32();
      q.w_t = in<E>(w_t[l]), q.above = da_of(l, t), q.ld = s.T * da[l].size(1);
      q.acts = in<A>(acts, saved[l - 1] + t * W), q.lda = s.T * W;
      q.slope = static_cast<A>(a.deep.negative_slope);
      q.da = da_of(l - 1, t), q.ldd = s.T * da[l - 1].size(1);
      check_launch(deep_inner_backward(q, stream));
    }
  }
}

}  // namespace

DeepResult deep_transition(const DeepForwardArguments& a) {
  const Tensor& x = a.deep.x;
  const DeepSizes s = check_deep("rnnfast::deep_transition", a.deep);
  const c10::OptionalDeviceGuard guard(x.device());
  const at::TensorOptions element = x.options().memory_format(at::MemoryFormat::Contiguous);
  const at::TensorOptions options = element.dtype(accumulation_type(x));
  const Tensor y = at::empty({s.B, s.T, s.H}, element), hn = at::empty({s.B, s.H}, options);
  const Tensor acts = at::zeros({a.save ? s.saved : 0}, options);
  const ResidentPlan plan = plan_of("deep_transition", s, x);
  if (s.B > 0)
    run_planned(
        x.scalar_type(), plan, [&](auto e) { forward_resident<decltype(e)>(s, a.deep, plan, y, hn, acts); },
        [&](auto e) { forward_stepwise<decltype(e)>(s, a.deep, y, hn, acts); });
  return {y, hn.to(x.scalar_type()), acts};
}

DeepGradients deep_transition_backward(const DeepBackwardArguments& a) {
  constexpr const char* op = "rnnfast::deep_transition_backward";
  const DeepSizes s = check_deep(op, a.deep);
  check_deep_backward(op, s, a);
  const Tensor& x = a.deep.x;
  const c10::OptionalDeviceGuard guard(x.device());
  const at::ScalarType type = accumulation_type(x), back = x.scalar_type();
  const at::TensorOptions element = x.options().memory_format(at::MemoryFormat::Contiguous);
  const int64_t N = s.T * s.B;
  Left left;
  for (int l = 0; l < s.depth; ++l) left.da.push_back(padded_empty(N, s.width[l], element));
  left.dh0 = at::empty({s.B, s.H}, element.dtype(type));
  const Tensor acts = a.acts.contiguous();
  const ResidentPlan plan = plan_of("deep_transition_backward", s, x);
  if (N > 0)
    run_planned(
        back, plan, [&](auto e) { backward_resident<decltype(e)>(s, a, plan, acts, left); },
        [&](auto e) { backward_stepwise<decltype(e)>(s, a, acts, left); });

  DeepGradients r;
  const Tensor x_rows = x.reshape({N, s.I});
  int64_t offset = 0;
  for (int l = 0; l < s.depth; ++l) {
    const Tensor d = left.da[l].narrow(1, 0, s.width[l]);
    // what layer l read: [x, h], or the activations of the layer under it
    if (l == 0) {
      std::get<0>(r) = a.need_dx ? at::mm(d, a.deep.weights[0].narrow(1, 0, s.I)).view(x.sizes())
                                 : at::empty({0}, x.options());
      std::get<1>(r) = a.need_dh0 ? left.dh0.to(back) : at::empty({0}, x.options());
      std::get<2>(r).push_back(
          at::cat({at::mm(d.t(), x_rows), at::mm(d.t(), states_before(s, a.deep.h0, a.y))}, 1));
    } else {
      const int64_t width = s.width[l - 1], numbers = N * padded(width);
      const Tensor rows = acts.narrow(0, offset, numbers).view({N, padded(width)}).narrow(1, 0, width);
      std::get<2>(r).push_back(at::mm(d.t(), rows.to(back)));
      offset += numbers;
    }
    if (!a.deep.biases.empty()) std::get<3>(r).push_back(d.sum(0, false, type).to(back));
  }
  return r;
}

}  // namespace rnnfast::cuda
