// One kernel call from the torch side: plan, workspace, team; and the record of what ran last.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/plan.h"

namespace rnnfast {

// What the last call in this process did: for tests and rnnfast.info
struct LastRun {
  std::string op;  // "recurrent", "recurrent_backward", ...
  std::string isa, split;
  int parts = 0, wanted = 0, members = 0;
};
LastRun last_run();

// "" lets the plan choose. RNNFAST_SPLIT forces from the start. Throws std::runtime_error for another name.
void set_split(const std::string& name);
std::string forced_split();

// The plan of a call: make_plan's, or the forced one.
Plan choose_plan(Shape shape);

// op null: not recorded
using Call = size_t (*)(const void* context, Plan plan, void* workspace, Team::Member* member);
void launch_raw(const char* op, Plan plan, bool flush, Call call, const void* context);

// call(plan, workspace, member) is a row of KernelsOf with its parameters bound
template <class F>
void launch_with(const char* op, Plan plan, bool flush, const F& call) {
  launch_raw(
      op, plan, flush,
      [](const void* context, Plan how, void* workspace, Team::Member* member) {
        return (*static_cast<const F*>(context))(how, workspace, member);
      },
      &call);
}

// All directions of a shape, one after the other or side by side: call takes the first one of a launch before
// all else.
template <class F>
void launch(const char* op, const Shape& shape, bool flush, const F& call) {
  const Plan plan = choose_plan(shape);
  for (int d = 0; d < shape.directions; d += plan.directions())
    launch_with(op, plan, flush, [&](Plan how, void* workspace, Team::Member* member) {
      return call(d, how, workspace, member);
    });
}

// at::empty whose large blocks are kept when the tensor has ended, up to 1 GiB of them: a training step on
// fresh pages takes a quarter longer, because every page is faulted in when it is first touched.
at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options);
// gives them back to the allocator: how many bytes
int64_t empty_cache();

// t.to(type), which asks the dispatcher even where there is nothing to do: half a microsecond of a small call
inline at::Tensor cast(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

// dense and in this dtype, or undefined
inline at::Tensor dense(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type && t.is_contiguous() ? t : t.to(type).contiguous();
}
inline at::Tensor dense(const std::optional<at::Tensor>& t, at::ScalarType type) {
  return t ? dense(*t, type) : at::Tensor();
}

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
