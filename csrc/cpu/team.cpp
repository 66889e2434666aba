// The thread team over torch's pool; see team.h. This is the one file of this room that sees a torch header:
// the C shim of the pool, which works without compiling the extension for OpenMP.
#include "cpu/team.h"

#include <sched.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rnnfast {
namespace {

using Clock = Team::Clock;

constexpr int kSpins = 2000;                              // about 30 us: more than a step takes
constexpr auto kPatience = std::chrono::milliseconds(4);  // for who has not come

// For a thread that is late: it may wait for this core or, behind another process, for any, which is given to
// it only when this one sleeps. That takes a tenth of a millisecond, so at first it does without.
inline void give_way(Clock::duration waited) {
  if (waited < std::chrono::microseconds(300)) return void(sched_yield());
  std::this_thread::sleep_for(std::chrono::microseconds(20));
}

// Where others hold the cores (more processes, another library's spinning threads), a member waits for
// another that has no core, or the pool for its last thread: milliseconds, many times the work. So what team
// calls lose by waiting is set against what they gain by the other threads' work, some 0.6 of the time not
// waited for each thread. Where a stretch of calls loses, the next ones go alone, for twice as long each time
// that the team is tried again in vain. A stretch is long, for an interruption now and then is no reason, and
// short in doubt.
class Solitude {
 public:
  bool lasts(Clock::time_point now) const { return ticks(now) < until_.load(std::memory_order_relaxed); }

  // of a call: threads, its time, and how much of that its members waited
  void learn(int threads, Clock::duration total, Clock::duration waited, Clock::time_point now) {
    const Clock::rep lost = std::min(waited, total).count(), worked = total.count() - lost;
    const Clock::rep all_lost = lost_.load(std::memory_order_relaxed) + lost;
    const Clock::rep all_worked = worked_.load(std::memory_order_relaxed) + worked;
    Clock::rep span = span_.load(std::memory_order_relaxed);
    const bool over = all_lost + all_worked > ticks(span ? kInDoubt : kStretch);
    lost_.store(over ? 0 : all_lost, std::memory_order_relaxed);
    worked_.store(over ? 0 : all_worked, std::memory_order_relaxed);
    if (!over) return;
    if (5 * all_lost > 3 * (threads - 1) * all_worked) {
      span = std::clamp(2 * span, 16 * all_lost, ticks(kLongest));
      until_.store(ticks(now) + span, std::memory_order_relaxed);
    } else {
      span = span > ticks(kInDoubt) ? span / 4 : 0;
    }
    span_.store(span, std::memory_order_relaxed);
  }

 private:
  static constexpr auto kStretch = std::chrono::milliseconds(48), kInDoubt = std::chrono::milliseconds(3);
  static constexpr auto kLongest = std::chrono::seconds(1);
  static constexpr Clock::rep ticks(Clock::duration time) { return time.count(); }
  static Clock::rep ticks(Clock::time_point time) { return time.time_since_epoch().count(); }
  std::atomic<Clock::rep> until_{0};             // calls go alone
  std::atomic<Clock::rep> span_{0};              // for how long they last did; 0: there is no doubt
  std::atomic<Clock::rep> lost_{0}, worked_{0};  // in this stretch
};
Solitude solitude;

// A meeting takes a tenth of a microsecond between processors that share a cache and half of one between
// others, and a virtual machine's processors are now the one and now the other. So it is measured every now
// and then, in a call that shares units anyway; what was measured long ago is put in doubt at times, because
// a plan that avoids such calls would never learn better.
class Distance {
 public:
  double ns(Clock::time_point now) {
    const bool known = learned_.load(std::memory_order_relaxed) != 0;
    if (!known || (age(now) > kValid && doubts_.fetch_add(1, std::memory_order_relaxed) % kDoubt == 0))
      return kNearNs;
    const auto ticks = static_cast<double>(ticks_.load(std::memory_order_relaxed));
    return std::min(kFarNs, 1e9 * Stopwatch::seconds_per_tick() * ticks);
  }
  bool due(Clock::time_point now) const { return age(now) > kInterval; }
  void learn(uint64_t ticks, Clock::time_point now) {
    // the lesser of two, for one that was interrupted is no distance
    const uint64_t before = last_.exchange(ticks, std::memory_order_relaxed);
    ticks_.store(std::min(before, ticks), std::memory_order_relaxed);
    learned_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  }

