// The streams of a device that does all work when it is asked for it: a record of who waited for what. A
// profiler hears of moments, and of tensors that another stream reads.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace rnnfast::cuda {

struct Stream {
  int64_t number;  // 0: the caller's
};
inline int64_t stream_now = 0;
// the launches that were done, of all streams; defined beside the emulated kernels
int64_t launches_so_far();

class StreamGuard {
 public:
  StreamGuard() = default;
  ~StreamGuard() { reset(); }
  void reset_stream(const Stream& stream) { before_ = stream_now, stream_now = stream.number; }
  void reset() {
    if (before_) stream_now = *before_;
    before_.reset();
  }

 private:
  std::optional<int64_t> before_;
};

inline Stream stream_of(const c10::Device&) { return {stream_now}; }
inline Stream side_stream(const c10::Device&, size_t lane) { return {static_cast<int64_t>(lane) + 1}; }

inline void used_on(const at::Tensor&, const Stream&) { RECORD_FUNCTION("streams::used_on", {}); }

// stream, the one that it waited for, launches before the moment, launches before it waited
inline std::vector<std::array<int64_t, 4>> waits;

class Moment {
 public:
  explicit Moment(const Stream& stream) : stream_(stream.number), launches_(launches_so_far()) {
    RECORD_FUNCTION("streams::moment", {});
  }
  void block(const Stream& stream) const {
    waits.push_back({stream.number, stream_, launches_, launches_so_far()});
  }

 private:
  int64_t stream_, launches_;
};

}  // namespace rnnfast::cuda
