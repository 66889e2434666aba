// Where the time of a kernel call goes: the stopwatch that every member of a team carries, and their sums.
#pragma once
#include <cstdint>

#include "cpu/target.h"

namespace rnnfast {

enum class Work { kPack, kProduct, kCell, kWait, kOther };
constexpr int kWorks = 5;

// Sums up while a profile is being taken, or where it is asked to: a lap costs some 5 ns then, else a branch.
class Stopwatch {
 public:
  explicit Stopwatch(bool asked);
  ~Stopwatch();  // adds what it has to the profile
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // all since the last lap was `work`
  RNNFAST_INLINE void lap(Work work) {
    if (!on_) return;
    const uint64_t now = ticks();
    spent_[static_cast<int>(work)] += now - since_;
    since_ = now;
  }

  uint64_t spent(Work work) const { return spent_[static_cast<int>(work)]; }
  static double seconds_per_tick();
  static uint64_t nanoseconds();
  RNNFAST_INLINE static uint64_t ticks() {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t now;
    asm volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    return nanoseconds();
#endif
  }

 private:
  const bool on_;
  uint64_t since_ = 0;
  uint64_t spent_[kWorks] = {};
};

// One kernel call, as its caller sees it
class Visit {
 public:
  Visit();
  ~Visit();  // adds its length to the profile
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;

 private:
  const uint64_t since_;  // 0: no profile is being taken
};

// Seconds: since it began, of them in kernels, and what all threads spent there
struct Profile {
  double elapsed, kernels, spent[kWorks];
};
void start_profile();    // from zero
Profile stop_profile();  // since start_profile, of the calls that have ended

}  // namespace rnnfast
