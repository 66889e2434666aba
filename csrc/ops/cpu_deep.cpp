// The deep-transition RNN's ops on the CPU. The recurrence is a kernel of csrc/cpu, and so are the big
// products that make the gradients.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/checks.h"
#include "ops/gradients.h"
#include "ops/launch.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/walk.h"

namespace rnnfast::cpu {
namespace {

// Everything in the accumulation dtype and dense, and the arrays that DeepParams points to
struct DeepTensors {
  Tensor x, h0, y, hn, acts, dy, dhn, dh0;
  std::vector<Tensor> w, b, da;
  WalkStorage walk;
};

DeepTensors convert(const DeepSizes& s, at::ScalarType type, const DeepArguments& a) {
  DeepTensors t;
  t.x = dense(a.x, type);
  t.h0 = dense(a.h0, type);
  for (const Tensor& w : a.weights) t.w.push_back(dense(w, type));
  for (const Tensor& b : a.biases) t.b.push_back(dense(b, type));
  t.walk = WalkStorage::dense(s.T, s.B, /*batch_first=*/true);
  return t;
}

Shape shape_of(const DeepSizes& s, const Kernels& k, bool wide, bool backward) {
  int64_t units = s.H, reads = 0;
  for (int l = 0; l < s.depth; ++l) units = std::max(units, s.width[l]);
  for (int l = 0; l < s.depth; ++l) reads += s.width[l] * (l ? s.width[l - 1] : s.H);
  Shape shape{s.T,
              s.B,
              s.T * s.B,
              backward ? 0 : s.I,
              units,
              reads / units,
              1,
              s.depth,
              k.vector_bytes / (wide ? 8 : 4),
              backward};
  shape.products = wide ? 0 : k.products;
  return shape;
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

DeepResult deep_transition(const DeepForwardArguments& a) {
  const DeepArguments& d = a.deep;
  const DeepSizes s = check_deep("rnnfast::deep_transition", d);
  const at::ScalarType type = accumulation_type(d.x);
  const at::TensorOptions options = d.x.options().dtype(type);
  DeepTensors t = convert(s, type, d);
  t.y = kept_empty({s.B, s.T, s.H}, options);
  t.hn = at::empty({s.B, s.H}, options);
  const Kernels& k = kernels_for(s.B, s.H, s.T, d.x.scalar_type());
  t.acts = kept_empty({a.save ? s.saved : 0}, options);
  const int64_t bytes = t.acts.element_size();
  if (!std::all_of(s.width, s.width + s.depth - 1, [&](int64_t n) { return k.fills_padding(n, bytes); }))
    t.acts.zero_();
  if (s.B > 0) (type == at::kDouble ? run_deep<double> : run_deep<float>)(k, s, t, d.negative_slope, false);
  return {t.y.to(d.x.scalar_type()), t.hn.to(d.x.scalar_type()), t.acts};
}

DeepGradients deep_transition_backward(const DeepBackwardArguments& a) {
  constexpr const char* op = "rnnfast::deep_transition_backward";
  const Tensor& x = a.deep.x;
  const DeepSizes s = check_deep(op, a.deep);
  check_deep_backward(op, s, a);
  const at::ScalarType type = accumulation_type(x), back = x.scalar_type();
  const at::TensorOptions options = x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous);
  const int64_t N = s.T * s.B;
  DeepTensors t = convert(s, type, a.deep);
  t.y = dense(a.y, type);
  t.acts = a.acts.contiguous();
  t.dy = dense(a.dy, type), t.dhn = dense(a.dhn, type);
  t.dh0 = at::empty({s.B, s.H}, options);
  for (int l = 0; l < s.depth; ++l) t.da.push_back(kept_empty({N, s.width[l]}, options));
  const Kernels& k = kernels_for(s.B, s.H, s.T, back);
  if (N > 0) (type == at::kDouble ? run_deep<double> : run_deep<float>)(k, s, t, a.deep.negative_slope, true);

  DeepGradients r;
  Tensor& dx = std::get<0>(r) = kept_empty({0}, x.options());
  if (a.need_dx) {
    const Tensor buffer = gradient_buffer(N, s.I, options);
    multiply(k, buffer, t.da[0], t.w[0].narrow(1, 0, s.I), /*accumulate=*/false);
    dx = cast(gradient_of(buffer, s.I).view(x.sizes()), back);
  }
  std::get<1>(r) = a.need_dh0 ? cast(t.dh0, back) : kept_empty({0}, x.options());
  int64_t offset = 0;
  for (int l = 0; l < s.depth; ++l) {
    // what layer l read: [x, h], or the activations of the layer under it
    Tensor dw, db, *const sums = t.b.empty() ? nullptr : &db;
    if (l == 0) {
      Tensor dw_h;
      const auto previous = previous_states(t.walk.walk, bytes_of(t.h0), bytes_of(t.y));
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
    if (!t.b.empty()) std::get<3>(r).push_back(cast(db, back));
  }
  return r;
}

}  // namespace rnnfast::cpu
