// The thread team over torch's pool; see team.h. This is the one file of this room that sees a torch header:
// the C shim of the pool, which works without compiling the extension for OpenMP.
#include "cpu/team.h"

#include <sched.h>
#include <torch/csrc/stable/c/shim.h>

#include <chrono>
#include <cstdio>
#include <memory>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rnnfast {
namespace {

constexpr uint32_t kClosed = 1u << 31;
constexpr uint32_t kMember = 1u << 16;
constexpr uint32_t kWeightMask = kMember - 1;
// A partner that comes later than this is left out: he wakes in some microseconds, or his core is taken.
constexpr auto kPatience = std::chrono::microseconds(500);
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spin for about the time of a step, because the partner is usually near; then give the core away.
template <class Ready>
void wait_for(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < kSpins)
      relax();
    else
      sched_yield();
  }
}

// Denormals are a hundred times slower on some machines and carry nothing here; the threads are torch's, so
// their mode is put back.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool on) : on_(on) {
#if defined(__x86_64__)
    if (on_) _mm_setcsr((saved_ = _mm_getcsr()) | 0x8040);
#endif
  }
  ~FlushDenormals() {
#if defined(__x86_64__)
    if (on_) _mm_setcsr(saved_);
#endif
  }

 private:
  bool on_;
  unsigned saved_ = 0;
};

int cgroup_cpus() {
  int cpus = Team::kMaxMembers;
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    long quota = 0, period = 0;
    if (std::fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0)
      cpus = static_cast<int>((quota + period - 1) / period);
    std::fclose(file);
  }
  return cpus;
}

}  // namespace

int Team::usable_threads() {
  static const int quota = cgroup_cpus();
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  if (threads <= 1) return 1;
  cpu_set_t set;
  int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : kMaxMembers;
  if (quota < cpus) cpus = quota;
  if (static_cast<int>(threads) < cpus) cpus = static_cast<int>(threads);
  return cpus < 1 ? 1 : cpus;
}

bool Team::join(int64_t weight, int& rank) noexcept {
  uint32_t seen = state_.load(std::memory_order_acquire);
  do {
    if (seen & kClosed) return false;
    rank = static_cast<int>(seen >> 16);
  } while (!state_.compare_exchange_weak(seen, seen + kMember + static_cast<uint32_t>(weight),
                                         std::memory_order_acq_rel, std::memory_order_acquire));
  return true;
}

// The first member closes the team: when all shares have come, or when his patience is over.
int Team::close(int rank) noexcept {
  if (rank == 0) {
    const auto start = std::chrono::steady_clock::now();
    int spins = 0;
    wait_for([&] {
      if (static_cast<int>(state_.load(std::memory_order_acquire) & kWeightMask) >= wanted_) return true;
      return (++spins & 63) == 0 && std::chrono::steady_clock::now() - start > kPatience;
    });
    state_.fetch_or(kClosed, std::memory_order_acq_rel);
  } else {
    wait_for([&] { return (state_.load(std::memory_order_acquire) & kClosed) != 0; });
  }
  return static_cast<int>((state_.load(std::memory_order_acquire) & ~kClosed) >> 16);
}

void Team::enter(int64_t begin, int64_t end) noexcept {
  Member member{this, 0, 1};
  if (!join(end - begin, member.rank)) return;
  member.size = close(member.rank);
  const FlushDenormals flush(flush_);
  work_(context_, member);
}

void Team::Member::barrier() noexcept {
  ++epoch;
  for (int round = 0, reach = 1; reach < size; ++round, reach *= 2) {
    team->flags_[(rank + reach) % size].round[round].store(epoch, std::memory_order_release);
    const auto& mine = team->flags_[rank].round[round];
    wait_for([&] { return static_cast<int32_t>(mine.load(std::memory_order_acquire) - epoch) >= 0; });
  }
}

int Team::run(int wanted, bool flush, void (*work)(void*, Member&) noexcept, void* context) {
  if (wanted > kMaxMembers) wanted = kMaxMembers;
  if (wanted <= 1) {
    Member member{nullptr, 0, 1};
    const FlushDenormals mode(flush);
    work(context, member);
    return 1;
  }
  const auto team = std::make_unique<Team>();
  team->wanted_ = wanted;
  team->flush_ = flush;
  team->work_ = work;
  team->context_ = context;
  torch_parallel_for(
      0, wanted, 1,
      [](int64_t begin, int64_t end, void* self) { static_cast<Team*>(self)->enter(begin, end); },
      team.get());
  return static_cast<int>((team->state_.load() & ~kClosed) >> 16);
}

}  // namespace rnnfast
