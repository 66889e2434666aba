// What the emulated device must not let pass: `program FAULT` dies, `program none` prints "ran".
#include <cstdio>
#include <cstring>

#include "cuda/primitives.cuh"

using namespace rnnfast::cuda;

struct Fault {
  bool leaves, misaligned, hurries, early;
  float* sums;
};

void kernel(Fault fault) {
  alignas(16) float numbers[8] = {};
  if (fault.leaves && thread_index() == 3) return;
  if (!fault.hurries || thread_index() != 5) wait_for_previous();
  float* const copied = shared_memory<float>() + 4 * thread_index();
  copy_async(copied, numbers, true);
  commit_copies();
  if (!fault.early) wait_for_copies<0>();
  float sum = load_chunk(numbers + (fault.misaligned ? 1 : 4)).number[0] + copied[0] + 1;
  for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  fault.sums[block_index()] = sum;
}

int main(int, char** argv) {
  float sums[3] = {};
  const auto is = [&](const char* fault) { return !std::strcmp(argv[1], fault); };
  const Fault fault{is("leaves"), is("misaligned"), is("hurries"), is("early"), sums};
  launch_blocks(kernel, 3, 2 * kLanes, 16 * 2 * kLanes, /*follows=*/true, nullptr, fault);
  if (sums[0] != kLanes || sums[1] != kLanes || sums[2] != kLanes) return 1;
  std::puts("ran");
}
