// The only step of a call on a GPU, in one launch for each direction, backward in two; see plan.cpp for which
// calls that is.
#pragma once
#include <ATen/ops/sum.h>

#include "cuda/kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/layer.h"
#include "ops/rows.h"

namespace rnnfast::cuda {

// What the op returns, each state in x's dtype
struct SingleResults {
  Tensor y, hn, cn;     // output_shape(s), [D, B, H], [D, B, H] or empty
  Tensor gates, cells;  // saved for backward, or empty
  Tensor cs;            // cells_shape(s) or empty
};

// The tensors of a call as its launches read them
template <class E>
class SingleCall {
 public:
  SingleCall(const LayerSizes& sizes, const LayerArguments& l, const EpisodeArguments& episodes)
      : s(sizes),
        x(l.x.contiguous()),
        h0(dense(l.h0)),
        c0(dense(l.c0)),
        anew(dense(episodes.resets)),
        reset_h(dense(episodes.reset_h)),
        reset_c(dense(episodes.reset_c)) {
    const auto as_rows = [](const Tensor& t) { return dense(t); };
    weights = converted(l.weights, as_rows, as_rows);
  }

  // of direction d
  void fill(SingleLayer<E>& p, int64_t d) const {
    // of each direction, and from row to row: one may serve all
    const auto numbers = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
    const auto ld = [&](const Tensor& t) { return t.defined() && t.size(1) > 1 ? s.H : 0; };
    p.B = s.B, p.I = s.I, p.H = s.H, p.Hp = padded(s.H);
    p.x = in<E>(x), p.h0 = in<E>(h0, d * s.B * s.H), p.c0 = in<E>(c0, d * s.B * s.H);
    p.w_ih = in<E>(weights[d].w_ih), p.w_hh = in<E>(weights[d].w_hh);
    p.anew = in<bool>(anew);
    p.reset_h = in<E>(reset_h, d * numbers(reset_h)), p.reset_c = in<E>(reset_c, d * numbers(reset_c));
    p.ld_reset_h = ld(reset_h), p.ld_reset_c = ld(reset_c);
  }

  const LayerSizes& s;
  std::array<WeightsOf<Tensor>, 2> weights;
  const Tensor x, h0, c0, anew, reset_h, reset_c;
};

template <class E>
void run_single(const LayerSizes& s, const RecurrentArguments& a, const SingleResults& to) {
  typedef typename ComputeType<E>::type A;
  const SingleCall<E> call(s, a.layer, a.episodes);
  for (int64_t d = 0; d < s.D; ++d) {
    SingleStep<E> p{};
    call.fill(p, d);
    p.tf32 = tf32_allowed();
    p.b_ih = in<E>(call.weights[d].b_ih), p.b_hh = in<E>(call.weights[d].b_hh);
    p.y = out<E>(to.y, d * s.H), p.ldy = s.D * s.H;
    p.hn = out<E>(to.hn, d * s.B * s.H), p.cn = out<E>(to.cn, d * s.B * s.H);
    p.cs = out<E>(to.cs, d * s.H), p.ldc = s.D * s.H;
    p.gates = out<A>(to.gates, d * s.B * s.slots * p.Hp), p.cells = out<A>(to.cells, d * s.B * p.Hp);
    check_launch(single_step<E>(s.mode, p, current_stream(a.layer.x.device())));
  }
}

template <class E>
RecurrentGradients run_single_backward(const LayerSizes& s, const RecurrentBackwardArguments& a) {
  typedef typename ComputeType<E>::type A;
  const LayerArguments& l = a.layer;
  const SingleCall<E> call(s, l, a.episodes);
  const auto wanted = wanted_gradients(s, a);
  const Tensor dy = dense(a.dy), dcs = dense(a.dcs), dhn = dense(a.dhn), dcn = dense(a.dcn);
  const Tensor gates = a.gates.contiguous(), cells = a.cells.contiguous();
  const at::TensorOptions element = call.x.options().memory_format(at::MemoryFormat::Contiguous);
  const auto [I, H, GH] = std::tuple{s.I, s.H, s.gates * s.H};

  RecurrentGradients grads;
  const auto make_of = [&](int place, at::IntArrayRef size, const at::TensorOptions& options) {
    grads[place] = wanted[place] ? at::empty(size, options) : at::empty({0}, element);
  };
  const auto make = [&](int place, at::IntArrayRef size) { make_of(place, size, element); };
  const at::TensorOptions unrounded = element.dtype(accumulation_type(call.x));
  make(kDx, l.x.sizes());
  make(kDh0, {s.D, s.B, H}), make(kDc0, {s.D, s.B, H});
  for (const int place : {kDresetH, kDresetC}) make_of(place, {s.D, s.B, H}, unrounded);
  for (int64_t d = 0; d < 2; ++d) {
    make(place_of(d, kWih), {GH, I}), make(place_of(d, kWhh), {GH, H});
    make(place_of(d, kBih), {GH}), make(place_of(d, kBhh), {GH}), make(place_of(d, kWhr), {0});
  }
  // of a tile of 8 rows, and of a cell with a slot more than gates twice
  const int64_t tiles = (s.B + kSingleTile - 1) / kSingleTile;
  const Tensor turned = at::empty({s.slots > s.gates ? 2 : 1, tiles, GH, kSingleTile}, unrounded);
  for (int64_t d = 0; d < s.D; ++d) {
    const int64_t state = d * s.B * H, row = d * H;
    SingleBackward<E> p{};
    call.fill(p, d);
    p.dy = in<E>(dy, row), p.dcs = in<E>(dcs, row), p.ldy = p.ldc = s.D * H;
    p.dhn = in<E>(dhn, state), p.dcn = in<E>(dcn, state);
    p.gates = in<A>(gates, d * s.B * s.slots * p.Hp);
    p.cells = s.has_cell ? in<A>(cells, d * s.B * p.Hp) : nullptr;
    p.da = out<A>(turned[0]), p.dg = out<A>(turned[-1]);
    p.adds = d > 0;
    p.dx = out<E>(grads[kDx]), p.dh0 = out<E>(grads[kDh0], state), p.dc0 = out<E>(grads[kDc0], state);
    p.dreset_h = out<A>(grads[kDresetH], state), p.dreset_c = out<A>(grads[kDresetC], state);
    const auto of_weight = [&](Weight w) { return out<E>(grads[place_of(d, w)]); };
    p.dw_ih = of_weight(kWih), p.dw_hh = of_weight(kWhh), p.db_ih = of_weight(kBih),
    p.db_hh = of_weight(kBhh);
    check_launch(single_backward<E>(s.mode, p, current_stream(l.x.device())));
  }
  // one state that serves the whole batch gets what all rows give
  const auto of_reset = [&](int place, const Tensor& given) {
    if (wanted[place] && given.size(1) < s.B) grads[place] = grads[place].sum(1, /*keepdim=*/true);
    grads[place] = cast(grads[place], call.x.scalar_type());
  };
  of_reset(kDresetH, a.episodes.reset_h), of_reset(kDresetC, a.episodes.reset_c);
  return grads;
}

}  // namespace rnnfast::cuda
