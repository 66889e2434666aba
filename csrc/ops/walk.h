// Where the rows of each time step stand: owns the arrays that a Walk points to.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/params.h"

namespace rnnfast {

struct WalkStorage {
  std::vector<int64_t> offsets, sizes;
  Walk walk{};

  static WalkStorage dense(int64_t T, int64_t B, bool batch_first) {
    WalkStorage w;
    w.offsets.resize(T);
    w.sizes.assign(T, B);
    for (int64_t t = 0; t < T; ++t) w.offsets[t] = batch_first ? t : t * B;
    w.walk = {T, B, T * B, batch_first ? T : 1, w.offsets.data(), w.sizes.data(), false};
    return w;
  }

  static WalkStorage packed(const at::Tensor& batch_sizes) {
    WalkStorage w;
    const at::Tensor dense = batch_sizes.contiguous();
    const int64_t* n = dense.const_data_ptr<int64_t>();
    w.sizes.assign(n, n + dense.numel());
    w.offsets.reserve(w.sizes.size());
    int64_t total = 0;
    for (const int64_t size : w.sizes) w.offsets.push_back(total), total += size;
    w.walk = {dense.numel(), w.sizes.empty() ? 0 : w.sizes[0], total, 1, w.offsets.data(), w.sizes.data(),
              false};
    return w;
  }
};

// the same rows, walked from the last step to the first, or not
inline Walk reversed(Walk walk, bool reverse) {
  walk.reverse = reverse;
  return walk;
}

// params.h's previous_states of one direction: h0 begins at that direction's rows, y at its columns
inline std::vector<const void*> previous_states(const Walk& walk, const at::Tensor& h0, int64_t h0_offset,
                                                const at::Tensor& y, int64_t y_offset) {
  const int64_t number = y.dtype().itemsize(), P = h0.size(-1);
  std::vector<const void*> rows(walk.total);
  previous_states(walk, static_cast<const char*>(h0.const_data_ptr()) + h0_offset * number, P * number,
                  static_cast<const char*>(y.const_data_ptr()) + y_offset * number, y.size(-1) * number,
                  rows.data());
  return rows;
}

}  // namespace rnnfast
