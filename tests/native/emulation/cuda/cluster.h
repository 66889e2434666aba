// The threads of emulated kernels: fibers of one thread. Which of them goes on is drawn at random, so that
// what only one order gets right is found; a warp's exchange waits until all of its lanes have come.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <unordered_set>
#include <utility>
#include <vector>

namespace rnnfast::cuda {

constexpr int kLanes = 32;

// whether now and then a warp is not run for many rounds
inline bool warps_fall_behind = false;

// The blocks of one cluster: all their threads are fibers, and run until they have to wait for others.
class Cluster {
 public:
  static Cluster*& current() {
    static thread_local Cluster* cluster = nullptr;
    return cluster;
  }

  Cluster(int64_t first, int blocks, int threads, size_t bytes, uint64_t seed)
      : first_(first), threads_(threads), bytes_(bytes), fibers_(blocks * threads), random_(seed) {
    shared_.resize(blocks);
    for (auto& memory : shared_) {
      memory.resize(bytes / sizeof(Line) + 65);
      std::memset(static_cast<void*>(memory.data()), 0xff, memory.size() * sizeof(Line));  // NaN
    }
    gifts_.resize(fibers_.size());
    came_.resize(1 + blocks + fibers_.size() / kLanes);
    for (int block = 0; block < blocks; ++block)
      runs_from_.resize(runs_from_.size() + threads / kLanes, random_() % 2 * random_() % kLate);
  }

