// A layer's tensors as the CPU's kernels read them, and back. What is little is converted without torch's
// operators, each of which takes a microsecond, as much as a tenth of a step.
#pragma once
#include <type_traits>

#include "cpu/dispatch.h"
#include "ops/arguments.h"
#include "ops/memory.h"

namespace rnnfast::cpu {

// the dtype that the products of a layer of this dtype read; the rest is float, or double
at::ScalarType element_type(const Kernels& k, at::ScalarType layer);

// f(E()) for products that read this dtype
template <class F>
void with_element(at::ScalarType type, const F& f) {
  type == at::kDouble ? f(double()) : type == at::kBFloat16 ? f(Bfloat16()) : f(float());
}

template <class E>
using TorchType = std::conditional_t<std::is_same_v<E, Bfloat16>, at::BFloat16, E>;

template <class E>
const E* in(const Tensor& t, int64_t offset = 0) {
  return t.defined() ? reinterpret_cast<const E*>(t.const_data_ptr<TorchType<E>>()) + offset : nullptr;
}

template <class E>
E* out(const Tensor& t, int64_t offset = 0) {
  return t.defined() && t.numel() ? reinterpret_cast<E*>(t.mutable_data_ptr<TorchType<E>>()) + offset
                                  : nullptr;
}

// Each of these takes a tensor of any dtype of the four, and gives what `t.to(layer).to(type)` does: a layer
// under autocast reads float32 rounded to bfloat16, say. What is so already is given as it is; undefined
// stays undefined.

// t in this dtype, dense
Tensor read_as(const Kernels& k, const Tensor& t, at::ScalarType layer, at::ScalarType type);
// t [.., n] as products read it: dense, of their dtype; rows of bfloat16 are whole lines
Tensor operand(const Kernels& k, const Tensor& t, at::ScalarType layer);
// into `to`, dense and of as many numbers; it may be the same memory
void convert(const Kernels& k, const Tensor& t, at::ScalarType layer, const Tensor& to);

}  // namespace rnnfast::cpu
