// One recurrent layer as the kernels of every device take it: what they read and write, and, of backward, how
// the gradients are made of what they leave.
#pragma once
#include "ops/checks.h"
#include "ops/ops.h"
#include "ops/walk.h"

namespace rnnfast {

inline WalkStorage walk_of(const LayerSizes& s, const Tensor& batch_sizes) {
  return s.packed ? WalkStorage::packed(batch_sizes) : WalkStorage::dense(s.T, s.B, s.batch_first);
}
// for kernels that compute nothing beyond a row's end
inline WalkStorage walk_of(const LayerSizes& s, const Tensor& batch_sizes, const Tensor& lengths) {
  return lengths.defined() ? WalkStorage::ragged(lengths, s.T, s.batch_first) : walk_of(s, batch_sizes);
}

// The weights of both directions, dense: matrices as matrix(w) makes them, biases as bias(b) does; of both,
// None stays None.
template <class Matrix, class Bias>
std::array<WeightsOf<Tensor>, 2> converted(const std::array<Weights, 2>& weights, const Matrix& matrix,
                                           const Bias& bias) {
  const auto direction = [&](const Weights& w) -> WeightsOf<Tensor> {
    return {matrix(w.w_ih), matrix(w.w_hh), bias(w.b_ih), bias(w.b_hh), matrix(w.w_hr)};
  };
  return {direction(weights[0]), direction(weights[1])};
}
inline Weights as_read(const WeightsOf<Tensor>& w) { return {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr}; }

// Where the gradient of a weight stands among those of a layer
enum Weight { kWih, kWhh, kBih, kBhh, kWhr };
constexpr int place_of(int64_t direction, Weight w) {
  return kFirstWeight + kWeights * static_cast<int>(direction) + w;
}
constexpr int kDx = 0, kDh0 = 1, kDc0 = 2;

// which gradients are needed, of tensors that were given
std::array<bool, kGradients> wanted_gradients(const LayerSizes& s, const RecurrentBackwardArguments& a);
inline bool wants(const std::array<bool, kGradients>& wanted, int64_t direction, Weight w) {
  return wanted[place_of(direction, w)];
}

// What backward through time leaves of one direction, of the N rows of its walk
struct DirectionGradients {
  Tensor da;          // [N, G H]: dL/d(W_hh h + b_hh)
  Tensor dx;          // [N, G H]: dL/d(W_ih x + b_ih); da itself where both are the same
  Tensor h_previous;  // [N, P]: the state each row started from; on a GPU
  Tensor dprojected;  // [N, P]: dL/dh before the projection, and
  Tensor hidden;      // [N, H]: o tanh(c), what it multiplies; of a projection
};

// Backward: dense tensors, in the dtypes that the kernel reads. A device gives what is virtual.
class LayerBackward {
 public:
  LayerBackward(const LayerSizes& sizes, const RecurrentBackwardArguments& a, WalkStorage rows);
  virtual ~LayerBackward() = default;
  RecurrentGradients run();

  Walk direction(int64_t d) const { return reversed(walk.walk, d == 1); }
  bool wants(int64_t d, Weight w) const { return rnnfast::wants(wanted, d, w); }

  const LayerSizes s;
  const Tensor& input;  // x as it came
  const EpisodeArguments& episodes;
  const WalkStorage walk;  // of the direction that begins with the first step
  const std::array<bool, kGradients> wanted;
  std::array<WeightsOf<Tensor>, 2> weights;
  Tensor x;                   // [., I], of which the walk tells the rows
  Tensor h0, c0;              // [D, B, P], [D, B, H] or None
  Tensor y, dy;               // output_shape(s); dy may be None
  Tensor dcs;                 // cells_shape(s) or None
  Tensor dhn, dcn;            // [D, B, P], [D, B, H], or None
  Tensor gates, cells;        // as forward saved them
  Tensor dh0, dc0;            // [D, B, P], [D, B, H] or None: made by the kernel
  Tensor dreset_h, dreset_c;  // the same; None without resets

 protected:
  // one direction; there are rows
  virtual DirectionGradients through_time(int64_t d) = 0;
  // dx += r.dx W_ih of direction d, or = where d is the first
  virtual void add_input_gradient(Tensor& dx, const DirectionGradients& r, int64_t d) = 0;
  // those of direction d that are wanted, into to[kWih] .. to[kWhr]
  virtual void weight_gradients(Tensor* to, const DirectionGradients& r, int64_t d) = 0;
  virtual Tensor finished(const Tensor& dx) = 0;  // of x's size, dense
  virtual Tensor empty(at::IntArrayRef size, at::ScalarType type) const = 0;
};

}  // namespace rnnfast
