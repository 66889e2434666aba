// What is known of a device, and what follows for the checks: a pure function, for every machine to be tested
// on any.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/kernels.h"

namespace rnnfast::device_check {

struct Facts {
  int error = 0;  // of the first call: a cudaError_t
  std::string error_text;
  int driver = 0, runtime = 0;  // versions, 1000 times major plus 10 times minor; driver 0: none
  std::string name;
  int capability = 0;     // 10 times major plus minor
  bool has_code = false;  // whether this program holds code that the device runs
  int multiprocessors = 0, clock_khz = 0;
  int64_t shared_bytes = 0;  // that a block may have
  int64_t memory_bytes = 0, l2_bytes = 0;
  int clusters[cuda::kMostBlocks + 1] = {};  // [n]: how many clusters of n blocks run at once
};

struct Verdict {
  bool runs;
  std::string said;  // why it does not run, or what is less than on a whole GPU; one sentence, or none
};
Verdict judge(const Facts& facts);

}  // namespace rnnfast::device_check
