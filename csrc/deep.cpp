// The deep-transition RNN's ops on the CPU. The recurrence is a kernel of csrc/cpu, and so are the big
// products that make the gradients.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "check.h"
#include "launch.h"
#include "walk.h"

namespace rnnfast {
namespace {

// Everything in the accumulation dtype and dense, and the arrays that DeepParams points to
struct DeepTensors {
  Tensor x, h0, y, hn, acts, dy, dhn, dh0;
  std::vector<Tensor> w, b, da;
  WalkStorage walk;
};

DeepTensors convert(const DeepSizes& s, at::ScalarType type, const Tensor& x, const Tensor& h0,
                    at::TensorList weights, at::TensorList biases) {
  DeepTensors t;
  t.x = dense(x, type);
  t.h0 = dense(h0, type);
  for (const Tensor& w : weights) t.w.push_back(dense(w, type));
  for (const Tensor& b : biases) t.b.push_back(dense(b, type));
  t.walk = WalkStorage::dense(s.T, s.B, /*batch_first=*/true);
  return t;
}

Shape shape_of(const DeepSizes& s, const Kernels& k, bool wide, bool backward) {
  int64_t units = s.H, reads = 0;
  for (int l = 0; l < s.depth; ++l) units = std::max(units, s.width[l]);
  for (int l = 0; l < s.depth; ++l) reads += s.width[l] * (l ? s.width[l - 1] : s.H);
  return {s.T,
          s.B,
          s.T * s.B,
          backward ? 0 : s.I,
          units,
          reads / units,
          1,
          s.depth,
          k.vector_bytes / (wide ? 8 : 4),
          backward};
}

template <class A>
A* data(const Tensor& t) {
  return t.defined() && t.numel() ? t.mutable_data_ptr<A>() : nullptr;
}

template <class A>
void run_deep(const Kernels& k, const DeepSizes& s, const DeepTensors& t, double slope, bool backward) {
  DeepParams<A> p{};
  p.walk = t.walk.walk;
  p.I = s.I, p.H = s.H, p.depth = s.depth;
  p.slope = static_cast<A>(slope);
  p.x = data<A>(t.x), p.h0 = data<A>(t.h0), p.y = data<A>(t.y), p.hn = data<A>(t.hn);
  p.dy = data<A>(t.dy), p.dhn = data<A>(t.dhn), p.dh0 = data<A>(t.dh0);
  A* acts = data<A>(t.acts);
  for (int l = 0; l < s.depth; ++l) {
    p.width[l] = s.width[l];
    p.w[l] = data<A>(t.w[l]);
    p.b[l] = t.b.empty() ? nullptr : data<A>(t.b[l]);
    p.da[l] = backward ? data<A>(t.da[l]) : nullptr;
    p.acts[l] = acts && l + 1 < s.depth ? acts : nullptr;
    if (p.acts[l]) acts += s.T * s.B * padded(s.width[l]);
  }
  const auto kernel = backward ? k.of(A()).deep_backward : k.of(A()).deep_forward;
  launch(backward ? "deep_transition_backward" : "deep_transition", shape_of(s, k, sizeof(A) == 8, backward),
         sizeof(A) == 4, [&](int, Plan plan, void* workspace, Team::Member* member) {
           return kernel(p, plan, workspace, member);
         });
}

}  // namespace

DeepResult deep_transition(const Tensor& x, const Tensor& h0, at::TensorList weights, at::TensorList biases,
                           double negative_slope, bool save) {
  const DeepSizes s = check_deep("rnnfast::deep_transition", x, h0, weights, biases, negative_slope);
  const at::ScalarType type = accumulation_type(x);
  const at::TensorOptions options = x.options().dtype(type);
  DeepTensors t = convert(s, type, x, h0, weights, biases);
  t.y = kept_empty({s.B, s.T, s.H}, options);
  t.hn = at::empty({s.B, s.H}, options);
  const Kernels& k = kernels();
  t.acts = kept_empty({save ? s.saved : 0}, options);
  const int64_t bytes = t.acts.element_size();
  if (!std::all_of(s.width, s.width + s.depth - 1, [&](int64_t n) { return k.fills_padding(n, bytes); }))
    t.acts.zero_();
  if (s.B > 0) (type == at::kDouble ? run_deep<double> : run_deep<float>)(k, s, t, negative_slope, false);
  return {t.y.to(x.scalar_type()), t.hn.to(x.scalar_type()), t.acts};
}

DeepGradients deep_transition_backward(const OptTensor& dy, const OptTensor& dhn, const Tensor& x,
                                       const Tensor& h0, at::TensorList weights, at::TensorList biases,
                                       double negative_slope, const Tensor& y, const Tensor& acts,
                                       bool need_dx, bool need_dh0) {
  constexpr const char* op = "rnnfast::deep_transition_backward";
  const DeepSizes s = check_deep(op, x, h0, weights, biases, negative_slope);
  check_deep_backward(op, s, dy, dhn, x, y, acts);
  const at::ScalarType type = accumulation_type(x), back = x.scalar_type();
  const at::TensorOptions options = x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous);
  const int64_t N = s.T * s.B;
  DeepTensors t = convert(s, type, x, h0, weights, biases);
  t.y = dense(y, type);
  t.acts = acts.contiguous();
  t.dy = dense(dy, type), t.dhn = dense(dhn, type);
  t.dh0 = at::empty({s.B, s.H}, options);
  for (int l = 0; l < s.depth; ++l) t.da.push_back(kept_empty({N, s.width[l]}, options));
  const Kernels& k = kernels();
  if (N > 0) (type == at::kDouble ? run_deep<double> : run_deep<float>)(k, s, t, negative_slope, true);

  DeepGradients r;
  Tensor& dx = std::get<0>(r) = kept_empty({0}, x.options());
  if (need_dx) {
    const Tensor buffer = gradient_buffer(N, s.I, options);
    multiply(k, buffer, t.da[0], t.w[0].narrow(1, 0, s.I), /*accumulate=*/false);
    dx = cast(gradient_of(buffer, s.I).view(x.sizes()), back);
  }
  std::get<1>(r) = need_dh0 ? cast(t.dh0, back) : kept_empty({0}, x.options());
  int64_t offset = 0;
  for (int l = 0; l < s.depth; ++l) {
    // what layer l read: [x, h], or the activations of the layer under it
    Tensor dw, db, *const sums = biases.empty() ? nullptr : &db;
    if (l == 0) {
      Tensor dw_h;
      const auto previous = previous_states(t.walk.walk, t.h0, 0, t.y, 0);
      weight_gradients(
          k, {{t.da[l], t.x.view({N, s.I}), &dw, sums}, {t.da[l], t.h0, &dw_h, nullptr, previous.data()}});
      dw = at::cat({dw, dw_h}, 1);
    } else {
      const int64_t width = s.width[l - 1], numbers = N * padded(width);
      const Tensor below = t.acts.narrow(0, offset, numbers).view({N, padded(width)}).narrow(1, 0, width);
      weight_gradients(k, {{t.da[l], below, &dw, sums}});
      offset += numbers;
    }
    std::get<2>(r).push_back(cast(dw, back));
    if (!biases.empty()) std::get<3>(r).push_back(cast(db, back));
  }
  return r;
}

}  // namespace rnnfast