 private:
  static constexpr double kNearNs = 75, kFarNs = 1000;  // more is no distance: somebody came late
  static constexpr unsigned kDoubt = 16;
  static constexpr auto kInterval = std::chrono::milliseconds(10), kValid = std::chrono::milliseconds(100);
  Clock::duration age(Clock::time_point now) const {
    return now.time_since_epoch() - Clock::duration(learned_.load(std::memory_order_relaxed));
  }
  std::atomic<uint64_t> ticks_{0}, last_{UINT64_MAX};
  std::atomic<Clock::rep> learned_{0};  // when; 0: never
  std::atomic<unsigned> doubts_{0};
};
Distance distance;
constexpr uint32_t kManyPhases = 32;  // enough that their mean says something

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Denormals are a hundred times slower on some machines and carry nothing here; the threads are torch's, so
// their mode is put back.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool on) : on_(on) {
#if defined(__x86_64__)
    if (on_) _mm_setcsr((saved_ = _mm_getcsr()) | 0x8040);
#elif defined(__aarch64__)
    constexpr uint64_t kFlush = 1 << 24;
    if (!on_) return;
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | kFlush));
#endif
  }
  ~FlushDenormals() {
#if defined(__x86_64__)
    if (on_) _mm_setcsr(saved_);
#elif defined(__aarch64__)
    if (on_) asm volatile("msr fpcr, %0" : : "r"(saved_));
#endif
  }

 private:
  bool on_;
#if defined(__aarch64__)
  uint64_t saved_ = 0;
#else
  unsigned saved_ = 0;
#endif
};

#ifdef __linux__
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

// how many processors this thread may run on, and what is granted of them
int usable_processors() {
  static const int quota = cgroup_cpus();
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::min(CPU_COUNT(&set), quota) : quota;
}
#else
int usable_processors() {
  static const int all = static_cast<int>(std::thread::hardware_concurrency());
  return all > 0 ? all : Team::kMaxMembers;
}
#endif

}  // namespace

int Team::usable_threads() {
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  if (threads <= 1) return 1;
  const int most = static_cast<int>(std::min<uint32_t>(threads, kMaxMembers));
  return std::clamp(usable_processors(), 1, most);
}

bool Team::Member::claim(int part) noexcept {
  auto& taken = team_->progress_[part].taken;
  uint32_t before = now_;
  const bool mine = taken.load(std::memory_order_relaxed) == before &&
                    taken.compare_exchange_strong(before, now_ + 1, std::memory_order_acq_rel);
  worked_ |= mine;
  return mine;
}

// Parts rank, rank + wanted, ... are a member's own. After them it takes over what nobody has begun: at once
// if the owner was away the last time (at first all are), else when its patience is over.
int Team::Member::next() noexcept {
  for (; own_ < parts_; own_ += team_->wanted_)
    if (claim(own_)) return own_;
  const Progress* const progress = team_->progress_.get();
  const Group* const groups = team_->groups_.get();
  const auto over = [&](const std::atomic<uint32_t>& done) {
    return static_cast<int32_t>(done.load(std::memory_order_acquire) - now_) > 0;
  };
  Clock::time_point lost{};  // since when its patience is over
  for (int spins = 0;; ++spins) {
    const bool patient = spins < kSpins;
    if (spins == kSpins) lost = Clock::now();
    bool all = true;
    for (int first = 0; first < parts_; first += kGroup) {
      if (groups && over(groups[first / kGroup].done)) continue;
      if (groups && patient && away_.none()) {
        all = false;
        continue;
      }
      for (int part = first; part < parts_ && part < first + kGroup; ++part) {
        if (known_[part] || (known_[part] = over(progress[part].done))) continue;
        all = false;
        if (patient && !away_[part]) continue;
        away_[part] = claim(part);
        if (!away_[part]) continue;
        if (!patient) waited_ += Clock::now() - lost;
        return part;
      }
    }
    if (all) {
      if (!patient) waited_ += Clock::now() - lost;
      break;
    }
    patient ? relax() : give_way(Clock::now() - lost);
  }
  ++now_;
  known_.reset();
  own_ = rank_;
  return -1;
}

