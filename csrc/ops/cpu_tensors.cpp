// Tensors of one dtype to another; see cpu_tensors.h.
#include "ops/cpu_tensors.h"

#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <cstring>

namespace rnnfast::cpu {
namespace {

// torch shares out more than this among its threads
constexpr int64_t kLittle = 1 << 18;

bool is_half(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

// Numbers of one dtype to another, rounded to that of a layer in between
struct Converter {
  const Kernels& k;
  const at::ScalarType from, layer, to;

  const Conversion& of(at::ScalarType type) const { return type == at::kHalf ? k.of_half : k.of_bfloat16; }

  void run(const void* x, void* y, int64_t n) const {
    const bool rounds = is_half(layer) && layer != from && layer != to;
    const auto* floats = static_cast<const float*>(x);
    const auto* halves = static_cast<const uint16_t*>(x);
    auto* const to_floats = static_cast<float*>(y);
    auto* const to_halves = static_cast<uint16_t*>(y);
    if (from == to && !rounds) {
      if (x != y) std::memcpy(y, x, n * c10::elementSize(from));
      return;
    }
    if (is_half(from) && to == at::kFloat && !rounds) return of(from).widen(halves, to_floats, n);
    if (from == at::kFloat && is_half(to) && !rounds) return of(to).round_off(floats, to_halves, n);
    constexpr int64_t kBlock = 256;
    float wide[kBlock];
    uint16_t narrow[kBlock];
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t m = std::min(kBlock, n - i);
      if (is_half(from))
        of(from).widen(halves + i, wide, m);
      else
        std::memcpy(wide, floats + i, m * sizeof *wide);
      if (rounds) of(layer).round_off(wide, narrow, m), of(layer).widen(narrow, wide, m);
      if (is_half(to))
        of(to).round_off(wide, to_halves + i, m);
      else
        std::memcpy(to_floats + i, wide, m * sizeof *wide);
    }
  }
};

bool is_little(const Tensor& t) {
  return t.is_contiguous() && t.numel() <= kLittle && t.scalar_type() != at::kDouble;
}

}  // namespace

at::ScalarType element_type(const Kernels& k, at::ScalarType layer) {
  if (layer == at::kDouble || (layer == at::kBFloat16 && k.bf16)) return layer;
  return at::kFloat;
}

void convert(const Kernels& k, const Tensor& t, at::ScalarType layer, const Tensor& to) {
  if (is_little(t))
    Converter{k, t.scalar_type(), layer, to.scalar_type()}.run(t.const_data_ptr(), to.mutable_data_ptr(),
                                                               t.numel());
  else
    to.copy_(t.to(layer));
}

Tensor read_as(const Kernels& k, const Tensor& t, at::ScalarType layer, at::ScalarType type) {
  if (!t.defined()) return t;
  const bool rounds = is_half(layer) && t.scalar_type() != layer && type != layer;
  if (t.scalar_type() == type && t.is_contiguous() && !rounds) return t;
  if (!is_little(t)) return t.to(layer).to(type).contiguous();
  const Tensor to = kept_empty(t.sizes(), at::TensorOptions(type));
  convert(k, t, layer, to);
  return to;
}

Tensor operand(const Kernels& k, const Tensor& t, at::ScalarType layer) {
  const at::ScalarType type = element_type(k, layer);
  if (type != at::kBFloat16 || !t.defined()) return read_as(k, t, layer, type);
  const int64_t n = t.size(-1), line = whole_lines<Bfloat16>(n);
  // and they are read by pairs
  const bool fits = line == n && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 4 == 0;
  if (fits || !is_little(t)) {
    const Tensor rows = read_as(k, t, layer, type);
    return line > n ? at::constant_pad_nd(rows, {0, line - n}) : fits ? rows : rows.clone();
  }
  c10::SmallVector<int64_t, 3> size(t.sizes().begin(), t.sizes().end());
  size.back() = line;
  const Tensor to = kept_empty(size, at::TensorOptions(type));
  const Converter convert_row{k, t.scalar_type(), layer, type};
  const auto* x = static_cast<const char*>(t.const_data_ptr());
  auto* y = static_cast<uint16_t*>(to.mutable_data_ptr());
  for (const uint16_t* const end = y + to.numel(); y < end; x += n * t.element_size(), y += line) {
    convert_row.run(x, y, n);
    std::fill(y + n, y + line, 0);
  }
  return to;
}

}  // namespace rnnfast::cpu
