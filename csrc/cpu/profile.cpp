// The sums of all stopwatches; see profile.h.
#include "cpu/profile.h"

#include <atomic>
#include <chrono>

namespace rnnfast {
namespace {

std::atomic<bool> profiling{false};
std::atomic<uint64_t> totals[kWorks], visited;

struct Moment {
  uint64_t ticks = Stopwatch::ticks(), nanoseconds = Stopwatch::nanoseconds();
};
const Moment loaded;
std::atomic<uint64_t> start;

}  // namespace

uint64_t Stopwatch::nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

double Stopwatch::seconds_per_tick() {
  const Moment now;
  return 1e-9 * static_cast<double>(now.nanoseconds - loaded.nanoseconds) /
         static_cast<double>(now.ticks - loaded.ticks);
}

Stopwatch::Stopwatch(bool asked) : on_(asked || profiling.load(std::memory_order_relaxed)) {
  if (on_) since_ = ticks();
}

Stopwatch::~Stopwatch() {
  if (!on_ || !profiling.load(std::memory_order_relaxed)) return;
  for (int i = 0; i < kWorks; ++i) totals[i].fetch_add(spent_[i], std::memory_order_relaxed);
}

Visit::Visit() : since_(profiling.load(std::memory_order_relaxed) ? Stopwatch::ticks() : 0) {}

Visit::~Visit() {
  if (since_) visited.fetch_add(Stopwatch::ticks() - since_, std::memory_order_relaxed);
}

void start_profile() {
  for (auto& total : totals) total = 0;
  visited = 0;
  start = Stopwatch::nanoseconds();
  profiling = true;
}

Profile stop_profile() {
  profiling = false;
  Profile profile;
  profile.elapsed = 1e-9 * static_cast<double>(Stopwatch::nanoseconds() - start);
  const double tick = Stopwatch::seconds_per_tick();
  profile.kernels = tick * static_cast<double>(visited.load());
  for (int i = 0; i < kWorks; ++i) profile.spent[i] = tick * static_cast<double>(totals[i].load());
  return profile;
}

}  // namespace rnnfast
