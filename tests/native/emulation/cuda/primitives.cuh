// csrc/cuda/primitives.cuh in plain C++, found before it: a kernel's threads are fibers of one thread, and a
// warp's exchange waits until all of its lanes have come. Which fiber goes on is drawn at random, so that
// what only one order gets right is found. Proves the kernels' indices and their meeting points, not the
// hardware.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
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

#include "types.h"

#undef RNNFAST_INLINE
#define RNNFAST_INLINE inline
#define RNNFAST_BOTH inline
#define RNNFAST_KERNEL inline
#define __launch_bounds__(...)

namespace rnnfast::cuda {

constexpr int kLanes = 32;

// whether now and then a warp is not run for many rounds
inline bool warps_fall_behind = false;
// of what is sent to another block every so many stores never arrive; 0: all do
inline int loses_each = 0;
// of each cluster a block whose stores to others never arrive; -1: none
inline int silent_block = -1;

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

inline int thread_index() { return Cluster::current()->thread(); }
inline int64_t block_index() { return Cluster::current()->block_index(); }
inline int block_size() { return Cluster::current()->threads(); }
inline void block_barrier() { Cluster::current()->meet_block(); }
inline int cluster_rank() { return Cluster::current()->block(); }
inline void cluster_barrier() { Cluster::current()->meet_all(); }

template <class V>
V* shared_memory() {
  Cluster& cluster = *Cluster::current();
  return reinterpret_cast<V*>(cluster.shared(cluster.block()));
}

// the same place of another block's shared memory
template <class V>
V* peer(V* place, int rank) {
  Cluster& cluster = *Cluster::current();
  const ptrdiff_t offset = reinterpret_cast<char*>(place) - cluster.shared(cluster.block());
  if (offset < 0 || offset + sizeof(V) > cluster.shared_bytes() || offset % sizeof(V) || rank < 0 ||
      rank >= cluster.blocks()) {
    std::fprintf(stderr, "emulation: byte %td of the shared memory of block %d\n", offset, rank);
    std::abort();
  }
  return reinterpret_cast<V*>(cluster.shared(rank) + offset);
}

// in the 8 bytes of the real one
struct Mbarrier {
  int32_t missing;  // bytes; less than none where they come before they are expected
  uint16_t expected, phase;

  void add(int64_t bytes) {
    missing += static_cast<int32_t>(bytes);
    if (std::abs(missing) >= kMostBytes) {
      std::fprintf(stderr, "emulation: a mbarrier counts %d bytes, more than it can\n", missing);
      std::abort();
    }
    if (expected && missing == 0) expected = 0, ++phase;
  }
  static constexpr int kMostBytes = 1 << 20;
};
inline void mbarrier_init(uint64_t* barrier) { *reinterpret_cast<Mbarrier*>(barrier) = {}; }
inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  Mbarrier& b = *reinterpret_cast<Mbarrier*>(barrier);
  if (b.expected++) {
    std::fprintf(stderr, "emulation: a mbarrier was told twice what to expect\n");
    std::abort();
  }
  b.add(bytes);
}
inline void mbarrier_expect_more(uint64_t* barrier, uint32_t bytes) {
  reinterpret_cast<Mbarrier*>(barrier)->add(bytes);
}
inline bool mbarrier_try_wait(const uint64_t* barrier, int parity) {
  const auto ended = [&] { return reinterpret_cast<const volatile Mbarrier*>(barrier)->phase % 2 != parity; };
  if (!ended()) Cluster::current()->rest();
  return ended();
}
inline int64_t nanoseconds() { return Cluster::current()->nanoseconds(); }

// whether a store to another block is one of those that never arrive
inline bool is_lost() {
  static int64_t count = 0;
  return Cluster::current()->block() == silent_block || (loses_each && ++count % loses_each == 0);
}
inline void store_async(void* place, uint32_t word, uint64_t* barrier, int rank) {
  if (Cluster::current()->blocks() < 2) {
    std::fprintf(stderr, "emulation: store_async without a cluster\n");
    std::abort();
  }
  uint32_t* const to = peer(static_cast<uint32_t*>(place), rank);
  Mbarrier* const counter = reinterpret_cast<Mbarrier*>(peer(barrier, rank));
  if (is_lost()) return;
  Cluster::current()->store_late(to, [=] {
    if (Cluster::current()->left(rank)) {
      std::fprintf(stderr, "emulation: a store to the shared memory of a block that has left\n");
      std::abort();
    }
    *to = word;
    counter->add(-static_cast<int64_t>(sizeof word));
  });
}

inline void prefetch(const void*) {}

// A store is seen late: when the scheduler says so.
inline void store_packet(uint64_t* p, uint64_t v) {
  if (!is_lost()) Cluster::current()->store_late(p, [=] { *p = v; });
}
inline uint64_t load_packet(const uint64_t* p) { return *p; }
inline void pause() { Cluster::current()->rest(); }

