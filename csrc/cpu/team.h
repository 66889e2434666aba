// The thread team: members of torch's own intra-op pool, entered once per call, who meet at a barrier.
#pragma once
#include <atomic>
#include <cstdint>

namespace rnnfast {

class Team {
 public:
  static constexpr int kMaxMembers = 256;
  static constexpr int kRounds = 8;  // log2(kMaxMembers)

  struct Member {
    Team* team;
    int rank;
    int size;
    uint32_t epoch = 0;
    // All members wait until all have come: dissemination, one flag a round, log2(size) rounds.
    void barrier() noexcept;
  };

  // Calls work(context, member) on up to `wanted` threads and returns how many there were. The team is who
  // has entered when it closes, never who was asked for: a thread that the pool does not give, or gives late,
  // is not waited for. `work` must not throw, allocate or call torch. With flush, denormals count as zero
  // inside.
  static int run(int wanted, bool flush, void (*work)(void*, Member&) noexcept, void* context);

  // Threads that can really run at once: torch's setting, capped by affinity and the container's quota.
  static int usable_threads();

 private:
  struct alignas(64) Flags {
    std::atomic<uint32_t> round[kRounds];
  };
  void enter(int64_t begin, int64_t end) noexcept;
  bool join(int64_t weight, int& rank) noexcept;
  int close(int rank) noexcept;

  // closed (1 bit) | members (15) | weight (16): how many of the wanted shares the members stand for
  std::atomic<uint32_t> state_{0};
  int wanted_ = 1;
  bool flush_ = false;
  void (*work_)(void*, Member&) noexcept = nullptr;
  void* context_ = nullptr;
  Flags flags_[kMaxMembers];
};

}  // namespace rnnfast
