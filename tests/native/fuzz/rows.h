// The rows of a random layer, and those from which each begins.
#pragma once
#include <algorithm>
#include <vector>

#include "world.h"

namespace {

template <class E>
RowsOfBytes bytes_of(const E* first, int64_t numbers) {
  return {reinterpret_cast<const char*>(first), numbers * static_cast<int64_t>(sizeof(E))};
}

// The rows of a layer: time-major, batch-first, packed or of unlike lengths, forwards or backwards
struct Rows {
  std::vector<int64_t> offsets, sizes, order, kept;
  Walk walk{};
  const char* name;
  int64_t places;  // rows of x and y, of which the walk may leave some out

  explicit Rows(bool plain, int64_t steps, int64_t most = 9) {
    const int64_t T = steps ? steps : rng.in(1, 6), B = rng.in(1, most);
    const int64_t kind = rng.in(0, plain ? 1 : 4);
    static constexpr const char* kNames[] = {"time-major", "batch-first", "packed", "ragged",
                                             "ragged batch-first"};
    const bool shorter = kind >= 2, ragged = kind >= 3, batch_first = kind == 1 || kind == 4;
    name = kNames[kind];
    int64_t total = 0, size = ragged ? rng.in(1, B) : B;  // of a packed batch every row has a step
    for (int64_t t = 0; t < T; ++t) {
      if (shorter && t > 0) size = rng.in(1, size);
      offsets.push_back(batch_first ? t : ragged ? t * B : total);
      sizes.push_back(size);
      kept.push_back(total);
      total += size;
    }
    walk = {T, B, total, batch_first ? T : 1, offsets.data(), sizes.data(), !plain && rng.one_in(2)};
    places = ragged ? T * B : total;
    if (ragged) {
      for (int64_t b = 0; b < B; ++b) order.insert(order.begin() + rng.in(0, b), b);
      walk.order = order.data(), walk.kept = kept.data();
    }
    const int64_t n = rng.in(1, total), enough = walk.sequences_with(n);
    if (walk.rows_of(enough) < n || walk.rows_of(enough - 1) >= n)
      fail("%lld sequences are not the fewest with %lld rows", static_cast<long long>(enough),
           static_cast<long long>(n));
  }

  // f(place in x, kept row) of all rows that take part
  template <class F>
  void each(const F& f) const {
    for (int64_t t = 0; t < walk.steps; ++t)
      for (int64_t b = 0; b < walk.sizes[t]; ++b) f(walk.row(t, b), walk.kept_row(t, b));
  }

  // zeros in the rows of n numbers of which the walk has none, as who calls a kernel leaves them
  template <class E>
  void clear_rest(E* to, int64_t n, int64_t ld) const {
    std::vector<bool> there(places);
    each([&](int64_t row, int64_t) { there[row] = true; });
    for (int64_t row = 0; row < places; ++row)
      if (!there[row]) std::fill_n(to + row * ld, n, E{});
  }

  // the last states of sequences without a step
  template <class A>
  void hand_through(A* last, const A* first, int64_t n) const {
    for (int64_t b = walk.sizes[0]; b < walk.batch; ++b)
      for (int64_t i = walk.sequence(b) * n; i < (walk.sequence(b) + 1) * n; ++i)
        last[i] = first ? first[i] : 0;
  }
};

}  // namespace
