// What is done with memory on the device itself; see memory.h.
#include "memory.h"

#include <numeric>

#include "cuda/primitives.cuh"
#include "device.h"

namespace rnnfast::device_check {
namespace {

using namespace cuda;

struct Pair {
  const uint32_t *a, *b;
  int64_t words, blocks;
  uint32_t* differing;  // [threads]
};

RNNFAST_KERNEL void compare(Pair p) {
  const int64_t thread = block_index() * block_size() + thread_index(), threads = p.blocks * block_size();
  uint32_t count = 0;
  for (int64_t i = thread; i < p.words; i += threads) count += p.a[i] != p.b[i];
  p.differing[thread] = count;
}

struct Poison {
  int words;
};

RNNFAST_KERNEL void poison(Poison p) {
  uint32_t* const words = shared_memory<uint32_t>();
  for (int i = thread_index(); i < p.words; i += block_size()) words[i] = 0xffffffffu;
  block_barrier();
}

}  // namespace

int64_t differing_words(const void* a, const void* b, int64_t bytes) {
  const int64_t blocks = is_emulated() ? 1 : 1024;
  const int threads = is_emulated() ? kLanes : 256;
  Array<uint32_t> differing(blocks * threads);
  finish(launch(compare, blocks, threads, nullptr,
                Pair{static_cast<const uint32_t*>(a), static_cast<const uint32_t*>(b), bytes / 4, blocks,
                     differing.get()}));
  const std::vector<uint32_t> counts = differing.read();
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

void poison_shared_memory() {
  const Device device = current_device();
  // a block with all of it is alone on its multiprocessor
  const int64_t blocks = is_emulated() ? 1 : 4 * device.multiprocessors;
  finish(launch_clusters(poison, blocks, 1, 256, device.shared_bytes, false, nullptr,
                         Poison{static_cast<int>(device.shared_bytes / 4)}));
}

}  // namespace rnnfast::device_check
