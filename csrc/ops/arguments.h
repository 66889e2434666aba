// The arguments of the ops by name. The dispatcher hands them over on a stack, in the order of the schema
// (schemas.cpp); here each op has a struct whose fields take one after the other, in the same order. Fields
// refer to what lies on the stack. What is None there is an undefined tensor here.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <array>
#include <string_view>
#include <vector>

namespace rnnfast {

using at::Tensor;
using torch::jit::Stack;

inline const Tensor kNone{};

// Takes the arguments of one call from the stack, the first one first.
class Reader {
 public:
  Reader(const c10::OperatorHandle& op, const Stack& stack)
      : next_(stack.data() + stack.size() - op.schema().arguments().size()),
        end_(stack.data() + stack.size()) {}

  const Tensor& tensor() {
    const c10::IValue& value = take();
    return value.isNone() ? kNone : value.toTensor();
  }
  std::vector<Tensor> tensors() { return take().toTensorVector(); }
  std::string_view text() { return take().toStringView(); }
  bool flag() { return take().toBool(); }
  double number() { return take().toDouble(); }
  template <size_t n>
  std::array<bool, n> flags() {
    const c10::List<bool> list = take().toBoolList();
    TORCH_CHECK(list.size() == n, "got ", list.size(), " elements instead of a list of size ", n);
    std::array<bool, n> found{};
    for (size_t i = 0; i < n; ++i) found[i] = list[i];
    return found;
  }

  // after the last field: whether the struct has as many as the schema
  void finish() const { TORCH_INTERNAL_ASSERT(next_ == end_, "arguments that no field takes"); }

 private:
  const c10::IValue& take() {
    TORCH_INTERNAL_ASSERT(next_ < end_, "more fields than arguments");
    return *next_++;
  }

  const c10::IValue* next_;
  const c10::IValue* const end_;
};

// The weights of one direction of a layer: G gates, I inputs, H units, P outputs
template <class T>
struct WeightsOf {
  T w_ih;  // [G H, I]
  T w_hh;  // [G H, P]
  T b_ih;  // [G H] or None
  T b_hh;  // [G H] or None
  T w_hr;  // [P, H] or None: no projection, P = H
};
using Weights = WeightsOf<const Tensor&>;

inline Weights next_weights(Reader& next) {
  return {next.tensor(), next.tensor(), next.tensor(), next.tensor(), next.tensor()};
}

// One layer, one or both directions: D directions, T steps, B rows of the batch, N rows of all steps
struct LayerArguments {
  Reader& next;
  std::string_view mode = next.text();  // a name of RNNFAST_CELLS
  const Tensor& x = next.tensor();      // [T, B, I], batch first [B, T, I], or packed [N, I]
  const Tensor& h0 = next.tensor();     // [D, B, P]
  const Tensor& c0 = next.tensor();     // [D, B, H]; None for a cell without c
  // of the direction from the first step on, and of the other one, all None where there is none
  const std::array<Weights, 2> weights{next_weights(next), next_weights(next)};
  const Tensor& batch_sizes = next.tensor();  // int64 [T] on the CPU: x is packed; or None
  bool batch_first = next.flag();
};

// Which steps a row of the batch takes part in, and before which its state begins anew
struct EpisodeArguments {
  Reader& next;
  const Tensor& lengths =
      next.tensor();  // int64 [B]: row b has the first lengths[b] steps; or None: all of them
  const Tensor& resets = next.tensor();   // bool [T, B], batch first [B, T]; or None
  const Tensor& reset_h = next.tensor();  // [D, B or 1, P]: the state before such a step; None: zeros
  const Tensor& reset_c = next.tensor();  // [D, B or 1, H]
};

struct RecurrentArguments {
  Reader& next;
  const LayerArguments layer{next};
  bool save = next.flag();  // what backward reads
  const EpisodeArguments episodes{next};
  bool all_states = next.flag();  // c of every step, too
  // room in the schema for what is not there yet: None
  const Tensor& h_mask = next.tensor();
  const Tensor& zoneout_mask = next.tensor();
};

// x h0 c0, the five weights of each direction, reset_h reset_c: what gets a gradient, in the order of the
// schema
constexpr int kWeights = 5, kFirstWeight = 3, kDresetH = kFirstWeight + 2 * kWeights, kDresetC = kDresetH + 1,
              kGradients = kDresetC + 1;

struct RecurrentBackwardArguments {
  Reader& next;
  const Tensor& dy = next.tensor();   // of y's shape, or None: zeros
  const Tensor& dhn = next.tensor();  // [D, B, P] or None: zeros
  const Tensor& dcn = next.tensor();  // [D, B, H] or None: zeros
  const LayerArguments layer{next};
  const Tensor& y = next.tensor();  // as forward returned them
  const Tensor& gates = next.tensor();
  const Tensor& cells = next.tensor();
  const std::array<bool, kGradients> needs = next.flags<kGradients>();
  const EpisodeArguments episodes{next};
  const Tensor& dcs = next.tensor();  // [T, B, D H] as y, or None: zeros
};

// The deep transition: depth layers of widths W_0, W_1 .. H, over [x, h]
struct DeepArguments {
  Reader& next;
  const Tensor& x = next.tensor();                     // [B, T, I]
  const Tensor& h0 = next.tensor();                    // [B, H]
  const std::vector<Tensor> weights = next.tensors();  // [W_0, I + H], [W_1, W_0] .. [H, W]
  const std::vector<Tensor> biases = next.tensors();   // one for each weight, or none at all
  double negative_slope = next.number();
};

struct DeepForwardArguments {
  Reader& next;
  const DeepArguments deep{next};
  bool save = next.flag();
};

struct DeepBackwardArguments {
  Reader& next;
  const Tensor& dy = next.tensor();   // [B, T, H] or None: zeros
  const Tensor& dhn = next.tensor();  // [B, H] or None: zeros
  const DeepArguments deep{next};
  const Tensor& y = next.tensor();  // as forward returned them
  const Tensor& acts = next.tensor();
  bool need_dx = next.flag();
  bool need_dh0 = next.flag();
};

}  // namespace rnnfast
