// A check: a name, and what running it says.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace rnnfast::device_check {

enum class Result { kRight, kWrong, kSkipped };

struct Outcome {
  Result result = Result::kRight;
  std::string said;                       // one sentence, where it is not right
  double error = 0, limit = 0;            // of the number that is nearest to its limit, or furthest past it
  std::vector<cuda::ResidentPlan> plans;  // that ran; the last one is where it went wrong
  double us_a_step = 0;                   // where it was timed
};

inline Outcome skipped(const std::string& why) { return {Result::kSkipped, why, 0, 0, {}, 0}; }
// of so many numbers, or whatever was compared
inline Outcome counted(int64_t wrong, const std::string& what) {
  if (wrong == 0) return {};
  return {Result::kWrong, std::to_string(wrong) + " of " + what + " are wrong", 0, 0, {}, 0};
}

struct Check {
  std::string kind, name;
  std::function<Outcome()> run;
};
typedef std::vector<Check> Checks;

void add_primitives(Checks& checks);
void add_cases(Checks& checks);
void add_deep(Checks& checks);
void add_determinism(Checks& checks);
void add_micro(Checks& checks);
void add_times(Checks& checks);

}  // namespace rnnfast::device_check
