// csrc/cuda/primitives.cuh in plain C++, found before it, for kernels whose threads are the fibers of a
// Cluster. Proves the kernels' indices and their meeting points, not the hardware.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "cuda/cluster.h"
#include "types.h"

#undef RNNFAST_INLINE
#define RNNFAST_INLINE inline
#define RNNFAST_BOTH inline
#define RNNFAST_KERNEL inline
#define RNNFAST_READ_ONLY
#define __launch_bounds__(...)

namespace rnnfast::cuda {

// of what is sent to another block every so many stores never arrive; 0: all do
inline int loses_each = 0;
inline int64_t stores = 0;  // to other blocks, since that was said
// of the kernel that runs so many threads have waited for the one before it
inline int64_t waited = 0;
constexpr bool kHopper = true;
inline void let_next_begin() {}
inline void wait_for_previous() { ++waited; }
// so many kernels have been started
inline int64_t launches = 0;
// of each cluster a block whose stores to others never arrive; -1: none
inline int silent_block = -1;

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

inline void check_chunk(const void* p, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % 16) {
    std::fprintf(stderr, "emulation: a %s of 16 bytes at %p\n", what, p);
    std::abort();
  }
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
  return Cluster::current()->block() == silent_block || (loses_each && ++stores % loses_each == 0);
}
struct Quad {
  alignas(16) uint32_t word[4];
};
template <class V>
void store_async(V* place, const V& value, uint64_t* barrier, int rank) {
  if (Cluster::current()->blocks() < 2) {
    std::fprintf(stderr, "emulation: store_async without a cluster\n");
    std::abort();
  }
  V* const to = peer(place, rank);
  Mbarrier* const counter = reinterpret_cast<Mbarrier*>(peer(barrier, rank));
  if (is_lost()) return;
  Cluster::current()->store_late(to, [=] {
    if (Cluster::current()->left(rank)) {
      std::fprintf(stderr, "emulation: a store to the shared memory of a block that has left\n");
      std::abort();
    }
    *to = value;
    counter->add(-static_cast<int64_t>(sizeof value));
  });
}

inline void prefetch(const void*) {}

// so many copies of 16 bytes to shared memory have been asked for
inline int64_t copies = 0;
// What is copied comes at the last moment that it may, and until then there is NaN.
struct Copies {
  std::vector<std::function<void()>> open;
  std::vector<std::vector<std::function<void()>>> committed;

  static std::map<std::pair<int64_t, int>, Copies>& of_all() {
    static thread_local std::map<std::pair<int64_t, int>, Copies> copies;
    return copies;
  }
  static Copies& mine() { return of_all()[{block_index(), thread_index()}]; }
  // of blocks that have ended
  static void forget() {
    for (const auto& [_, copies] : of_all())
      for (const auto& some : copies.committed)
        if (!some.empty()) {
          std::fprintf(stderr, "emulation: a block has left before its copies came\n");
          std::abort();
        }
    of_all().clear();
  }
};
inline void copy_async(void* to, const void* from, bool present) {
  check_chunk(to, "copy to"), check_chunk(from, "copy");
  peer(static_cast<Quad*>(to), cluster_rank());  // it is in this block's shared memory
  std::memset(to, 0xff, 16);
  ++copies;
  Copies::mine().open.push_back([=] {
    if (present)
      std::memcpy(to, from, 16);
    else
      std::memset(to, 0, 16);
  });
}
inline void commit_copies() {
  Copies& mine = Copies::mine();
  mine.committed.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int n>
void wait_for_copies() {
  auto& committed = Copies::mine().committed;
  while (committed.size() > n) {
    for (const auto& copy : committed.front()) copy();
    committed.erase(committed.begin());
  }
}

inline void load_matrices(uint32_t (&word)[4], const void* place) {
  check_chunk(place, "load of a row");
  struct Asked {
    const void* place;
    uint32_t* word;
  };
  Cluster::current()->meet_warp(Asked{place, word}, [](const auto& of) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const char* const row = static_cast<const char*>(of(i * 8 + lane / 4).place);
        std::memcpy(of(lane).word + i, row + lane % 4 * 4, 4);
      }
  });
}

inline float load_of_block(const float* place, int rank) {
  if (Cluster::current()->left(rank)) {
    std::fprintf(stderr, "emulation: a load from the shared memory of a block that has left\n");
    std::abort();
  }
  return *peer(const_cast<float*>(place), rank);
}

// A store is seen late: when the scheduler says so.
inline void store_packet(uint64_t* p, uint64_t v) {
  if (!is_lost()) Cluster::current()->store_late(p, [=] { *p = v; });
}
struct PacketPair {
  uint64_t packet[2];
};
inline PacketPair load_packets(const uint64_t* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(PacketPair)) {
    std::fprintf(stderr, "emulation: a load of two packets at %p\n", static_cast<const void*>(p));
    std::abort();
  }
  return {{p[0], p[1]}};
}
inline void pause(int) { Cluster::current()->rest(); }

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
template <class T>
T* made_here(T* p) {
  return p;
}
inline int kept(int value) { return shuffle_xor(value, 0); }

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
inline void narrow(Bfloat16 v, Bfloat16& to) { to = v; }
inline void narrow(Half v, Half& to) { to = v; }
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
  check_chunk(p, "load");
  Chunk<E> chunk;
  std::memcpy(&chunk, p, sizeof chunk);
  return chunk;
}
template <class E>
void store_chunk(E* p, const Chunk<E>& chunk) {
  check_chunk(p, "store");
  std::memcpy(p, &chunk, sizeof chunk);
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
  ++launches;
  if (together) cluster *= clusters, clusters = 1;
  std::vector<int64_t> order(clusters);
  for (int64_t i = 0; i < clusters; ++i) order[i] = i;
  for (int64_t i = clusters - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  for (const int64_t i : order) {
    Cluster blocks(i * cluster, cluster, threads, bytes, random());
    blocks.run([&] { kernel(argument); });
    Copies::forget();
  }
  return nullptr;
}

template <class Argument>
const char* launch_blocks(void (*kernel)(Argument), int64_t blocks, int threads, size_t bytes, bool follows,
                          void* stream, const Argument& argument, int cluster = 1) {
  waited = 0;
  const char* const error =
      launch_clusters(kernel, blocks / cluster, cluster, threads, bytes, false, stream, argument);
  if (follows && waited != blocks * threads) {
    std::fprintf(stderr, "emulation: of %lld threads %lld wait for the kernel before\n",
                 static_cast<long long>(blocks * threads), static_cast<long long>(waited));
    std::abort();
  }
  return error;
}
template <class Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, void* stream,
                   const Argument& argument) {
  return launch_blocks(kernel, blocks, threads, 0, false, stream, argument);
}

}  // namespace rnnfast::cuda
