// The deep-transition RNN one launch per layer and time step, by the tiles of the recurrent layer.
#pragma once
#include "cuda/kernels.h"
#include "cuda/tiles.cuh"

namespace rnnfast::cuda {

// A task whose tiles are four units each
template <class Params, class Element, class Row>
struct DeepTask {
  typedef Element W;
  typedef typename ComputeType<W>::type A;
  typedef Row R;

  Params p;

  RNNFAST_BOTH int64_t groups() const { return divide_up(p.units, kColumns); }
  RNNFAST_BOTH int64_t rows() const { return p.n; }
  RNNFAST_INLINE int64_t length() const { return p.K; }
  RNNFAST_INLINE const W* turned_column(int64_t group, int c, const W* w) const {
    return w + least(group * kColumns + c, p.units - 1) * p.K;
  }
};

template <class E>
struct DeepLayerTask : DeepTask<DeepLayer<E>, E, typename ComputeType<E>::type> {
  typedef typename ComputeType<E>::type A;
  using DeepTask<DeepLayer<E>, E, A>::p;

  RNNFAST_INLINE const E* column(int64_t group, int c) const { return this->turned_column(group, c, p.w); }
  RNNFAST_INLINE const A* row(int64_t b) const { return p.rows + b * p.ld; }

  RNNFAST_INLINE void finish(A sum, int64_t group, int64_t b, int column) const {
    const int64_t unit = group * kColumns + column;
    if (b >= p.n || unit >= p.units) return;
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

  RNNFAST_INLINE const E* column(int64_t group, int c) const { return this->turned_column(group, c, p.w_t); }
  RNNFAST_INLINE const E* row(int64_t b) const { return p.above + b * p.ld; }

  RNNFAST_INLINE void finish(A sum, int64_t group, int64_t b, int column) const {
    const int64_t unit = group * kColumns + column;
    if (b >= p.n || unit >= p.units) return;
    narrow(leaky_relu_backward(p.acts[b * p.lda + unit], sum, p.slope), p.da[b * p.ldd + unit]);
  }
};

template <class E>
struct DeepStateTask : DeepTask<DeepStateBackward<E>, E, E> {
  typedef typename ComputeType<E>::type A;
  using DeepTask<DeepStateBackward<E>, E, E>::p;

  RNNFAST_INLINE const E* column(int64_t group, int c) const { return this->turned_column(group, c, p.w_t); }
  RNNFAST_INLINE const E* row(int64_t b) const { return p.below + b * p.ld; }

  RNNFAST_INLINE void finish(A sum, int64_t group, int64_t b, int column) const {
    const int64_t unit = group * kColumns + column;
    if (b >= p.n || unit >= p.units) return;
    const int64_t at = b * p.units + unit;
    if (p.K == 0) sum = p.dhn ? p.dhn[at] : A(0);
    if (!p.da) {
      p.dh0[at] = sum;
      return;
    }
    if (p.dy) sum += A(widened(p.dy[b * p.ldy + unit]));
    narrow(sum, p.da[b * p.ldd + unit]);
    narrow(p.before ? A(widened(p.before[b * p.ldy + unit])) : p.h0[at], p.h_previous[b * p.ldh + unit]);
  }
};

template <class E>
const char* deep_layer(const DeepLayer<E>& layer, void* stream) {
  return launch_tiles(DeepLayerTask<E>{{layer}}, stream);
}

template <class E>
const char* deep_inner_backward(const DeepInnerBackward<E>& layer, void* stream) {
  return launch_tiles(DeepInnerTask<E>{{layer}}, stream);
}

template <class E>
const char* deep_state_backward(const DeepStateBackward<E>& layer, void* stream) {
  return launch_tiles(DeepStateTask<E>{{layer}}, stream);
}

}  // namespace rnnfast::cuda
