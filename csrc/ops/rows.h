// Work on the rows of the CPU's tensors, shared by the team. torch's own copies share their work too, but
// they end when torch's whole pool has come: where others hold the processors that takes some ten
// milliseconds.
#pragma once
#include <ATen/core/Tensor.h>

#include "ops/launch.h"
#include "ops/memory.h"

namespace rnnfast {

// on how many threads `rows` rows of so many numbers are worth being copied
int threads_for_rows(int64_t rows, int64_t numbers);

// f(begin, end) for rows begin .. end - 1, all of which make up 0 .. rows - 1
template <class F>
void share_rows(int64_t rows, int64_t numbers, const F& f) {
  const int parts = threads_for_rows(rows, numbers);
  if (parts == 1) return f(int64_t{0}, rows);
  launch_with(nullptr, {Split::kRows, parts}, /*flush=*/false,
              [&](Plan, void*, Team::Member* member) -> size_t {
                if (member) member->phase([&](int i) { f(rows * i / parts, rows * (i + 1) / parts); });
                return 0;
              });
}

// t.contiguous()
at::Tensor contiguous(const at::Tensor& t);
// t.to(type), by the team where it is of float32 and halves
at::Tensor converted(const at::Tensor& t, at::ScalarType type);
// the same; t.to asks the dispatcher even where there is nothing to do: half a microsecond of a small call
inline at::Tensor cast(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : converted(t, type);
}
// contiguous and in this dtype, or undefined
inline at::Tensor dense(const at::Tensor& t, at::ScalarType type) {
  return t.defined() ? contiguous(cast(t, type)) : t;
}

// zeros in columns begin .. end - 1 of t [rows, columns], whose rows are dense
void clear_columns(const at::Tensor& t, int64_t begin, int64_t end);
// [N, I], whose row index[i] is row i of t [., I], the others zeros
at::Tensor spread_rows(const at::Tensor& t, at::ArrayRef<int64_t> index, int64_t N);

}  // namespace rnnfast
