// Layers of a stack side by side on a GPU. The recurrence of one layer keeps a part of the device busy and
// waits most of the time; the layer above it needs no more than the steps that are done. So each layer runs
// on a stream of its own, a chunk of steps at a time, and waits for the chunk of the layer below.
#pragma once
#include <ATen/SavedTensorHooks.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/arguments.h"
#include "ops/streams.h"

namespace rnnfast::cuda {

// While it lives, the calls that this thread makes of the recurrent op are the layers of a stack, each the
// input of the next as it is, and nobody reads what they give before `join`.
class Stack {
 public:
  Stack(const at::Device& device, int64_t layers)
      : device_(device), layers_(layers), caller_(stream_of(device)) {
    current() = this;
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
    try {
      join();
    } catch (...) {  // of a device that has failed, and says so at the next call, too
    }
  }
  // which stack, of all of this process, and which of its layers from the first on
  struct Place {
    int64_t stack, layer;
  };
  // the next layer's, for its backward
  Place next_place() { return {number_, recorded_++}; }
  // the caller's stream goes on when all layers are done
  void join() {
    current() = nullptr;
    for (const Moment& end : std::exchange(ends_, {})) end.block(caller_);
    kept_.clear();
  }
  static Stack*& current() {
    static thread_local Stack* stack = nullptr;
    return stack;
  }
  // Whether these are such layers: on a GPU, and with nobody who looks at each one's results, as hooks of
  // saved tensors do.
  static bool suits(const Tensor& x, int64_t layers) {
    return layers > 1 && x.is_cuda() && !current() && !at::SavedTensorDefaultHooks::get_hooks();
  }

 private:
  friend class Lane;
  static int64_t next_number() {
    static std::atomic<int64_t> number{0};
    return number++;
  }
  const at::Device device_;
  const int64_t layers_;
  const Stream caller_;
  const int64_t number_ = next_number();
  int64_t recorded_ = 0;
  size_t lanes_ = 0;
  Tensor below_;                                  // what the layer below gives,
  std::vector<std::pair<int64_t, Moment>> done_;  // and when so many of its steps are done
  std::vector<Moment> ends_;
  std::vector<Tensor> kept_;  // what nobody else may have before the caller's stream has waited
};

// One layer of the open stack, on a stream of its own as long as this lives; or nothing, where none is open
class Lane {
 public:
  // A further chunk takes as long as so many steps: its launches, and W loaded anew. An estimate; so is how
  // many steps it takes at least for the host to keep up.
  static constexpr int64_t kChunkSteps = 22, kLeastChunk = 96;
  // into so many chunks the steps are cut with which the last layer is done first
  static int64_t chunks(int64_t steps, int64_t layers) {
    const double best = std::sqrt(static_cast<double>((layers - 1) * steps) / kChunkSteps);
    return std::min(static_cast<int64_t>(best), steps / kLeastChunk);
  }

  // x, y: what the layer reads and gives
  Lane(const Tensor& x, const Tensor& y, int64_t steps, bool overlaps) {
    Stack* const stack = Stack::current();
    if (!stack || stack->device_ != x.device()) return;
    const int64_t chunks = Lane::chunks(steps, stack->layers_);
    if (!overlaps || chunks < 2) {  // on the caller's stream, and so after all layers before
      for (const Moment& end : stack->ends_) end.block(stack->caller_);
      return;
    }
    stack_ = stack;
    chunk_ = (steps - 1) / chunks + 1;
    stream_ = side_stream(x.device(), stack->lanes_++);
    guard_.reset_stream(*stream_);
    Moment(stack->caller_).block(*stream_);
    auto done = std::exchange(stack->done_, {});
    if (stack->below_.defined() && x.const_data_ptr() == stack->below_.const_data_ptr())
      below_ = std::move(done);
    else
      for (const Moment& end : stack->ends_) end.block(*stream_);
    stack->below_ = y;
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() {
    try {
      if (stack_) stack_->ends_.emplace_back(*stream_);
    } catch (...) {  // as in ~Stack
    }
  }

  // memory of the caller's stream that the layer reads or writes
  void keep(std::initializer_list<Tensor> tensors) {
    if (stack_) stack_->kept_.insert(stack_->kept_.end(), tensors);
  }
  // so many steps at a time, and no more than `most`
  int64_t chunk(int64_t most) const { return stack_ ? std::min(chunk_, most) : most; }
  // before the steps up to `end` of x are read
  void wait_for(int64_t end) {
    for (; next_ < below_.size() && (next_ == 0 || below_[next_ - 1].first < end); ++next_)
      below_[next_].second.block(*stream_);
    TORCH_INTERNAL_ASSERT(below_.empty() || below_[next_ - 1].first >= end, "steps are read too early");
  }
  // the steps up to `end` of y are there when what has been asked for is done
  void done(int64_t end) {
    if (stack_) stack_->done_.emplace_back(end, Moment(*stream_));
  }

 private:
  Stack* stack_ = nullptr;
  int64_t chunk_ = 0;
  std::optional<Stream> stream_;
  StreamGuard guard_;
  std::vector<std::pair<int64_t, Moment>> below_;
  size_t next_ = 0;
};

}  // namespace rnnfast::cuda
