// The products over all time steps that the CPU's gradients are made of, by kernels of csrc/cpu.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/dispatch.h"

namespace rnnfast {

// C = A B (or C += A B), for gradients: a [M, K] and b [K, N] may have padded rows; c is of gradient_buffer's
// making. a and b are of one dtype, which the kernels have, c float where that is bfloat16.
void multiply(const Kernels& k, const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
              bool accumulate);
at::Tensor gradient_buffer(int64_t M, int64_t N, const at::TensorOptions& options);  // [M, padded(N)]
at::Tensor gradient_of(const at::Tensor& buffer, int64_t N);                         // [M, N]

// dW [M, N] = A^T B of a [K, M] and b [K, N], and db [M], the sums of A's columns, unless it is null. With
// `rows` row k of B is rows[k], as long as one of b.
struct WeightGradient {
  at::Tensor a, b;
  at::Tensor *dw, *db;
  const void* const* rows = nullptr;
};
void weight_gradients(const Kernels& k, at::ArrayRef<WeightGradient> gradients);

}  // namespace rnnfast
