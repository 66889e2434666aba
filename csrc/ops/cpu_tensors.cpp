// Tensors of one dtype as memory of another; see cpu_tensors.h.
#include "ops/cpu_tensors.h"

#include <algorithm>
#include <cstring>

#include "ops/rows.h"

namespace rnnfast::cpu {
at::ScalarType element_type(const Kernels& k, at::ScalarType layer) {
  return layer == at::kDouble || (layer == at::kBFloat16 && k.bf16) ? layer : at::kFloat;
}

Operands::Operands(const Kernels& k, at::ScalarType layer)
    : element(element_type(k, layer)),
      sums(layer == at::kDouble ? at::kDouble : at::kFloat),
      k_(k),
      layer_(layer) {}

void* Operands::take(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > left_) {
    left_ = std::max(bytes, kBlock);
    blocks_.push_back(kept_empty({left_}, at::TensorOptions(at::kByte)));
    next_ = static_cast<char*>(blocks_.back().mutable_data_ptr());
  }
  left_ -= bytes;
  return std::exchange(next_, next_ + bytes);
}

// from [rows, n] to [rows, line], the rest zero
void Operands::convert(const void* x, at::ScalarType from, void* y, at::ScalarType to, int64_t rows,
                       int64_t n, int64_t line) const {
  const Converter c = converter(from, to);
  const int64_t read = c10::elementSize(from), written = c10::elementSize(to);
  const auto run = [&](int64_t begin, int64_t end) {
    const char* in = static_cast<const char*>(x) + begin * n * read;
    char* out = static_cast<char*>(y) + begin * line * written;
    if (line == n) return c.run(in, out, (end - begin) * n);
    for (int64_t i = begin; i < end; ++i, in += n * read, out += line * written) {
      c.run(in, out, n);
      std::memset(out + n * written, 0, (line - n) * written);
    }
  };
  if (from == to && x == y) return run(0, rows);
  share_rows(rows, line, run);
}

const void* Operands::read(const Tensor& t, at::ScalarType type, int64_t n, int64_t line) {
  const Tensor* rows = &t;
  if (!t.is_contiguous()) rows = &blocks_.emplace_back(contiguous(t));
  const void* const own = rows->const_data_ptr();
  const at::ScalarType from = t.scalar_type();
  // bfloat16 is read by pairs
  const bool fits = line == n && (type != at::kBFloat16 || reinterpret_cast<uintptr_t>(own) % 4 == 0);
  if (from == type && fits && !converter(from, type).rounds()) return own;
  const int64_t count = n ? t.numel() / n : 0;
  void* const to = take(count * line * static_cast<int64_t>(c10::elementSize(type)));
  convert(own, from, to, type, count, n, line);
  return to;
}

const void* Operands::matrix(const Tensor& t) {
  if (!t.defined()) return nullptr;
  const int64_t n = t.size(-1);
  return read(t, element, n, element == at::kBFloat16 ? whole_lines<Bfloat16>(n) : n);
}

WeightMatrix Operands::weight(const Tensor& t) {
  const bool in_parts = element == at::kFloat && k_.products > 0;
  const auto stored = t.defined() && t.is_contiguous() && !in_parts
                          ? converter(t.scalar_type(), element).as_stored(t.size(-1))
                          : std::nullopt;
  return stored ? WeightMatrix{t.const_data_ptr(), *stored} : WeightMatrix{matrix(t)};
}

const void* Operands::values(const Tensor& t) {
  return t.defined() ? read(t, sums, t.size(-1), t.size(-1)) : nullptr;
}

void* Operands::room(const Tensor& t, at::ScalarType type) {
  if (!t.defined()) return nullptr;
  return t.scalar_type() == type ? t.mutable_data_ptr() : take(t.numel() * c10::elementSize(type));
}

void Operands::write_back(const void* made, at::ScalarType type, const Tensor& t) const {
  if (t.defined() && t.numel())
    convert(made, type, t.mutable_data_ptr(), t.scalar_type(), t.numel() / t.size(-1), t.size(-1),
            t.size(-1));
}

}  // namespace rnnfast::cpu
