// Where the rows of each time step stand: owns the arrays that a Walk points to.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/params.h"

namespace rnnfast {

struct WalkStorage {
  std::vector<int64_t> offsets, sizes, order, kept;
  Walk walk{};

  static WalkStorage dense(int64_t T, int64_t B, bool batch_first) {
    WalkStorage w;
    w.offsets.resize(T);
    w.sizes.assign(T, B);
    for (int64_t t = 0; t < T; ++t) w.offsets[t] = batch_first ? t : t * B;
    w.walk = {T, B, T * B, batch_first ? T : 1, w.offsets.data(), w.sizes.data(), false};
    return w;
  }

  // of rows of so many steps of T; the longest come first
  static WalkStorage ragged(const at::Tensor& lengths, int64_t T, bool batch_first) {
    WalkStorage w;
    const at::Tensor dense = lengths.contiguous();
    const int64_t B = dense.numel(), *const n = dense.const_data_ptr<int64_t>();
    w.order.resize(B);
    std::iota(w.order.begin(), w.order.end(), 0);
    std::stable_sort(w.order.begin(), w.order.end(), [&](int64_t a, int64_t b) { return n[a] > n[b]; });
    const int64_t steps = B ? n[w.order[0]] : 0;
    int64_t total = 0;
    for (int64_t t = 0, size = B; t < steps; ++t) {
      while (n[w.order[size - 1]] <= t) --size;
      w.offsets.push_back(batch_first ? t : t * B), w.sizes.push_back(size), w.kept.push_back(total);
      total += size;
    }
    w.walk = {steps,          B,     total,          batch_first ? T : 1, w.offsets.data(),
              w.sizes.data(), false, w.order.data(), w.kept.data()};
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

// the rows of t [.., n], from number `first` on
inline RowsOfBytes bytes_of(const at::Tensor& t, int64_t first = 0) {
  if (!t.defined()) return {};
  const int64_t number = t.dtype().itemsize();
  return {static_cast<const char*>(t.const_data_ptr()) + first * number, t.size(-1) * number};
}

inline std::vector<const void*> previous_states(const Walk& walk, RowsOfBytes h0, RowsOfBytes y,
                                                const bool* resets = nullptr, RowsOfBytes reset_h = {}) {
  std::vector<const void*> rows(walk.total);
  previous_states(walk, h0, y, resets, reset_h, rows.data());
  return rows;
}

// the rows of x or y that take part, as they are kept
inline std::vector<int64_t> kept_rows(const Walk& walk) {
  std::vector<int64_t> rows(walk.total);
  for (int64_t t = 0; t < walk.steps; ++t)
    for (int64_t b = 0; b < walk.sizes[t]; ++b) rows[walk.kept_row(t, b)] = walk.row(t, b);
  return rows;
}

}  // namespace rnnfast