template <class E>
uint32_t load_word(const E* p) {
  if (reinterpret_cast<uintptr_t>(p) % 4) {
    std::fprintf(stderr, "emulation: a load of 4 bytes at %p\n", static_cast<const void*>(p));
    std::abort();
  }
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// of floats TF32: 10 bits of the mantissa, ties away from zero
template <class E>
uint32_t as_operand(uint32_t word) {
  if (sizeof(E) < 4 || (word & 0x7f800000) == 0x7f800000) return word;
  return (word + 0x1000) & ~0x1fffu;
}

template <class V>
V shuffle(V value, int lane) {
  struct Asked {
    V value;
    int lane;
    V* result;
  };
  V result;
  Cluster::current()->meet_warp(Asked{value, lane, &result}, [](const auto& of) {
    for (int i = 0; i < kLanes; ++i) *of(i).result = of(of(i).lane).value;
  });
  return result;
}
template <class V>
V shuffle_xor(V value, int mask) {
  return shuffle(value, thread_index() % kLanes ^ mask);
}

inline int made_anew(int value) { return value; }

inline float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

// with all of the error that the real ones may have
inline float exp2_roughly(float x) { return std::exp2(x) * (1 + 0x1p-22f); }
inline float reciprocal_roughly(float x) { return std::nextafter(1 / x, 0.f); }

inline float widened(float v) { return v; }
inline double widened(double v) { return v; }
inline float widened(Bfloat16 v) { return __builtin_bit_cast(float, uint32_t{v.bits} << 16); }
inline float widened(Half v) { return static_cast<float>(__builtin_bit_cast(_Float16, v.bits)); }

inline void narrow(float v, float& to) { to = v; }
inline void narrow(double v, double& to) { to = v; }
inline void narrow(float v, Bfloat16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to.bits = static_cast<uint16_t>(v == v ? rounded >> 16 : 0x7fc0);
}
inline void narrow(float v, Half& to) { to.bits = __builtin_bit_cast(uint16_t, static_cast<_Float16>(v)); }

template <class E>
struct Chunk {
  static constexpr int kNumbers = 16 / sizeof(E);
  alignas(16) E number[kNumbers];
};
template <class E>
Chunk<E> load_chunk(const E* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) {
    std::fprintf(stderr, "emulation: a load of 16 bytes at %p\n", static_cast<const void*>(p));
    std::abort();
  }
  Chunk<E> chunk;
  std::memcpy(&chunk, p, sizeof chunk);
  return chunk;
}

inline void narrow_operand(float v, float& to) {
  to = __builtin_bit_cast(float, as_operand<float>(__builtin_bit_cast(uint32_t, v)));
}
inline void narrow_operand(float v, Bfloat16& to) { narrow(v, to); }
inline void narrow_operand(float v, Half& to) { narrow(v, to); }

inline uint32_t word_of(const float* values) { return __builtin_bit_cast(uint32_t, values[0]); }
template <class E>
uint32_t word_of(const E* values) {
  return values[0].bits | uint32_t{values[1].bits} << 16;
}
inline void numbers_of(uint32_t word, float* values) { values[0] = __builtin_bit_cast(float, word); }
template <class E>
void numbers_of(uint32_t word, E* values) {
  values[0].bits = static_cast<uint16_t>(word);
  values[1].bits = static_cast<uint16_t>(word >> 16);
}
inline uint32_t word_of_row(uint32_t mine, uint32_t other, int odd) {
  return odd ? (other >> 16) | (mine & 0xffff0000u) : (mine & 0xffffu) | other << 16;
}
template <class E>
constexpr uint32_t kNanWord = sizeof(E) == 4 ? 0x7fffffffu : 0x7fff7fffu;

// The matrix instruction as csrc/cuda/primitives.cuh describes it
template <class E>
void multiply_tile(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  constexpr int kNumbers = 4 / sizeof(E), K = 8 * kNumbers;
  struct Operands {
    float* c;
    uint32_t a[4], b[2];
  };
  Cluster::current()->meet_warp(Operands{c, {a[0], a[1], a[2], a[3]}, {b0, b1}}, [](const auto& of) {
    typedef float Columns __attribute__((vector_size(32)));  // 8 of them
    float left[16][K];
    Columns right[K], sum[16];
    const auto each_number = [](uint32_t word, const auto& f) {
      E numbers[2];
      numbers_of(word, numbers);
      for (int n = 0; n < kNumbers; ++n) f(n, widened(numbers[n]));
    };
    for (int lane = 0; lane < kLanes; ++lane) {
      const Operands& o = of(lane);
      const int row = lane / 4, word = lane % 4;
      for (int i = 0; i < 4; ++i) {
        each_number(o.a[i],
                    [&](int n, float v) { left[row + i % 2 * 8][(word + i / 2 * 4) * kNumbers + n] = v; });
        sum[row + i / 2 * 8][word * 2 + i % 2] = o.c[i];
      }
      for (int i = 0; i < 2; ++i)
        each_number(o.b[i], [&](int n, float v) { right[(word + i * 4) * kNumbers + n][row] = v; });
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < K; ++k) sum[row] += left[row][k] * right[k];
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) of(lane).c[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  });
}

// The clusters of a grid one after the other, in a random order; or all blocks together
template <class Argument>
const char* launch_clusters(void (*kernel)(Argument), int64_t clusters, int cluster, int threads,
                            size_t bytes, bool together, void*, const Argument& argument) {
  static std::mt19937_64 random(1);
  if (together) cluster *= clusters, clusters = 1;
  std::vector<int64_t> order(clusters);
  for (int64_t i = 0; i < clusters; ++i) order[i] = i;
  for (int64_t i = clusters - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  for (const int64_t i : order) {
    Cluster blocks(i * cluster, cluster, threads, bytes, random());
    blocks.run([&] { kernel(argument); });
  }
  return nullptr;
}

template <class Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, void* stream,
                   const Argument& argument) {
  return launch_clusters(kernel, blocks, 1, threads, 0, false, stream, argument);
}

}  // namespace rnnfast::cuda
