// The rows of a random layer, and those from which each begins.
#pragma once
#include <vector>

#include "world.h"

namespace {

// the rows of h0 and y from which the rows of a layer begin
template <class E>
std::vector<const void*> states_before(const Walk& walk, const E* h0, int64_t P, const E* y, int64_t ldy) {
  std::vector<const void*> rows(walk.total);
  const auto bytes = [](const E* first, int64_t numbers) {
    return RowsOfBytes{reinterpret_cast<const char*>(first), numbers * static_cast<int64_t>(sizeof(E))};
  };
  previous_states(walk, bytes(h0, P), bytes(y, ldy), nullptr, {}, rows.data());
  return rows;
}

// The rows of a layer: time-major, batch-first or packed, forwards or backwards
struct Rows {
  std::vector<int64_t> offsets, sizes;
  Walk walk{};
  const char* name;

  explicit Rows(bool plain, int64_t steps) {
    const int64_t T = steps ? steps : rng.in(1, 6), B = rng.in(1, 9);
    const int64_t kind = rng.in(0, plain ? 1 : 2);
    name = kind == 0 ? "time-major" : kind == 1 ? "batch-first" : "packed";
    int64_t total = 0, size = B;
    for (int64_t t = 0; t < T; ++t) {
      if (kind == 2 && t > 0) size = rng.in(1, size);
      offsets.push_back(kind == 1 ? t : total);
      sizes.push_back(size);
      total += size;
    }
    walk = {T, B, total, kind == 1 ? T : 1, offsets.data(), sizes.data(), !plain && rng.one_in(2)};
    const int64_t n = rng.in(1, total), enough = walk.sequences_with(n);
    if (walk.rows_of(enough) < n || walk.rows_of(enough - 1) >= n)
      fail("%lld sequences are not the fewest with %lld rows", static_cast<long long>(enough),
           static_cast<long long>(n));
  }
};

}  // namespace
