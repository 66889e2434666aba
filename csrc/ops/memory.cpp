// Blocks of memory that are kept; see memory.h.
#include "ops/memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace rnnfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMebibyte = 1 << 20;

int64_t limit_at_start() {
  const char* const asked = std::getenv("RNNFAST_CACHE_MB");
  if (!asked || !*asked) return kDefaultCacheMb * kMebibyte;
  char* end = nullptr;
  const double mebibytes = std::strtod(asked, &end);
  TORCH_CHECK(*end == '\0' && mebibytes >= 0 && mebibytes <= kMostCacheMb, "RNNFAST_CACHE_MB is '", asked,
              "', expected a number of MiB from 0 to ", kMostCacheMb);
  return static_cast<int64_t>(mebibytes * kMebibyte);
}

// The most bytes that were in use at once of late: in the span of time that runs and the last one before it
// in which anything was. Spans end when something is noted, so a pause forgets nothing.
class Peak {
 public:
  void note(int64_t used, Clock::time_point now) {
    if (now - begin_ > kSpan) before_ = std::exchange(now_, 0), begin_ = now;
    now_ = std::max(now_, used);
  }
  int64_t bytes() const { return std::max(before_, now_); }

 private:
  static constexpr auto kSpan = std::chrono::seconds(2);
  int64_t before_ = 0, now_ = 0;
  Clock::time_point begin_;
};

// Blocks of memory that nobody uses at the moment, those that were given back first in front. What is in use
// and what is kept come to no more than the peak and a little: a loop of equal calls finds all that it needs,
// and one whose calls differ piles up nothing.
class Attic {
 public:
  // The smallest block of at least so many bytes, and at most twice as many, of those the one given back
  // last; or an undefined tensor. A larger one may be what the next tensor of this loop needs.
  at::Tensor take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = blocks_.end();
    int64_t most = 2 * bytes;
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
      if (const int64_t size = block->memory.numel(); size >= bytes && size <= most)
        best = block, most = size;
    if (best == blocks_.end()) return {};
    at::Tensor found = std::move(best->memory);
    blocks_.erase(best);
    held_ -= found.numel(), used_ += found.numel();
    return found;
  }

  // notes one that was made, and will be given
  void add(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    used_ += bytes;
  }

  void give(at::Tensor memory) {
    const Clock::time_point now = Clock::now();
    std::vector<at::Tensor> freed;  // after the lock is: the system takes its time
    const std::lock_guard lock(mutex_);
    peak_.note(used_, now);
    used_ -= memory.numel(), held_ += memory.numel();
    blocks_.push_back({std::move(memory), now});
    free_over(std::min(limit_, std::max<int64_t>(0, peak_.bytes() + kSlack - used_)), now, freed);
  }

  int64_t empty() {
    std::vector<at::Tensor> freed;
    const std::lock_guard lock(mutex_);
    const int64_t held = held_;
    free_over(0, Clock::now(), freed);
    return held;
  }

  void set_limit(int64_t bytes) {
    std::vector<at::Tensor> freed;
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    free_over(limit_, Clock::now(), freed);
  }

  CacheFacts facts() {
    const std::lock_guard lock(mutex_);
    return {limit_, held_, used_};
  }

 private:
  static constexpr int64_t kSlack = 32 * kMebibyte;
  static constexpr auto kLong = std::chrono::seconds(10);

  struct Block {
    at::Tensor memory;
    Clock::time_point since;
  };

  void free_over(int64_t most, Clock::time_point now, std::vector<at::Tensor>& freed) {
    while (!blocks_.empty() && (held_ > most || now - blocks_.front().since > kLong)) {
      held_ -= blocks_.front().memory.numel();
      freed.push_back(std::move(blocks_.front().memory));
      blocks_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;
  int64_t held_ = 0, used_ = 0, limit_ = limit_at_start();
  Peak peak_;
};

// never destroyed: the last tensor may end after static destructors have begun
Attic& attic() {
  static Attic& instance = *new Attic;
  return instance;
}

constexpr int64_t kLargeBytes = 1 << 17;  // malloc keeps smaller ones itself, and maps these anew

// A new block; where there is no more memory, once what is kept is given back
at::Tensor make_block(int64_t bytes) {
  const auto make = [&] { return at::empty({bytes}, at::TensorOptions(at::kByte)); };
  at::Tensor block;
  try {
    block = make();
  } catch (const c10::Error&) {
    if (attic().empty() == 0) throw;
    block = make();
  }
  attic().add(bytes);
  return block;
}

}  // namespace

at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kLargeBytes) return at::detail::empty_cpu(sizes, options);
  at::Tensor block = attic().take(bytes);
  if (!block.defined()) block = make_block(bytes);
  void* const data = block.mutable_data_ptr();
  return at::for_blob(data, sizes)
      .options(at::TensorOptions().dtype(options.dtype()))
      .deleter([block = std::move(block)](void*) mutable { attic().give(std::move(block)); })
      .allocator(c10::GetCPUAllocator())
      .resizeable_storage()
      .make_tensor();
}

int64_t empty_cache() { return attic().empty(); }

void set_cache_limit(std::optional<double> mebibytes) {
  const double asked = mebibytes.value_or(kDefaultCacheMb);
  TORCH_CHECK(asked >= 0 && asked <= kMostCacheMb, "rnnfast.info.set_cache_mb: mb is ", asked,
              ", expected a number of MiB from 0 to ", kMostCacheMb);
  attic().set_limit(static_cast<int64_t>(asked * kMebibyte));
}

CacheFacts cache_facts() { return attic().facts(); }

}  // namespace rnnfast
