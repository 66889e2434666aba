// Backward through a stack side by side on a GPU, as forward (overlap.h), from the last layer to the first.
// Each layer is a node of autograd's, and what it gives is the caller's when the node is done: so the
// caller's stream waits for it, and only the layer below, whose node comes next, begins before.
#pragma once
#include <c10/util/intrusive_ptr.h>

#include "ops/overlap.h"

namespace rnnfast::cuda {

// Of this thread's next call of the recurrent op backward: which layer of which stack it is
struct PlaceInStack {
  explicit PlaceInStack(std::optional<Stack::Place> place) { current() = place; }
  ~PlaceInStack() { current().reset(); }
  static std::optional<Stack::Place>& current() {
    static thread_local std::optional<Stack::Place> place;
    return place;
  }
};

// A layer's backward, on a stream of its own until `join` where that pays; else nothing
class BackwardLane {
 public:
  // dy: what the layer is given, alone: and nothing but that
  BackwardLane(const Tensor& dy, bool alone, const at::Device& device, int64_t steps, bool overlaps) {
    Above above = std::exchange(Above::last(), {});
    const auto place = std::exchange(PlaceInStack::current(), std::nullopt);
    if (!overlaps || !place) return;
    const bool follows = alone && above.gave(dy, *place);
    const int64_t layers = follows ? above.layers : place->layer + 1, chunks = Lane::chunks(steps, layers);
    if (layers < 2 || chunks < 2) return;
    place_ = *place, layers_ = layers;
    chunk_ = (steps - 1) / chunks + 1;
    caller_ = stream_of(device);
    stream_ = side_stream(device, place_.layer);
    if (!follows) above = {};
    begin_ = follows ? std::move(above.begin) : std::optional<Moment>(std::in_place, *caller_);
    // all that the layer reads beside dy was there before the stack's backward began
    begin_->block(*stream_);
    above_ = std::move(above.done);
    guard_.reset_stream(*stream_);
  }
  BackwardLane(const BackwardLane&) = delete;
  BackwardLane& operator=(const BackwardLane&) = delete;
  ~BackwardLane() {
    try {
      join({});
    } catch (...) {  // as in ~Stack
    }
  }

  bool is_open() const { return stream_.has_value(); }
  // so many steps at a time
  int64_t chunk(int64_t all) const { return is_open() ? chunk_ : all; }
  // before dy of the steps from `begin` on is read
  void wait_for(int64_t begin) {
    for (; next_ < above_.size() && (next_ == 0 || above_[next_ - 1].first > begin); ++next_)
      above_[next_].second.block(*stream_);
    TORCH_INTERNAL_ASSERT(above_.empty() || above_[next_ - 1].first <= begin, "steps are read too early");
  }
  // dx of the steps from `begin` on is there when what has been asked for is done
  void done(int64_t begin) {
    if (is_open()) done_.emplace_back(begin, Moment(*stream_));
  }
  // The caller's stream goes on when the layer is done, and reads what was made for it: memory of the lane's.
  void join(std::initializer_list<Tensor> made) {
    if (!is_open()) return;
    const Moment end(*stream_);
    guard_.reset();
    stream_.reset();
    end.block(*caller_);
    for (const Tensor& t : made)
      if (t.defined()) used_on(t, *caller_);
  }
  // after `join`: dx is all that the layer below is given, if nobody changes it
  void give(const Tensor& dx) {
    if (begin_ && place_.layer > 0 && dx.defined())
      Above::last() = {place_, layers_, dx, std::move(done_), std::move(begin_)};
  }

 private:
  // The layer whose backward was the last one of this thread
  struct Above {
    Stack::Place place{};
    int64_t layers = 0;
    std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> memory;  // of dx
    const void* dx = nullptr;
    uint32_t version = 0;
    std::vector<std::pair<int64_t, Moment>> done;
    std::optional<Moment> begin;

    Above() = default;
    Above(const Stack::Place& of, int64_t n, const Tensor& t,
          std::vector<std::pair<int64_t, Moment>>&& moments, std::optional<Moment>&& first)
        : place(of),
          layers(n),
          memory(t.storage().getWeakStorageImpl()),
          dx(t.const_data_ptr()),
          version(t._version()),
          done(std::move(moments)),
          begin(std::move(first)) {}

    static Above& last() {
      static thread_local Above above;
      return above;
    }
    // whether this is dx as it was, for the layer below
    bool gave(const Tensor& dy, const Stack::Place& below) const {
      if (!begin || below.stack != place.stack || below.layer + 1 != place.layer || !dy.defined())
        return false;
      return memory->lock().get() == dy.storage().unsafeGetStorageImpl() && dy.const_data_ptr() == dx &&
             dy.is_contiguous() && !dy.is_inference() && dy._version() == version;
    }
  };

  Stack::Place place_{};
  int64_t layers_ = 0, chunk_ = 0;
  std::optional<Stream> caller_, stream_;
  StreamGuard guard_;
  std::optional<Moment> begin_;
  std::vector<std::pair<int64_t, Moment>> above_, done_;
  size_t next_ = 0;
};

}  // namespace rnnfast::cuda
