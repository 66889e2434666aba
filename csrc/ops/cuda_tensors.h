// What the ops of a GPU make of tensors: pointers, padded rows, and the products over many steps at once,
// which are torch's. Names no device, so that it compiles beside a CPU build of torch.
#pragma once
#include <ATen/Context.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <tuple>

#include "cpu/params.h"
#include "ops/arguments.h"

namespace rnnfast::cuda {

inline void* current_stream(const at::Device& device) {
  if (device.is_cpu()) return nullptr;
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

inline void check_launch(const char* error) {
  TORCH_CHECK(!error, "rnnfast: a CUDA kernel did not start: ", error);
}

template <class E>
const E* in(const Tensor& t, int64_t offset = 0) {
  return t.defined() ? static_cast<const E*>(t.const_data_ptr()) + offset : nullptr;
}
template <class E>
E* out(const Tensor& t, int64_t offset = 0) {
  return t.defined() && t.numel() ? static_cast<E*>(t.mutable_data_ptr()) + offset : nullptr;
}

// undefined stays undefined
inline Tensor dense(const Tensor& t) { return t.defined() ? t.contiguous() : t; }
inline Tensor dense(const Tensor& t, at::ScalarType type) {
  return t.defined() ? t.to(type).contiguous() : t;
}

// what the host has made, on the device of `like`: from pinned memory, so that the host does not wait
inline Tensor on_device(const Tensor& t, const Tensor& like) {
  return like.is_cuda() ? t.pin_memory().to(like.device(), /*non_blocking=*/true) : t;
}

// [rows, n] as a product reads it: padded with zeros to so many columns, beginning at a multiple of 16 bytes
inline Tensor padded_rows(const Tensor& t, int64_t columns) {
  const int64_t n = t.size(-1);
  const Tensor dense = n == columns ? t.contiguous() : at::constant_pad_nd(t, {0, columns - n}).contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 ? dense.clone() : dense;
}
inline Tensor padded_rows(const Tensor& t) { return padded_rows(t, padded(t.size(-1))); }

// [rows, padded(n)] of zeros; and with `from` in it
inline Tensor padded_zeros(int64_t rows, int64_t n, const at::TensorOptions& options) {
  return at::zeros({rows, padded(n)}, options);
}
inline Tensor padded_state(const Tensor& from, const at::TensorOptions& options) {
  const Tensor state = padded_zeros(from.size(0), from.size(1), options);
  state.narrow(1, 0, from.size(1)).copy_(from);
  return state;
}

// the same for rows that a kernel fills up to n
inline Tensor padded_empty(int64_t rows, int64_t n, const at::TensorOptions& options) {
  const Tensor t = at::empty({rows, padded(n)}, options);
  t.narrow(1, n, padded(n) - n).zero_();
  return t;
}

// a b of what is stored in 16 bits, in float
inline Tensor wide_product(const Tensor& a, const Tensor& b) {
  return a.is_cuda() ? at::mm(a, b, at::kFloat) : at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

// TF32 where torch lets cuDNN's recurrent layers use it: torch.backends.cudnn.rnn.fp32_precision
inline bool tf32_allowed() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

// whether torch's own products read floats as TF32: torch.backends.cuda.matmul.fp32_precision
inline bool products_are_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// a b. Where floats may be read as TF32 here, but torch's products are to read all of their bits, each float
// is the sum of two bfloat16, high + low, and the product that of the highs and the two mixed ones: nearer
// than TF32, and still made of tensor cores' products, in one call. What is not finite counts in the first
// alone.
inline Tensor product(const Tensor& a, const Tensor& b, bool tf32) {
  if (!tf32 || a.scalar_type() != at::kFloat || products_are_tf32()) return at::mm(a, b);
  const auto split = [](const Tensor& t) {
    const Tensor high = t.to(at::kBFloat16), low = t.sub(high).nan_to_num_(0.0, 0.0, 0.0);
    return std::tuple{high, high.nan_to_num(0.0, 0.0, 0.0), low.to(at::kBFloat16)};
  };
  // turned back where t is turned: rows in memory are copied as rows
  const auto join = [](const Tensor& like, const Tensor& x, const Tensor& y, const Tensor& z, int64_t dim) {
    return like.stride(1) == 1 ? at::cat({x, y, z}, dim) : at::cat({x.t(), y.t(), z.t()}, 1 - dim).t();
  };
  const auto [a_high, a_finite, a_low] = split(a);
  const auto [b_high, b_finite, b_low] = split(b);
  return wide_product(join(a, a_high, a_finite, a_low, 1), join(b, b_high, b_low, b_finite, 0));
}

// x W^T in the compute type, whatever is stored
inline Tensor input_product(const Tensor& x, const Tensor& w, at::ScalarType type, bool tf32) {
  return x.scalar_type() == type ? product(x, w.t(), tf32) : wide_product(x, w.t());
}

// Input products are made for so many steps at once (of so many bytes each): they never take as much memory
// as what is saved. A third of it would stay in the second cache of a Hopper, and save its way to memory and
// back, some 13 microseconds; a further launch, with W loaded anew, costs about as much. Tests make it less.
inline int64_t chunk_bytes = int64_t{64} << 20;
inline int64_t input_chunk(int64_t bytes_of_a_step) {
  return std::max<int64_t>(1, chunk_bytes / bytes_of_a_step);
}

// f(E()) for what a tensor of this dtype stores
template <class F>
auto with_element(at::ScalarType type, const F& f) {
  return type == at::kDouble     ? f(double())
         : type == at::kBFloat16 ? f(Bfloat16())
         : type == at::kHalf     ? f(Half())
                                 : f(float());
}

}  // namespace rnnfast::cuda
