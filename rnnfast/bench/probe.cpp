// Measures the machine: multiply-adds, reads, a barrier, the cell's nonlinearity, with `threads` threads
// together. It is no part of rnnfast, on purpose: a limit must not be made by what it judges. roofline.py
// compiles and calls it.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kBytes =
    __BIGGEST_ALIGNMENT__ < 16 ? 16 : __BIGGEST_ALIGNMENT__;  // the widest register of this machine
constexpr int kLanes = kBytes / sizeof(float);
typedef float Pack __attribute__((vector_size(kBytes)));
typedef int32_t IntPack __attribute__((vector_size(kBytes)));

// Everybody raises a flag of his own, a cache line each, and waits to see all the others'.
class Barrier {
 public:
  explicit Barrier(int members) : flags_(members) {}
  void wait(int id) {
    const int turn = flags_[id].turn.load(std::memory_order_relaxed) + 1;
    flags_[id].turn.store(turn, std::memory_order_release);
    for (auto& flag : flags_)
      for (int spins = 0; flag.turn.load(std::memory_order_acquire) < turn; ++spins)
        if (spins > 100000) std::this_thread::yield();
  }

 private:
  struct alignas(64) Flag {
    std::atomic<int> turn{0};
  };
  std::vector<Flag> flags_;
};

