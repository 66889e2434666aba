// The gradients of a layer from what backward through time leaves; see layer.h.
#include "ops/layer.h"

#include <ATen/ops/zeros.h>

namespace rnnfast {

LayerBackward::LayerBackward(const LayerSizes& sizes, const RecurrentBackwardArguments& a)
    : s(sizes), input(a.layer.x), walk(walk_of(sizes, a.layer.batch_sizes)), wanted(a.needs) {
  const Weights& w = a.layer.weights[0];
  wanted[kDc0] &= s.has_cell;
  for (int64_t d = 0; d < 2; ++d) {
    const bool given[kWeights] = {true, true, w.b_ih.defined(), w.b_hh.defined(), s.projected};
    for (const Weight each : {kWih, kWhh, kBih, kBhh, kWhr})
      wanted[place_of(d, each)] &= d < s.D && given[each];
  }
}

RecurrentGradients LayerBackward::run() {
  RecurrentGradients grads;
  grads[kDh0] = dh0;
  grads[kDc0] = dc0;
  for (int64_t d = 0; d < s.D; ++d) {
    DirectionGradients r;
    if (s.N > 0) {
      r = through_time(d);
    } else {
      r.da = r.dx = at::zeros({0, s.gates * s.H}, y.options());
      r.h_previous = r.dprojected = at::zeros({0, s.P}, y.options());
      r.hidden = at::zeros({0, s.H}, y.options());
    }
    if (wanted[kDx]) add_input_gradient(grads[kDx], r, d);
    weight_gradients(&grads[place_of(d, kWih)], r, d);
  }
  if (s.N == 0) {
    dh0.zero_();
    if (s.has_cell) dc0.zero_();
  }
  if (wanted[kDx]) grads[kDx] = finished(grads[kDx]).view(input.sizes());
  const at::ScalarType type = input.scalar_type();
  for (int i = 0; i < kGradients; ++i) {
    if (!wanted[i])
      grads[i] = empty({0}, type);
    else if (grads[i].scalar_type() != type)
      grads[i] = grads[i].to(type);
  }
  return grads;
}

}  // namespace rnnfast
