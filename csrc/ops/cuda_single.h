// The only step of a call on a GPU, in one launch for each direction; see plan.cpp for which calls that is.
#pragma once
#include "cuda/kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/layer.h"

namespace rnnfast::cuda {

// What the op returns, each state in x's dtype
struct SingleResults {
  Tensor y, hn, cn;     // output_shape(s), [D, B, H], [D, B, H] or empty
  Tensor gates, cells;  // saved for backward, or empty
  Tensor cs;            // cells_shape(s) or empty
};

template <class E>
void run_single(const LayerSizes& s, const RecurrentArguments& a, const SingleResults& to) {
  typedef typename ComputeType<E>::type A;
  const LayerArguments& l = a.layer;
  const EpisodeArguments& episodes = a.episodes;
  const auto dense = [](const Tensor& t) { return cuda::dense(t); };
  const auto weights = converted(l.weights, dense, dense);
  const Tensor x = l.x.contiguous(), h0 = dense(l.h0), c0 = dense(l.c0), anew = dense(episodes.resets);
  const Tensor reset_h = dense(episodes.reset_h), reset_c = dense(episodes.reset_c);
  const int64_t Hp = padded(s.H);
  // of each direction, and from row to row: one may serve all
  const auto numbers = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const auto ld = [&](const Tensor& t) { return t.defined() && t.size(1) > 1 ? s.H : 0; };
  SingleStep<E> p{};
  p.B = s.B, p.I = s.I, p.H = s.H, p.Hp = Hp;
  p.tf32 = tf32_allowed();
  p.x = in<E>(x);
  p.anew = in<bool>(anew);
  p.ld_reset_h = ld(reset_h), p.ld_reset_c = ld(reset_c);
  p.ldy = p.ldc = s.D * s.H;
  for (int64_t d = 0; d < s.D; ++d) {
    const WeightsOf<Tensor>& w = weights[d];
    p.h0 = in<E>(h0, d * s.B * s.H), p.c0 = in<E>(c0, d * s.B * s.H);
    p.w_ih = in<E>(w.w_ih), p.w_hh = in<E>(w.w_hh), p.b_ih = in<E>(w.b_ih), p.b_hh = in<E>(w.b_hh);
    p.reset_h = in<E>(reset_h, d * numbers(reset_h)), p.reset_c = in<E>(reset_c, d * numbers(reset_c));
    p.y = out<E>(to.y, d * s.H);
    p.hn = out<E>(to.hn, d * s.B * s.H), p.cn = out<E>(to.cn, d * s.B * s.H);
    p.cs = out<E>(to.cs, d * s.H);
    p.gates = out<A>(to.gates, d * s.B * s.slots * Hp), p.cells = out<A>(to.cells, d * s.B * Hp);
    check_launch(single_step<E>(s.mode, p, current_stream(x.device())));
  }
}

}  // namespace rnnfast::cuda
