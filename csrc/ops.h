// The signatures of the ops: what layer.cpp and deep.cpp implement, autograd.cpp wraps and ops.cpp registers.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace rnnfast {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

using RecurrentResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
RecurrentResult recurrent(std::string_view mode, const Tensor& x, const Tensor& h0, const OptTensor& c0,
                          const Tensor& w_ih, const Tensor& w_hh, const OptTensor& b_ih,
                          const OptTensor& b_hh, const OptTensor& w_hr, const OptTensor& w_ih_r,
                          const OptTensor& w_hh_r, const OptTensor& b_ih_r, const OptTensor& b_hh_r,
                          const OptTensor& w_hr_r, const OptTensor& batch_sizes, bool batch_first, bool save,
                          const OptTensor& lengths, const OptTensor& resets, const OptTensor& h_mask,
                          const OptTensor& zoneout_mask);

// x h0 c0, then the five weights of each direction
constexpr int kGradients = 13;
using RecurrentGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                      Tensor, Tensor, Tensor, Tensor>;
RecurrentGradients recurrent_backward(const OptTensor& dy, const OptTensor& dhn, const OptTensor& dcn,
                                      std::string_view mode, const Tensor& x, const Tensor& h0,
                                      const OptTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                                      const OptTensor& b_ih, const OptTensor& b_hh, const OptTensor& w_hr,
                                      const OptTensor& w_ih_r, const OptTensor& w_hh_r,
                                      const OptTensor& b_ih_r, const OptTensor& b_hh_r,
                                      const OptTensor& w_hr_r, const OptTensor& batch_sizes, bool batch_first,
                                      const Tensor& y, const Tensor& gates, const Tensor& cells,
                                      std::array<bool, kGradients> needs);

using DeepResult = std::tuple<Tensor, Tensor, Tensor>;
DeepResult deep_transition(const Tensor& x, const Tensor& h0, at::TensorList weights, at::TensorList biases,
                           double negative_slope, bool save);

using DeepGradients = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;
DeepGradients deep_transition_backward(const OptTensor& dy, const OptTensor& dhn, const Tensor& x,
                                       const Tensor& h0, at::TensorList weights, at::TensorList biases,
                                       double negative_slope, const Tensor& y, const Tensor& acts,
                                       bool need_dx, bool need_dh0);

// the same on a GPU: cuda_layer.cpp and cuda_deep.cpp
namespace cuda {
decltype(rnnfast::recurrent) recurrent;
decltype(rnnfast::recurrent_backward) recurrent_backward;
decltype(rnnfast::deep_transition) deep_transition;
decltype(rnnfast::deep_transition_backward) deep_transition_backward;
}  // namespace cuda

// an op as the dispatcher has it, with all its keys
template <class F>
c10::TypedOperatorHandle<F> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

}  // namespace rnnfast
