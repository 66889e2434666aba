// Rows of tensors; see rows.h.
#include "ops/rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/converter.h"

namespace rnnfast {
namespace {

// n numbers of so many bytes, all equal to the first one that `from` has
void repeat(char* to, const char* from, int64_t n, int64_t bytes) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * bytes, from, bytes);
}

}  // namespace

int threads_for_rows(int64_t rows, int64_t numbers) {
  constexpr int64_t kShare = 1 << 17;  // numbers that are worth another thread
  const int64_t most = std::min<int64_t>(rows, rows * numbers / kShare);
  if (most <= 1 || forced_serial()) return 1;
  return static_cast<int>(std::min<int64_t>(most, Team::usable_threads()));
}

at::Tensor contiguous(const at::Tensor& t) {
  if (t.is_contiguous()) return t;
  const int64_t n = t.size(-1), step = t.stride(-1), last = t.dim() - 1;
  if (!t.is_cpu() || (step != 1 && step != 0)) return t.contiguous();
  const at::Tensor result = kept_empty(t.sizes(), t.options().memory_format(at::MemoryFormat::Contiguous));
  const int64_t bytes = t.element_size(), rows = t.numel() / n;
  const char* const from = static_cast<const char*>(t.const_data_ptr());
  char* const to = static_cast<char*>(result.mutable_data_ptr());
  share_rows(rows, n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t offset = 0, rest = row;
      for (int64_t i = last - 1; i >= 0; rest /= t.size(i--)) offset += rest % t.size(i) * t.stride(i);
      char* const here = to + row * n * bytes;
      step ? void(std::memcpy(here, from + offset * bytes, n * bytes))
           : repeat(here, from + offset * bytes, n, bytes);
    }
  });
  return result;
}

at::Tensor converted(const at::Tensor& t, at::ScalarType type) {
  const auto narrow = [](at::ScalarType one) { return one == at::kFloat || at::isReducedFloatingType(one); };
  if (!t.is_cpu() || !narrow(t.scalar_type()) || !narrow(type)) return t.to(type);
  const at::Tensor dense = contiguous(t);
  const at::Tensor result = kept_empty(t.sizes(), dense.options().dtype(type));
  const Converter convert{kernels(), t.scalar_type(), type, type};
  const char* const from = static_cast<const char*>(dense.const_data_ptr());
  char* const to = static_cast<char*>(result.mutable_data_ptr());
  constexpr int64_t kRun = 1024;  // numbers
  share_rows((t.numel() + kRun - 1) / kRun, kRun, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kRun, n = std::min(end * kRun, t.numel()) - first;
    convert.run(from + first * t.element_size(), to + first * result.element_size(), n);
  });
  return result;
}

void clear_columns(const at::Tensor& t, int64_t begin, int64_t end) {
  const int64_t bytes = t.element_size(), stride = t.stride(0) * bytes;
  char* const to = static_cast<char*>(t.mutable_data_ptr()) + begin * bytes;
  share_rows(t.size(0), end - begin, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) std::memset(to + row * stride, 0, (end - begin) * bytes);
  });
}

at::Tensor spread_rows(const at::Tensor& t, at::ArrayRef<int64_t> index, int64_t N) {
  const at::Tensor result = kept_empty({N, t.size(1)}, t.options());
  const int64_t bytes = t.size(1) * t.element_size();
  std::vector<const char*> from(N);
  for (size_t i = 0; i < index.size(); ++i)
    from[index[i]] = static_cast<const char*>(t.const_data_ptr()) + i * bytes;
  char* const to = static_cast<char*>(result.mutable_data_ptr());
  share_rows(N, t.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      from[row] ? std::memcpy(to + row * bytes, from[row], bytes) : std::memset(to + row * bytes, 0, bytes);
  });
  return result;
}

}  // namespace rnnfast
