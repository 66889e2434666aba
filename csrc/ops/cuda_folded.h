// A layer with a projection for the resident kernels, which know none. With m = o tanh(c) and h = W_hr m, of
// every step but the first W_hh h is (W_hh W_hr) m: so it is a layer of H units without a projection, whose
// W_hh is that product, and whose output is m. What h0 gives to the first step of a row is added to what x
// gives there; y = W_hr m, and all that backward needs of h, are products over all steps at once.
#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <vector>

#include "ops/cuda_tensors.h"
#include "ops/layer.h"

namespace rnnfast::cuda {

// a b of what is stored, in the compute type
inline Tensor product_in(at::ScalarType type, const Tensor& a, const Tensor& b, bool tf32) {
  return a.scalar_type() == type ? product(a, b, tf32) : wide_product(a, b);
}

// W_hh of a layer, [G H, P], or W_hh W_hr, [G H, H], in its dtype; what float16 cannot hold is its largest
// number
inline Tensor recurrent_weight(const Tensor& w_hh, const Tensor& w_hr, bool tf32) {
  if (!w_hr.defined()) return w_hh;
  const at::ScalarType type = w_hh.scalar_type();
  const Tensor folded = product_in(accumulation_type(w_hh), w_hh, w_hr, tf32);
  constexpr double kLargest = 65504;
  return type == at::kHalf ? folded.clamp(-kLargest, kLargest).to(type) : folded.to(type);
}

// f(t, b, n): of time step t the rows b .. b + n - 1 of the batch have their first step there; of the steps
// begin .. end - 1 of a walk
template <class F>
void each_beginning(const Walk& walk, int64_t begin, int64_t end, const F& f) {
  for (int64_t step = begin; step < end; ++step) {
    const int64_t t = walk.time(step), b = walk.begins(t);
    if (b < walk.sizes[t]) f(t, b, walk.sizes[t] - b);
  }
}

inline Tensor index_on(const Tensor& like, at::ArrayRef<int64_t> numbers) {
  const Tensor index = at::empty({static_cast<int64_t>(numbers.size())}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), index.mutable_data_ptr<int64_t>());
  return on_device(index, like);
}

// [B, n]: what each sequence has in its first or last step of the walk, of rows [N, n] in the order of y
inline Tensor of_sequences(const LayerSizes& s, const Walk& walk, const Tensor& rows, bool last) {
  if (s.packed) {
    std::vector<int64_t> from(s.B);
    each_beginning(reversed(walk, walk.reverse != last), 0, s.T, [&](int64_t t, int64_t b, int64_t n) {
      for (int64_t i = b; i < b + n; ++i) from[i] = walk.row(t, i);
    });
    return rows.index_select(0, index_on(rows, from));
  }
  const int64_t ld = rows.stride(0), t = walk.time(last ? s.T - 1 : 0);
  return rows.as_strided({s.B, rows.size(1)}, {walk.row_stride * ld, rows.stride(1)},
                         rows.storage_offset() + walk.row(t, 0) * ld);
}

// Of each row of y, in its order, what `rows` [N, n] has in the step after it, and `last` [B, n] where there
// is none
inline Tensor rows_after(const LayerSizes& s, const Walk& walk, const Tensor& rows, const Tensor& last) {
  if (s.packed) {
    std::vector<int64_t> from(s.N);
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t b = 0; b < walk.sizes[t]; ++b)
        from[walk.row(t, b)] = b >= walk.ends(t) ? b : s.B + walk.row(walk.reverse ? t - 1 : t + 1, b);
    return at::index_select(at::cat({last, rows}), 0, index_on(rows, from));
  }
  const int64_t time = s.batch_first ? 1 : 0;
  const Tensor steps = rows.view({s.batch_first ? s.B : s.T, s.batch_first ? s.T : s.B, rows.size(1)});
  const Tensor rest = steps.narrow(time, walk.reverse ? 0 : 1, s.T - 1), end = last.unsqueeze(time);
  return (walk.reverse ? at::cat({end, rest}, time) : at::cat({rest, end}, time)).view(rows.sizes());
}

}  // namespace rnnfast::cuda
