// What the checks ask of a device, and nothing else: gpu/access.cu answers for a GPU, emulated/access.cpp for
// the host in its place. What goes wrong is thrown as a Failure.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "facts.h"

namespace rnnfast::device_check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Facts probe();
// whether the device is the host: checks then take few steps and few threads
bool is_emulated();
// From here on it is this check's turn: the emulated device plays its faults in the one that they are for.
void starts(const std::string& check);

void* allocate(size_t bytes);
void release(void* p);
void copy_in(void* to, const void* from, size_t bytes);
void copy_out(void* to, const void* from, size_t bytes);
void fill(void* p, int byte, size_t bytes);
// until all work is done
void synchronize();
// of work that is put on the device, from its begin to its end
double microseconds(const std::function<void()>& work);

// What a launch returned
inline void must(const char* error) {
  if (error) throw Failure(error);
}
// The same, and the kernel has ended without anybody's waiting in vain.
inline void finish(const char* error) {
  must(error);
  synchronize();
  if (cuda::take_failure()) throw Failure("a block waited in vain for another");
}

constexpr int kPoison = 0xff;  // a byte of memory that nobody has written: NaN of every type

// Numbers on the device, and behind them some bytes that nobody may write
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t n) : n_(n), p_(static_cast<T*>(allocate(bytes() + kGuard))) { poison(); }
  explicit Array(const std::vector<T>& from) : Array(static_cast<int64_t>(from.size())) { write(from); }
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(n_, other.n_), std::swap(p_, other.p_);
    return *this;
  }
  ~Array() {
    if (p_) release(p_);
  }

  T* get() const { return p_; }  // null of an empty one
  int64_t size() const { return n_; }
  size_t bytes() const { return n_ * sizeof(T); }

  void poison() { fill(p_, kPoison, bytes() + kGuard); }
  void zero() {
    if (p_) fill(p_, 0, bytes());
  }
  void write(const std::vector<T>& from) { copy_in(p_, from.data(), bytes()); }
  // the same numbers again and again
  void write_repeated(const std::vector<T>& from) {
    const int64_t period = static_cast<int64_t>(from.size());
    for (int64_t i = 0; i < n_; i += period)
      copy_in(p_ + i, from.data(), std::min(period, n_ - i) * sizeof(T));
  }
  std::vector<T> read() const {
    std::vector<T> numbers(n_);
    unsigned char guard[kGuard];
    if (!p_) return numbers;
    copy_out(numbers.data(), p_, bytes());
    copy_out(guard, p_ + n_, kGuard);
    for (const unsigned char byte : guard)
      if (byte != kPoison) throw Failure("what lies behind an array was written");
    return numbers;
  }

 private:
  static constexpr size_t kGuard = 256;
  int64_t n_ = 0;
  T* p_ = nullptr;
};

}  // namespace rnnfast::device_check
