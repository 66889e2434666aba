// Blocks of memory that are kept; see memory.h.
#include "ops/memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <mutex>
#include <utility>
#include <vector>

namespace rnnfast {
namespace {

// Blocks of memory that nobody uses at the moment, the last one given back at the end
class Attic {
 public:
  // a block of at least so many bytes and at most twice as many, or an undefined tensor
  at::Tensor take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
      if (block->numel() >= bytes && block->numel() <= 2 * bytes) {
        const at::Tensor found = std::move(*block);
        blocks_.erase(std::next(block).base());
        held_ -= found.numel();
        return found;
      }
    return {};
  }

  void give(at::Tensor block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ += block.numel();
    blocks_.push_back(std::move(block));
    for (; held_ > kMostBytes; blocks_.erase(blocks_.begin())) held_ -= blocks_.front().numel();
  }

  int64_t empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.clear();
    return std::exchange(held_, 0);
  }

 private:
  static constexpr int64_t kMostBytes = 1 << 30;
  std::mutex mutex_;
  std::vector<at::Tensor> blocks_;
  int64_t held_ = 0;
};

// never destroyed: the last tensor may end after static destructors have begun
Attic& attic() {
  static Attic& instance = *new Attic;
  return instance;
}

constexpr int64_t kLargeBytes = 1 << 17;  // malloc keeps smaller ones itself, and maps these anew

}  // namespace

at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kLargeBytes) return at::detail::empty_cpu(sizes, options);
  at::Tensor block = attic().take(bytes);
  if (!block.defined()) block = at::empty({bytes}, options.dtype(at::kByte));
  void* const data = block.mutable_data_ptr();
  return at::for_blob(data, sizes)
      .options(at::TensorOptions().dtype(options.dtype()))
      .deleter([block = std::move(block)](void*) mutable { attic().give(std::move(block)); })
      .allocator(c10::GetCPUAllocator())
      .resizeable_storage()
      .make_tensor();
}

int64_t empty_cache() { return attic().empty(); }

}  // namespace rnnfast
