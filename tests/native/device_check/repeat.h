// A layer run again and again: the same bits each time, and how long it takes. A layer has prepare() and
// launch().
#pragma once
#include <algorithm>
#include <tuple>
#include <vector>

#include "device.h"
#include "memory.h"

namespace rnnfast::device_check {

// What a run left, beside what the first one did
template <class T>
struct Kept {
  const Array<T>* now;
  Array<T> first;

  explicit Kept(const Array<T>& of) : now(&of) {
    if (of.size()) first = Array<T>(of.read());
  }
  int64_t differing() const {
    return now->size() ? differing_words(now->get(), first.get(), now->bytes() / 4 * 4) : 0;
  }
};

// run() again and again: in how many words it was unlike the first time
template <class Layer, class... T>
int64_t differences(Layer& layer, const Array<T>&... results) {
  const int runs = is_emulated() ? 3 : 20;
  const auto run = [&] {
    layer.prepare();
    layer.launch();
    finish(nullptr);
  };
  run();
  const std::tuple<Kept<T>...> kept{Kept<T>(results)...};
  int64_t differing = 0;
  for (int i = 1; i < runs; ++i) {
    if (i == 1) poison_shared_memory();
    run();
    std::apply([&](const auto&... of) { differing += (0 + ... + of.differing()); }, kept);
  }
  return differing;
}

// The median of several runs after the first, in microseconds. `result` is the same after all of them.
template <class Layer, class E>
double median(Layer& layer, const Array<E>& result) {
  const int runs = is_emulated() ? 1 : 5;
  std::vector<double> times;
  layer.prepare();
  layer.launch();
  finish(nullptr);
  const Array<E> first(result.read());
  for (int i = 0; i < runs; ++i) {
    layer.prepare();
    times.push_back(microseconds([&] { layer.launch(); }));
    finish(nullptr);
  }
  if (differing_words(first.get(), result.get(), result.bytes() / 4 * 4))
    throw Failure("a timed run left something else than the first one");
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[runs / 2];
}

}  // namespace rnnfast::device_check
