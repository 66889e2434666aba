// Runs of numbers of one dtype as another.
#pragma once
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "cpu/dispatch.h"

namespace rnnfast {

// Numbers of one dtype to another, rounded to that of a layer in between: float, bfloat16, float16, and to
// itself any
struct Converter {
  const Kernels& k;
  const at::ScalarType from, layer, to;

  bool rounds() const { return at::isReducedFloatingType(layer) && layer != from && layer != to; }

  // how a product of `to` reads these numbers where they are, rows of n, if it can
  std::optional<Stored> as_stored(int64_t n) const {
    // bfloat16 is read by pairs
    if (to == at::kBFloat16 && from == at::kFloat && n % 2 == 0) return Stored::kFloatForBfloat16;
    if (to != at::kFloat || from == at::kDouble) return std::nullopt;
    if (from == at::kFloat)
      return !rounds()            ? Stored::kAsRead
             : layer == at::kHalf ? Stored::kFloatForHalf
                                  : Stored::kFloatForBfloat16;
    if (rounds()) return std::nullopt;
    return from == at::kHalf ? Stored::kHalf : Stored::kBfloat16;
  }

  void run(const void* x, void* y, int64_t n) const {
    const auto* const floats = static_cast<const float*>(x);
    const auto* const halves = static_cast<const uint16_t*>(x);
    auto* const to_floats = static_cast<float*>(y);
    auto* const to_halves = static_cast<uint16_t*>(y);
    const bool widens = at::isReducedFloatingType(from), narrows = at::isReducedFloatingType(to);
    if (!rounds()) {
      if (from == to) return void(x == y || std::memcpy(y, x, n * c10::elementSize(from)));
      if (!narrows) return of(from).widen(halves, to_floats, n);
      if (!widens) return of(to).round_off(floats, to_halves, n);
    }
    if (!widens && !narrows) return of(layer).round_within(floats, to_floats, n);
    constexpr int64_t kPiece = 256;
    float wide[kPiece];
    for (int64_t i = 0; i < n; i += kPiece) {
      const int64_t m = std::min(kPiece, n - i);
      widens ? of(from).widen(halves + i, wide, m) : void(std::memcpy(wide, floats + i, m * sizeof *wide));
      if (rounds()) of(layer).round_within(wide, wide, m);
      narrows ? of(to).round_off(wide, to_halves + i, m)
              : void(std::memcpy(to_floats + i, wide, m * sizeof *wide));
    }
  }

 private:
  const Conversion& of(at::ScalarType type) const { return type == at::kHalf ? k.of_half : k.of_bfloat16; }
};

}  // namespace rnnfast
