// The gradients of a layer from what backward through time leaves; see layer.h.
#include "ops/layer.h"

#include <ATen/ops/zeros.h>

#include "ops/rows.h"

namespace rnnfast {

std::array<bool, kGradients> wanted_gradients(const LayerSizes& s, const RecurrentBackwardArguments& a) {
  std::array<bool, kGradients> wanted = a.needs;
  const Weights& w = a.layer.weights[0];
  wanted[kDc0] &= s.has_cell;
  wanted[kDresetH] &= a.episodes.reset_h.defined();
  wanted[kDresetC] &= a.episodes.reset_c.defined();
  for (int64_t d = 0; d < 2; ++d) {
    const bool given[kWeights] = {true, true, w.b_ih.defined(), w.b_hh.defined(), s.projected};
    for (const Weight each : {kWih, kWhh, kBih, kBhh, kWhr})
      wanted[place_of(d, each)] &= d < s.D && given[each];
  }
  return wanted;
}

LayerBackward::LayerBackward(const LayerSizes& sizes, const RecurrentBackwardArguments& a, WalkStorage rows)
    : s(sizes),
      input(a.layer.x),
      episodes(a.episodes),
      walk(std::move(rows)),
      wanted(wanted_gradients(sizes, a)) {}

RecurrentGradients LayerBackward::run() {
  RecurrentGradients grads;
  const int64_t N = walk.walk.total;
  for (int64_t d = 0; d < s.D; ++d) {
    DirectionGradients r;
    if (N > 0) {
      r = through_time(d);
    } else {
      r.da = r.dx = at::zeros({0, s.gates * s.H}, y.options());
      r.h_previous = r.dprojected = at::zeros({0, s.P}, y.options());
      r.hidden = at::zeros({0, s.H}, y.options());
    }
    if (wanted[kDx]) add_input_gradient(grads[kDx], r, d);
    weight_gradients(&grads[place_of(d, kWih)], r, d);
  }
  if (N == 0) {  // no row has a step
    const auto handed_through = [](const Tensor& to, const Tensor& from) {
      if (to.defined()) from.defined() ? to.copy_(from) : to.zero_();
    };
    handed_through(dh0, dhn);
    handed_through(dc0, dcn);
  }
  grads[kDh0] = dh0;
  grads[kDc0] = dc0;
  // one state that serves the whole batch gets what all rows give
  const auto of_reset = [&](const Tensor& of_rows, const Tensor& given) {
    return given.size(1) == s.B ? of_rows : of_rows.sum(1, /*keepdim=*/true);
  };
  if (wanted[kDresetH]) grads[kDresetH] = of_reset(dreset_h, episodes.reset_h);
  if (wanted[kDresetC]) grads[kDresetC] = of_reset(dreset_c, episodes.reset_c);
  if (wanted[kDx]) grads[kDx] = finished(grads[kDx]).view(input.sizes());
  const at::ScalarType type = input.scalar_type();
  for (int i = 0; i < kGradients; ++i) {
    if (!wanted[i])
      grads[i] = empty({0}, type);
    else
      grads[i] = cast(grads[i], type);
  }
  return grads;
}

}  // namespace rnnfast