// Seconds from the moment all threads are ready to the moment the last has done work(member). The calling
// thread is member 0; prepare(member) runs before, untimed, in the thread that will use what it makes.
template <class Prepare, class Work>
double timed(int threads, Prepare prepare, Work work) {
  Barrier barrier(threads);
  auto member = [&](int id) {
    auto state = prepare(id);
    barrier.wait(id);
    const auto start = std::chrono::steady_clock::now();
    work(state, barrier);
    barrier.wait(id);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<std::thread> others;
  for (int id = 1; id < threads; ++id) others.emplace_back(member, id);
  const double seconds = member(0);
  for (auto& other : others) other.join();
  return seconds;
}

// Makes the compiler believe that the value is used.
template <class T>
void keep(T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

// exp(x) for |x| < 80: 2^n by its bits, exp of the rest by a polynomial.
inline Pack exp(Pack x) {
  const Pack shift = Pack{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Pack n = (x * 1.44269504f + shift) - shift;
  const Pack r = x - n * 0.693147181f;
  const Pack p =
      1.0f +
      r * (1.0f + r * (0.5f + r * (0.16666667f + r * (0.04166667f + r * (0.00833333f + r * 0.00138889f)))));
  return (Pack)((IntPack)p + (__builtin_convertvector(n, IntPack) << 23));
}

}  // namespace

extern "C" {

// Floating-point operations per second, two for each multiply-add.
double measure_fma(int threads) {
  constexpr int kChains = 12;  // independent sums: more than latency x units of any core of today
  constexpr int64_t kSteps = 1 << 20;
  struct State {
    Pack sums[kChains], factor, term;
  };
  auto prepare = [](int id) {
    State s;
    for (auto& sum : s.sums) sum = Pack{} + static_cast<float>(id);
    s.factor = Pack{} + 0.5f;
    s.term = Pack{} + 1.0f;
    keep(s);
    return s;
  };
  auto work = [](State& s, Barrier&) {
    Pack sums[kChains];
    std::copy(s.sums, s.sums + kChains, sums);
    for (int64_t step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
      for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * s.factor + s.term;
    std::copy(sums, sums + kChains, s.sums);
    keep(s);
  };
  return 2.0 * kLanes * kChains * kSteps * threads / timed(threads, prepare, work);
}

// The same of bfloat16, by the matrix unit or by pairs in registers; 0 where the machine has neither.
double measure_fma_bfloat16(int threads) {
#if defined(__AMX_BF16__)
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kAskForState, kTileData) != 0) return 0;
  constexpr int64_t kSteps = 1 << 15;
  constexpr int kRows = 16, kRowBytes = 64;
  struct alignas(64) State {
    unsigned char setup[64]{};
    uint16_t numbers[kRows * kRowBytes / 2];
  };
  auto prepare = [](int) {
    State s;
    s.setup[0] = 1;  // palette; then bytes a row, from 16 on, and rows, from 48 on, of all eight tiles
    for (int tile = 0; tile < 8; ++tile) s.setup[16 + 2 * tile] = kRowBytes, s.setup[48 + tile] = kRows;
    std::fill(std::begin(s.numbers), std::end(s.numbers), 0x3a80);  // 2^-10
    return s;
  };
  auto work = [](State& s, Barrier&) {
    _tile_loadconfig(s.setup);
    _tile_loadd(6, s.numbers, kRowBytes);
    _tile_loadd(7, s.numbers, kRowBytes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t step = 0; step < kSteps; ++step) {
      _tile_dpbf16ps(0, 6, 7);
      _tile_dpbf16ps(1, 6, 7);
      _tile_dpbf16ps(2, 6, 7);
      _tile_dpbf16ps(3, 6, 7);
      _tile_dpbf16ps(4, 6, 7);
      _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
  };
  return 2.0 * 6 * kRows * kRows * (kRowBytes / 2) * kSteps * threads / timed(threads, prepare, work);
#elif defined(__AVX512BF16__)
  constexpr int kChains = 12;
  constexpr int64_t kSteps = 1 << 20;
  struct State {
    __m512 sums[kChains];
    __m512i pairs;
  };
  auto prepare = [](int id) {
    State s;
    for (auto& sum : s.sums) sum = _mm512_set1_ps(static_cast<float>(id));
    s.pairs = _mm512_set1_epi16(0x3a80);  // 2^-10
    keep(s);
    return s;
  };
  auto work = [](State& s, Barrier&) {
    __m512 sums[kChains];
    std::copy(s.sums, s.sums + kChains, sums);
    const auto pairs = (__m512bh)s.pairs;
    for (int64_t step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
      for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm512_dpbf16_ps(sums[chain], pairs, pairs);
    std::copy(sums, sums + kChains, s.sums);
    keep(s);
  };
  return 2.0 * 2 * 16 * kChains * kSteps * threads / timed(threads, prepare, work);
#else
  return 0 * threads;
#endif
}

// Bytes per second when the threads together hold `bytes`, each reading its own part again and again. Every
// other pass goes backwards, as a time loop may do, so that the end of the last pass still lies in the nearer
// cache.
double measure_read(int64_t bytes, int threads) {
  constexpr int kChains = 8;
  constexpr int64_t kBlock = kChains * kBytes;
  const int64_t blocks = std::max<int64_t>(1, bytes / threads / kBlock);
  const int64_t passes = std::max<int64_t>(2, (int64_t{1} << 26) / (blocks * kBlock));
  struct State {
    std::unique_ptr<char[]> memory;
    const IntPack* data;
  };
  auto prepare = [&](int) {
    State s;
    s.memory.reset(new char[blocks * kBlock + kBytes]);
    const auto start = (reinterpret_cast<uintptr_t>(s.memory.get()) + kBytes - 1) / kBytes * kBytes;
    std::memset(reinterpret_cast<void*>(start), 1, blocks * kBlock);
    s.data = reinterpret_cast<const IntPack*>(start);
    return s;
  };
  auto work = [&](State& s, Barrier&) {
    IntPack sums[kChains] = {};
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t stride = pass % 2 ? -kChains : kChains;
      const IntPack* block = s.data + (pass % 2 ? (blocks - 1) * kChains : 0);
      for (int64_t i = 0; i < blocks; ++i, block += stride)
#pragma GCC unroll 8
        for (int chain = 0; chain < kChains; ++chain) sums[chain] ^= block[chain];
    }
    keep(sums);
  };
  return static_cast<double>(blocks * kBlock) * passes * threads / timed(threads, prepare, work);
}

// Seconds for all threads to meet once.
double measure_barrier(int threads) {
  constexpr int kMeetings = 2000;
  auto work = [](int id, Barrier& barrier) {
    for (int i = 0; i < kMeetings; ++i) barrier.wait(id);
  };
  return timed(threads, [](int id) { return id; }, work) / kMeetings;
}

// Sigmoids (a tanh is one too: 2 sigmoid(2x) - 1) per second.
double measure_sigmoid(int threads) {
  constexpr int kPacks = 64, kRounds = 10000;
  struct State {
    Pack x[kPacks], y[kPacks];
  };
  auto prepare = [](int) {
    State s;
    for (int i = 0; i < kPacks; ++i) s.x[i] = Pack{} + (i - kPacks / 2) * 0.125f;
    return s;
  };
  auto work = [](State& s, Barrier&) {
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 4
      for (int i = 0; i < kPacks; ++i) s.y[i] = 1.0f / (1.0f + exp(-s.x[i]));
      keep(s);
    }
  };
  return static_cast<double>(kLanes) * kPacks * kRounds * threads / timed(threads, prepare, work);
}

}  // extern "C"