  template <class F>
  void run(const F& body) {
    current() = this;
    body_ = [](const void* f) { (*static_cast<const F*>(f))(); };
    argument_ = &body;
    std::vector<int> ready;
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &Cluster::enter, 0);
    }
    int last_of_all = kLate;  // round that a warp is not run in
    for (round_ = 0;; ++round_) {
      ready.clear();
      bool alive = false;
      for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
        if (fibers_[i].done) continue;
        alive = true;
        if (!fibers_[i].waits && round_ >= runs_from_[i / kLanes]) ready.push_back(i);
      }
      if (!alive) break;
      if (ready.empty() && round_ > last_of_all) {
        std::fprintf(stderr, "emulation: block %lld is deadlocked: a thread waits for one that has left\n",
                     static_cast<long long>(first_));
        std::abort();
      }
      let_some_be_seen();
      if (warps_fall_behind && random_() % 16 == 0) {
        int& from = runs_from_[random_() % runs_from_.size()];
        from = std::max<int>(from, round_ + random_() % kBehind);
        last_of_all = std::max(last_of_all, from);
      }
      // all that are ready, in a random order; who becomes ready meanwhile comes in the next round
      for (int i = static_cast<int>(ready.size()) - 1; i >= 0; --i) {
        std::swap(ready[i], ready[random_() % (i + 1)]);
        resume(ready[i]);
      }
    }
    for (const Late& late : late_) late.store();
    current() = nullptr;
    for (auto& memory : shared_)
      for (size_t i = bytes_; i < memory.size() * sizeof(Line); ++i)
        if (reinterpret_cast<unsigned char*>(memory.data())[i] != 0xff) {
          std::fprintf(stderr, "emulation: byte %zu of %zu of shared memory was written\n", i, bytes_);
          std::abort();
        }
  }

  // Every lane of the warp gives something; who comes last does work(what they gave, by lane) for all of
  // them, and then they go on.
  template <class Given, class Work>
  void meet_warp(const Given& given, const Work& work) {
    static_assert(sizeof(Given) <= sizeof(Gift) && alignof(Given) <= alignof(Gift));
    const int first = now_ / kLanes * kLanes, place = 1 + blocks() + now_ / kLanes;
    std::memcpy(static_cast<void*>(&gifts_[now_]), &given, sizeof given);
    if (came_[place] == kLanes - 1)
      work([&](int lane) -> const Given& { return reinterpret_cast<const Given&>(gifts_[first + lane]); });
    meet(place, first, kLanes);
  }

  // store() writes to p, later than now; two to one place in their order
  void store_late(void* p, std::function<void()> store) { late_.push_back({p, std::move(store)}); }
  // whether no thread of the block is there any more
  bool left(int block) const {
    for (int i = block * threads_; i < (block + 1) * threads_; ++i)
      if (!fibers_[i].done) return false;
    return true;
  }

  // lets the others go on
  __attribute__((noinline)) void rest() {
    if (!_setjmp(fibers_[now_].here)) _longjmp(scheduler_, 1);
  }

  void meet_block() { meet(1 + block(), block() * threads_, threads_); }
  // who has left is not waited for
  void meet_all() {
    ++came_[0];
    if (all_came()) return go_on(0, 0, static_cast<int>(fibers_.size()));
    fibers_[now_].waits = true;
    rest();
  }

  int block() const { return now_ / threads_; }
  int thread() const { return now_ % threads_; }
  int threads() const { return threads_; }
  int64_t block_index() const { return first_ + block(); }
  char* shared(int block) { return reinterpret_cast<char*>(shared_[block].data()); }
  size_t shared_bytes() const { return bytes_; }
  int blocks() const { return static_cast<int>(shared_.size()); }
  // a round of all fibers takes a microsecond
  int64_t nanoseconds() const { return 1000 * int64_t{1 + round_}; }

 private:
  static constexpr size_t kStack = 64 * 1024;
  static constexpr int kLate = 500, kBehind = 400;  // rounds: more than several steps take
  struct alignas(16) Line {
    char bytes[16];
  };
  struct Late {
    void* place;
    std::function<void()> store;
  };
  struct Gift {
    uint64_t words[7];
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    jmp_buf here;
    bool started = false, done = false, waits = false;
  };

  static void enter() {
    Cluster& cluster = *current();
    cluster.body_(cluster.argument_);
    cluster.fibers_[cluster.now_].done = true;
    ++cluster.left_;
    if (cluster.came_[0] && cluster.all_came()) cluster.go_on(0, 0, static_cast<int>(cluster.fibers_.size()));
    _longjmp(cluster.scheduler_, 1);
  }

  __attribute__((noinline)) void resume(int fiber) {
    now_ = fiber;
    Fiber& next = fibers_[fiber];
    if (_setjmp(scheduler_)) return;
    // setcontext is a system call: only the way onto a new stack needs it
    if (next.started) _longjmp(next.here, 1);
    next.started = true;
    setcontext(&next.context);
  }

  __attribute__((noinline)) void meet(int place, int first, int count) {
    if (++came_[place] == count) return go_on(place, first, count);
    fibers_[now_].waits = true;
    rest();
  }
  void go_on(int place, int first, int count) {
    came_[place] = 0;
    for (int i = 0; i < count; ++i) fibers_[first + i].waits = false;
  }
  bool all_came() const { return came_[0] == static_cast<int>(fibers_.size()) - left_; }

  // each late store with an even chance, those to one place in their order
  void let_some_be_seen() {
    std::vector<Late> later;
    std::unordered_set<void*> waiting;
    for (Late& late : late_) {
      if (random_() % 2 || waiting.contains(late.place)) {
        waiting.insert(late.place);
        later.push_back(std::move(late));
      } else {
        late.store();
      }
    }
    late_ = std::move(later);
  }

  const int64_t first_;
  const int threads_;
  const size_t bytes_;
  int now_ = 0, round_ = 0, left_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<Gift> gifts_;
  std::vector<Late> late_;
  std::vector<int> came_;       // to the cluster's barrier, each block's and each warp's
  std::vector<int> runs_from_;  // the round from which a warp runs: blocks do not start together
  std::vector<std::vector<Line>> shared_;
  jmp_buf scheduler_;
  std::mt19937_64 random_;
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
};

}  // namespace rnnfast::cuda
