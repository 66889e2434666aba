// The thread team: members of torch's own intra-op pool, entered once per call, who go through a call's
// phases together. A phase has parts; each part is done once, by the member it belongs to, or by another if
// that one is late, so that a call never waits for a thread that the machine does not give.
#pragma once
#include <atomic>
#include <bitset>
#include <chrono>
#include <cstdint>
#include <memory>

#include "cpu/profile.h"
#include "cpu/target.h"

namespace rnnfast {

class Team {
 public:
  static constexpr int kMaxMembers = 256;
  using Clock = std::chrono::steady_clock;

  class Member {
   public:
    // f(part) for parts 0 .. parts - 1, each done once by one member; back when all of them are done. All
    // members must go through the same phases.
    template <class F>
    RNNFAST_INLINE void phase(const F& f) {
      if (!team_) {
        for (int part = 0; part < parts_; ++part) f(part);
        return watch.lap(Work::kOther);
      }
      for (int part; (part = next()) >= 0; finish(part)) {
        watch.lap(Work::kWait);
        f(part);
        watch.lap(Work::kOther);
      }
      watch.lap(Work::kWait);
    }

    Stopwatch watch;
    int tiles = 0;  // what this thread's matrix unit is set up for: see matrix-inl.h

   private:
    friend class Team;
    Member(Team* team, int rank, int parts)
        : watch(team && team->measures_), team_(team), rank_(rank), own_(rank), parts_(parts) {
      away_.set();
    }
    int next() noexcept;             // a part to do in this phase, or -1 when all are done
    void finish(int part) noexcept;  // what next gave is done
    bool claim(int part) noexcept;

    Team* team_;  // null: alone
    int rank_, own_, parts_;
    uint32_t now_ = 0;  // the phase
    bool worked_ = false;
    Clock::duration waited_{};        // longer than its patience
    std::bitset<kMaxMembers> away_;   // parts whose owner was not there last time
    std::bitset<kMaxMembers> known_;  // parts seen to be done in this phase, whose lines need no other look
  };

  // Calls work(context, member) on up to `wanted` threads and returns how many of them did something. A
  // thread that the pool does not give, or gives late, is not waited for. `work` must not throw, allocate or
  // call torch. With flush, denormals count as zero inside. parts: 1 to kMaxMembers. steps: whether it has a
  // phase for every step, so that now and then the time they take to meet can be measured.
  static int run(int wanted, int parts, bool flush, bool steps, void (*work)(void*, Member&) noexcept,
                 void* context);

  // How long a member waits at the end of a phase though all have as much to do, in nanoseconds: as lately
  // measured, or else what it is where they share a cache.
  static double meeting_ns();

  // Threads that can really run at once: torch's setting, capped by affinity and the container's quota.
  static int usable_threads();

 private:
  // Both count phases: `taken` those in which the part was claimed, `done` those in which it was finished. A
  // line each, because the one is its owner's and the other is read by all.
  struct Progress {
    alignas(64) std::atomic<uint32_t> taken{0};
    alignas(64) std::atomic<uint32_t> done{0};
  };
  // From more than kGroup parts on a group's progress stands in one place, so that few lines are watched.
  static constexpr int kGroup = 4;
  struct Group {
    alignas(64) std::atomic<uint32_t> done{0};
  };

  Team(int wanted, int parts, bool measures)
      : wanted_(wanted), parts_(parts), measures_(measures), progress_(new Progress[parts]) {
    if (parts > kGroup) groups_.reset(new Group[(parts + kGroup - 1) / kGroup]);
  }
  void enter(int64_t begin, int64_t end) noexcept;
  void spread() noexcept;

  static constexpr uint64_t kUnknown = ~uint64_t{0};
  static constexpr int kCpus = 1024;
  std::atomic<uint64_t> cpus_[kCpus / 64]{};  // where members run
  std::atomic<int> members_{0};               // who entered
  std::atomic<int> came_{0};                  // how many of the wanted shares they stand for
  std::atomic<int> worked_{0};                // how many of them did a part
  std::atomic<bool> over_{false};
  Clock::time_point end_;              // of the work
  std::atomic<Clock::rep> waited_{0};  // by all members, longer than their patience
  const int wanted_, parts_;
  const bool measures_;
  std::atomic<uint64_t> meeting_{kUnknown};  // in ticks, of the member that waited least
  bool flush_ = false;
  void (*work_)(void*, Member&) noexcept = nullptr;
  void* context_ = nullptr;
  std::unique_ptr<Progress[]> progress_;
  std::unique_ptr<Group[]> groups_;
};

}  // namespace rnnfast
