// The deep-transition RNN one launch per layer and time step, by the tiles of the recurrent layer.
#pragma once
#include "cuda/kernels.h"
#include "cuda/launch_tiles.cuh"

namespace rnnfast::cuda {

template <class Params, class Element, class Row>
struct DeepTask : OfSumsAlone {
  typedef Element W;
  typedef typename ComputeType<W>::type A;
  typedef Row R;
  static constexpr int kSums = 1;

  Params p;

  RNNFAST_BOTH int64_t units() const { return p.units; }
  RNNFAST_BOTH int64_t rows() const { return p.n; }
  RNNFAST_BOTH int64_t length() const { return p.K; }
};

template <class E>
struct DeepLayerTask : DeepTask<DeepLayer<E>, E, typename ComputeType<E>::type> {
  typedef typename ComputeType<E>::type A;
  using DeepTask<DeepLayer<E>, E, A>::p;

  RNNFAST_INLINE const E* weights(int64_t unit, int) const { return p.w + unit * p.K; }
  RNNFAST_INLINE const A* row(int64_t b) const { return p.rows + b * p.ld; }

  RNNFAST_INLINE void finish(const A* sums, const OfSumsAlone::Given&, int64_t unit, int64_t b) const {
    A sum = sums[0];
    if (p.bias) sum += A(widened(p.bias[unit]));
    if (p.input) sum += p.input[b * p.units + unit];
    p.out[b * p.ldo + unit] = p.y ? sum : leaky_relu(sum, p.slope);
    if (p.y) narrow(sum, p.y[b * p.ldy + unit]);
    if (p.hn) p.hn[b * p.units + unit] = sum;
  }
};

template <class E>
struct DeepInnerTask : DeepTask<DeepInnerBackward<E>, E, E> {
  typedef typename ComputeType<E>::type A;
  using DeepTask<DeepInnerBackward<E>, E, E>::p;

  RNNFAST_INLINE const E* weights(int64_t unit, int) const { return p.w_t + unit * p.K; }
  RNNFAST_INLINE const E* row(int64_t b) const { return p.above + b * p.ld; }

  RNNFAST_INLINE void finish(const A* sums, const OfSumsAlone::Given&, int64_t unit, int64_t b) const {
    narrow(leaky_relu_backward(p.acts[b * p.lda + unit], sums[0], p.slope), p.da[b * p.ldd + unit]);
  }
};

template <class E>
struct DeepStateTask : DeepTask<DeepStateBackward<E>, E, E> {
  typedef typename ComputeType<E>::type A;
  using DeepTask<DeepStateBackward<E>, E, E>::p;

  RNNFAST_INLINE const E* weights(int64_t unit, int) const { return p.w_t + unit * p.K; }
  RNNFAST_INLINE const E* row(int64_t b) const { return p.below + b * p.ld; }

  RNNFAST_INLINE void finish(const A* sums, const OfSumsAlone::Given&, int64_t unit, int64_t b) const {
    const int64_t at = b * p.units + unit;
    A sum = sums[0];
    if (p.K == 0) sum = p.dhn ? p.dhn[at] : A(0);
    if (!p.da) {
      p.dh0[at] = sum;
      return;
    }
    if (p.dy) sum += A(widened(p.dy[b * p.ldy + unit]));
    narrow(sum, p.da[b * p.ldd + unit]);
  }
};

template <class E>
const char* deep_layer(const DeepLayer<E>& layer, void* stream) {
  return launch_tiles(DeepLayerTask<E>{{{}, layer}}, layer.follows, stream);
}

template <class E>
const char* deep_inner_backward(const DeepInnerBackward<E>& layer, void* stream) {
  return launch_tiles(DeepInnerTask<E>{{{}, layer}}, /*follows=*/true, stream);
}

template <class E>
const char* deep_state_backward(const DeepStateBackward<E>& layer, void* stream) {
  return launch_tiles(DeepStateTask<E>{{{}, layer}}, layer.follows, stream);
}

}  // namespace rnnfast::cuda
