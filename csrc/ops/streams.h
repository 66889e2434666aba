// What a stack of layers asks of a device's streams. A twin of this file under tests/ keeps a record instead.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <mutex>
#include <vector>

namespace rnnfast::cuda {

typedef c10::Stream Stream;
// work of this thread goes to that stream as long as it lives
typedef c10::OptionalStreamGuard StreamGuard;

inline Stream stream_of(const c10::Device& device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

// The same ones call after call: a stream keeps the memory that was for it.
inline Stream side_stream(const c10::Device& device, size_t lane) {
  static std::mutex mutex;
  static std::vector<Stream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Stream& stream : streams)
    if (stream.device() == device && lane-- == 0) return stream;
  for (size_t more = 0; more <= lane; ++more)
    streams.push_back(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
  return streams.back();
}

// memory of another stream that this one reads from here on: it is given away only when that is done
inline void used_on(const at::Tensor& t, const Stream& stream) { t.record_stream(stream); }

// A point in a stream's work, for which another one can wait
class Moment {
 public:
  explicit Moment(const Stream& stream) : event_(stream.device_type()) { event_.record(stream); }
  void block(const Stream& stream) const { event_.block(stream); }

 private:
  c10::Event event_;
};

}  // namespace rnnfast::cuda
