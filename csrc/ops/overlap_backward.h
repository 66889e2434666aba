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

// What a layer is given backward: the gradients of its outputs, each of which may be None
struct Given {
  const Tensor &dy, &dhn, &dcn, &dcs;
};

// A tensor as it is now: its memory, and how often that was changed
class Snapshot {
 public:
  Snapshot() = default;
  explicit Snapshot(const Tensor& t) {
    if (!t.defined() || t.is_inference()) return;  // of which no changes are counted
    memory_ = t.storage().getWeakStorageImpl();
    begin_ = t.const_data_ptr(), version_ = t._version();
  }
  // Whether t is in that memory, unchanged, and begins there; changes behind autograd's back (t.data) nobody
  // counts.
  bool is(const Tensor& t) const { return shares(t) && t.const_data_ptr() == begin_; }
  bool shares(const Tensor& t) const {
    return memory_ && t.defined() && !t.is_inference() && t._version() == version_ &&
           memory_->lock().get() == t.storage().unsafeGetStorageImpl();
  }

 private:
  std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> memory_;
  const void* begin_ = nullptr;
  uint32_t version_ = 0;
};

// A layer's backward, on a stream of its own until `join` where that pays; else nothing
class BackwardLane {
 public:
  BackwardLane(const Given& given, const at::Device& device, int64_t steps, bool overlaps) {
    Above above = std::exchange(Above::last(), {});
    const auto place = std::exchange(PlaceInStack::current(), std::nullopt);
    if (!overlaps || !place) return;
    const bool follows = above.gave(given, *place);
    const int64_t layers = follows ? above.layers : place->layer + 1, chunks = Lane::chunks(steps, layers);
    if (layers < 2 || chunks < 2) return;
    place_ = *place, layers_ = layers;
    chunk_ = (steps - 1) / chunks + 1;
    caller_ = stream_of(device);
    stream_ = side_stream(device, place_.layer);
    if (!follows) above = {{}, 0, {}, Snapshot(given.dhn), Snapshot(given.dcn), {}, Moment(*caller_)};
    // all that the layer reads beside dy was there before the stack's backward began
    above.begin->block(*stream_);
    above_ = std::exchange(above.done, {});
    last_ = std::move(above);
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
  // after `join`: dx is the dy of the layer below, if nobody changes it
  void give(const Tensor& dx) {
    if (!last_.begin || place_.layer == 0) return;
    last_.place = place_, last_.layers = layers_, last_.dx = Snapshot(dx), last_.done = std::move(done_);
    Above::last() = std::move(last_);
  }

 private:
  // The layer whose backward was the last one of this thread
  struct Above {
    Stack::Place place{};
    int64_t layers = 0;                            // that go side by side
    Snapshot dx;                                   // what it gave,
    Snapshot dhn, dcn;                             // what the first of these layers was given,
    std::vector<std::pair<int64_t, Moment>> done;  // when dx of so many steps was there,
    std::optional<Moment> begin;                   // and when the first of them began

    static Above& last() {
      static thread_local Above above;
      return above;
    }
    // Whether that is dx, for the layer below, and nothing else that may have been made since `begin`: of h_n
    // of all layers a gradient is a part of one tensor.
    bool gave(const Given& given, const Stack::Place& below) const {
      const auto was_there = [](const Tensor& t, const Snapshot& before) {
        return !t.defined() || before.shares(t);
      };
      return begin && below.stack == place.stack && below.layer + 1 == place.layer && dx.is(given.dy) &&
             given.dy.is_contiguous() && was_there(given.dhn, dhn) && was_there(given.dcn, dcn) &&
             !given.dcs.defined();
    }
  };

  Stack::Place place_{};
  int64_t layers_ = 0, chunk_ = 0;
  std::optional<Stream> caller_, stream_;
  StreamGuard guard_;
  Above last_;  // for the layer below
  std::vector<std::pair<int64_t, Moment>> above_, done_;
  size_t next_ = 0;
};

}  // namespace rnnfast::cuda
