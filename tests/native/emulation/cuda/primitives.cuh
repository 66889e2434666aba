// csrc/cuda/primitives.cuh in plain C++, found before it: a kernel's threads are fibers of one thread, and a
// warp's exchange waits until all of its lanes have come. Which fiber goes on is drawn at random, so that
// what only one order gets right is found. Proves the kernels' indices and their meeting points, not the
// hardware.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "types.h"

#define RNNFAST_INLINE inline
#define RNNFAST_BOTH inline
#define RNNFAST_KERNEL inline

namespace rnnfast::cuda {

constexpr int kLanes = 32;

// One block of a grid: its threads as fibers
class Block {
 public:
  static Block*& current() {
    static thread_local Block* block = nullptr;
    return block;
  }

  Block(int64_t index, int threads, uint64_t seed) : index(index), fibers_(threads), random_(seed) {
    warps_.resize(threads / kLanes);
  }

  template <class F>
  void run(const F& body) {
    current() = this;
    body_ = [](const void* f) { (*static_cast<const F*>(f))(); };
    argument_ = &body;
    std::vector<int> ready;
    for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    for (;;) {
      ready.clear();
      bool alive = false;
      for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
        if (fibers_[i].done) continue;
        alive = true;
        if (!fibers_[i].waits) ready.push_back(i);
      }
      if (!alive) break;
      if (ready.empty()) {
        std::fprintf(stderr, "emulation: block %lld is deadlocked: a lane waits for one that has left\n",
                     static_cast<long long>(index));
        std::abort();
      }
      thread = ready[random_() % ready.size()];
      Fiber& next = fibers_[thread];
      if (_setjmp(scheduler_)) continue;
      // setcontext is a system call: only the way onto a new stack needs it
      if (next.started) _longjmp(next.here, 1);
      next.started = true;
      setcontext(&next.context);
    }
    current() = nullptr;
  }

  // what lane source(lane) of this warp gave
  template <class V>
  V exchange(V value, int source) {
    static_assert(sizeof(V) <= sizeof(uint64_t));
    const int me = thread;
    Warp& warp = warps_[me / kLanes];
    std::memcpy(&warp.given[me % kLanes], &value, sizeof(V));
    meet(warp);
    V result;
    std::memcpy(&result, &warp.given[source], sizeof(V));
    meet(warp);  // nobody gives anew before all have taken
    return result;
  }

  const int64_t index;
  int thread = 0;

 private:
  static constexpr size_t kStack = 64 * 1024;
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    jmp_buf here;
    bool started = false, done = false, waits = false;
  };
  struct Warp {
    uint64_t given[kLanes];
    int came = 0;
  };

  static void enter() {
    Block& block = *current();
    block.body_(block.argument_);
    block.fibers_[block.thread].done = true;
    _longjmp(block.scheduler_, 1);
  }

  void meet(Warp& warp) {
    const int me = thread, first = me / kLanes * kLanes;
    if (++warp.came == kLanes) {
      warp.came = 0;
      for (int i = 0; i < kLanes; ++i) fibers_[first + i].waits = false;
      return;
    }
    fibers_[me].waits = true;
    if (!_setjmp(fibers_[me].here)) _longjmp(scheduler_, 1);
  }

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  jmp_buf scheduler_;
  std::mt19937_64 random_;
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
};

inline int thread_index() { return Block::current()->thread; }
inline int64_t block_index() { return Block::current()->index; }

template <class V>
V shuffle_xor(V value, int mask) {
  return Block::current()->exchange(value, thread_index() % kLanes ^ mask);
}
template <class V>
V shuffle(V value, int lane) {
  return Block::current()->exchange(value, lane);
}

inline float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }

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

// The blocks of a grid one after the other, in a random order.
template <class Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, void*, const Argument& argument) {
  static std::mt19937_64 random(1);
  std::vector<int64_t> order(blocks);
  for (int64_t i = 0; i < blocks; ++i) order[i] = i;
  for (int64_t i = blocks - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  for (const int64_t i : order) {
    Block block(i, threads, random());
    block.run([&] { kernel(argument); });
  }
  return nullptr;
}

}  // namespace rnnfast::cuda
