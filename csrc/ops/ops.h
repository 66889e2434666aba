// The ops on each device: what cpu_layer.cpp, cpu_deep.cpp and their likes for a GPU implement and
// schemas.cpp registers.
#pragma once
#include <tuple>

#include "ops/arguments.h"

namespace rnnfast {

using RecurrentResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // y hn cn gates cells cs
using RecurrentGradients = std::array<Tensor, kGradients>;
using DeepResult = std::tuple<Tensor, Tensor, Tensor>;  // y hn acts
using DeepGradients = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

namespace cpu {
RecurrentResult recurrent(const RecurrentArguments&);
RecurrentGradients recurrent_backward(const RecurrentBackwardArguments&);
DeepResult deep_transition(const DeepForwardArguments&);
DeepGradients deep_transition_backward(const DeepBackwardArguments&);
}  // namespace cpu

namespace cuda {
decltype(cpu::recurrent) recurrent;
decltype(cpu::recurrent_backward) recurrent_backward;
decltype(cpu::deep_transition) deep_transition;
decltype(cpu::deep_transition_backward) deep_transition_backward;
}  // namespace cuda

}  // namespace rnnfast
