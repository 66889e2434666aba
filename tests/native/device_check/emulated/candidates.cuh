// gpu/candidates.cuh in plain C++, on top of the emulated device.
#pragma once
#include "cuda/primitives.cuh"

namespace rnnfast::device_check {

using namespace cuda;

// arrivals that a phase waits for, in the 8 bytes of a mbarrier
struct Arrivals {
  uint16_t wanted, missing;
  uint32_t phase;
};

inline void warp_barrier() { shuffle(0, 0); }

// get() is asked for the numbers when they are stored
template <class Get>
void store_quad_late(Quad* place, uint64_t* barrier, int rank, const Get& get) {
  Quad* const to = peer(place, rank);
  Mbarrier* const counter = reinterpret_cast<Mbarrier*>(peer(barrier, rank));
  Cluster::current()->store_late(to, [=] {
    *to = get();
    counter->add(-static_cast<int64_t>(sizeof *to));
  });
}
inline void store_word_async(uint32_t* place, uint32_t word, uint64_t* barrier, int rank) {
  store_async(place, word, barrier, rank);
}
inline uint64_t load_packet(const uint64_t* p) { return *p; }

// it is there at once, which is one of the times when it may be
inline void store_quad_there(Quad* place, const Quad& quad, int rank) { *peer(place, rank) = quad; }

inline void arrivals_init(uint64_t* barrier, int arrivals) {
  const uint16_t count = static_cast<uint16_t>(arrivals);
  *reinterpret_cast<Arrivals*>(barrier) = {count, count, 0};
}
inline void arrive_there(uint64_t* barrier, int rank) {
  Arrivals* const counter = reinterpret_cast<Arrivals*>(peer(barrier, rank));
  Cluster::current()->store_late(counter, [=] {
    if (--counter->missing == 0) counter->missing = counter->wanted, ++counter->phase;
  });
}
inline bool arrivals_try_wait(const uint64_t* barrier, int parity) {
  const auto ended = [&] {
    return reinterpret_cast<const volatile Arrivals*>(barrier)->phase % 2 != static_cast<uint32_t>(parity);
  };
  if (!ended()) pause(1);
  return ended();
}

inline void before_copies() {}
inline void copy_async(void* place, const void* from, uint32_t bytes, uint64_t* barrier, int rank) {
  if (bytes % sizeof(Quad)) {
    std::fprintf(stderr, "emulation: a copy of %u bytes\n", bytes);
    std::abort();
  }
  for (uint32_t i = 0; i < bytes / sizeof(Quad); ++i) {
    const Quad* const source = static_cast<const Quad*>(from) + i;
    store_quad_late(static_cast<Quad*>(place) + i, barrier, rank, [=] { return *source; });
  }
}

inline bool mbarrier_try_wait_in_cluster(const uint64_t* barrier, int parity) {
  return mbarrier_try_wait(barrier, parity);
}

}  // namespace rnnfast::device_check