void Team::Member::finish(int part) noexcept {
  Progress* const progress = team_->progress_.get();
  progress[part].done.store(now_ + 1, std::memory_order_release);
  known_[part] = true;
  if (!team_->groups_) return;
  // Of two who finish a group's last parts at once, the fence lets one see both.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const int first = part / kGroup * kGroup;
  for (int i = first; i < parts_ && i < first + kGroup; ++i)
    if (static_cast<int32_t>(progress[i].done.load(std::memory_order_acquire) - now_) <= 0) return;
  auto& group = team_->groups_[part / kGroup].done;
  uint32_t before = group.load(std::memory_order_relaxed);
  while (
      static_cast<int32_t>(before - now_) <= 0 &&
      !group.compare_exchange_weak(before, now_ + 1, std::memory_order_acq_rel, std::memory_order_relaxed)) {
  }
}

// A pool's thread wakes where it last ran, which may be where another member runs now, and it is not moved
// while it has so little to do: then the one only ever runs when the other waits. So it steps over to a
// processor that no member has, for good, with its own set of processors left as it is. (Elsewhere than on
// Linux no thread may choose.)
void Team::spread() noexcept {
#ifdef __linux__
  const auto take = [&](int cpu) {
    const uint64_t bit = uint64_t{1} << (cpu % 64);
    return cpu < 0 || cpu >= kCpus || !(cpus_[cpu / 64].fetch_or(bit, std::memory_order_relaxed) & bit);
  };
  if (take(sched_getcpu())) return;
  cpu_set_t mine, free;
  if (sched_getaffinity(0, sizeof mine, &mine) != 0) return;
  free = mine;
  for (int cpu = 0; cpu < kCpus; ++cpu)
    if (cpus_[cpu / 64].load(std::memory_order_relaxed) >> (cpu % 64) & 1) CPU_CLR(cpu, &free);
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
  take(sched_getcpu());
  sched_setaffinity(0, sizeof mine, &mine);
#endif
}

void Team::enter(int64_t begin, int64_t end) noexcept {
  spread();
  came_.fetch_add(static_cast<int>(end - begin), std::memory_order_relaxed);
  Member member(this, members_.fetch_add(1, std::memory_order_relaxed), parts_);
  {
    const FlushDenormals flush(flush_);
    work_(context_, member);
  }
  if (member.worked_) worked_.fetch_add(1, std::memory_order_relaxed);
  if (measures_ && member.now_ >= kManyPhases) {
    const uint64_t waited = member.watch.spent(Work::kWait) / member.now_;
    uint64_t least = meeting_.load();
    while (waited < least && !meeting_.compare_exchange_weak(least, waited)) {
    }
  }
  waited_.fetch_add(member.waited_.count(), std::memory_order_relaxed);
  const Clock::time_point start = Clock::now();
  if (!over_.exchange(true)) end_ = start;
  // Who has not come may be waiting for this very core, and the pool would wait for him without giving it
  // away.
  for (Clock::duration waited{}; came_.load(std::memory_order_relaxed) < wanted_ && waited < kPatience;
       waited = Clock::now() - start)
    give_way(waited);
}

double Team::meeting_ns() { return distance.ns(Clock::now()); }

int Team::run(int wanted, int parts, bool flush, bool steps, void (*work)(void*, Member&) noexcept,
              void* context) {
  const Visit visit;
  const Clock::time_point start = wanted > 1 ? Clock::now() : Clock::time_point();
  const auto alone = [&] {
    Member member(nullptr, 0, parts);
    const FlushDenormals mode(flush);
    work(context, member);
    return 1;
  };
  if (wanted <= 1 || solitude.lasts(start)) return alone();
  Team team(wanted, parts, steps && distance.due(start));
  team.flush_ = flush;
  team.work_ = work;
  team.context_ = context;
  torch_parallel_for(
      0, wanted, 1,
      [](int64_t begin, int64_t end, void* self) { static_cast<Team*>(self)->enter(begin, end); }, &team);
  if (team.members_.load() == 0) return alone();  // the pool failed
  const Clock::time_point now = Clock::now();
  const Clock::duration waited(team.waited_.load() / (wanted - 1));  // all wait for the same one
  solitude.learn(wanted, now - start, now - team.end_ + waited, now);
  const int worked = team.worked_.load();
  if (worked > 1 && team.meeting_ != kUnknown) distance.learn(team.meeting_, now);
  return worked;
}

}  // namespace rnnfast
