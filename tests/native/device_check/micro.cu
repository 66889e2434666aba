// What a step's exchange costs by itself, by each way to send and to wait: every block of a team owns a share
// of some words, sends it to all, and its next share is what came from the block after it. So a word that is
// lost or misplaced is wrong to the end; and a first launch, which is not timed, looks at all words of all
// steps.
#include <algorithm>

#include "candidates.cuh"
#include "checks.h"
#include "device.h"

namespace rnnfast::device_check {
namespace {

enum class Way {
  kWord,     // st.async of 4 bytes
  kQuad,     // of 16, as the kernels do it
  kCluster,  // the same, waited for with the order of the cluster
  kPlain,    // st.shared::cluster of 16 bytes, and an arrival of each warp at each block
  kCopy      // one bulk copy to each block
};

struct Exchanged {
  int blocks, words, steps;
  bool looks;  // at all that comes
  int64_t patience;
  volatile uint32_t* failed;
  uint64_t* places;  // of packets: [2, words], zeros
  uint32_t* last;    // [blocks, words]: what came in the last step
  uint32_t* wrong;   // [blocks, threads]: how many words were, of those that were looked at
};

// word i of a step
RNNFAST_BOTH uint32_t word_of_step(int i, int step, int share, int words) {
  return static_cast<uint32_t>((i + static_cast<int64_t>(step) * share) % words) * 2654435761u + 1;
}

// What the kernels have in common: two buffers [words] in turn, the first one filled for step 0
struct Buffers {
  const Exchanged& p;
  uint32_t* words;
  uint32_t wrong = 0;
  bool lost = false;

  RNNFAST_INLINE int share() const { return p.words / p.blocks; }
  RNNFAST_INLINE int rank() const { return static_cast<int>(block_index()); }
  RNNFAST_INLINE uint32_t* of(int step) const { return words + (step & 1) * p.words; }
  // of this block's share the word i of a step, or what stands where it comes from
  RNNFAST_INLINE int own(int i) const { return rank() * share() + i; }
  RNNFAST_INLINE const uint32_t* source(int step, int i) const {
    const int next = rank() + 1 < p.blocks ? rank() + 1 : 0;
    return of(step - 1) + next * share() + i;
  }
  RNNFAST_INLINE void begin() const {
    for (int i = thread_index(); i < p.words; i += block_size())
      words[i] = word_of_step(i, 0, share(), p.words);
  }
  RNNFAST_INLINE void look(int step) {
    if (!p.looks) return;
    for (int i = thread_index(); i < p.words; i += block_size())
      wrong += of(step)[i] != word_of_step(i, step, share(), p.words);
    block_barrier();
  }
  RNNFAST_INLINE void end() const {
    if (lost) *p.failed = 1;
    for (int i = thread_index(); i < p.words; i += block_size())
      p.last[block_index() * p.words + i] = of(p.steps)[i];
    p.wrong[block_index() * block_size() + thread_index()] = wrong;
  }
  // until ready(), but not for ever; whether it is too late is asked now and then, for it takes long
  template <class Ready>
  RNNFAST_INLINE void wait(const Ready& ready) {
    int64_t since = 0;
    for (int turn = 1; !lost && !ready(); ++turn) {
      if (turn % 256) continue;
      const int64_t now = nanoseconds();
      if (!since) since = now;
      lost = now - since > p.patience || *p.failed;
    }
  }
};

// f(each block of the cluster, this one first)
template <class F>
RNNFAST_INLINE void each_block(const Buffers& b, const F& f) {
  int to = b.rank();
  for (int i = 0; i < b.p.blocks; ++i) {
    f(to);
    to = to + 1 < b.p.blocks ? to + 1 : 0;
  }
}

template <Way way>
RNNFAST_KERNEL void exchange_in_cluster(Exchanged p) {
  uint64_t* const arrivals = shared_memory<uint64_t>();  // [2]
  Buffers b{p, reinterpret_cast<uint32_t*>(arrivals + 2)};
  uint32_t* const copied = b.words + 2 * p.words;  // [2, share]: from where copies go
  const int share = b.share();
  constexpr int kNumbers = way == Way::kWord ? 1 : 4;  // of a store
  const auto expect = [&](int step) {
    if (way != Way::kPlain && thread_index() == 0)
      mbarrier_expect(arrivals + (step & 1), static_cast<uint32_t>(p.words * 4));
  };
  if (thread_index() == 0)
    for (int i = 0; i < 2; ++i) {
      if (way == Way::kPlain)
        arrivals_init(arrivals + i, p.blocks * block_size() / kLanes);
      else
        mbarrier_init(arrivals + i);
    }
  expect(0), expect(1);
  b.begin();
  cluster_barrier();
  for (int step = 1; step <= p.steps && !b.lost; ++step) {
    uint64_t* const arrival = arrivals + (step & 1);
    for (int i = thread_index() * kNumbers; i < share; i += block_size() * kNumbers) {
      uint32_t* const place = b.of(step) + b.own(i);
      const uint32_t* const from = b.source(step, i);
      if constexpr (kNumbers == 1) {
        const uint32_t word = *from;
        each_block(b, [&](int to) { store_word_async(place, word, arrival, to); });
      } else {
        const Quad quad{{from[0], from[1], from[2], from[3]}};
        if constexpr (way == Way::kQuad || way == Way::kCluster)
          each_block(b, [&](int to) { store_async(reinterpret_cast<Quad*>(place), quad, arrival, to); });
        else if constexpr (way == Way::kPlain)
          each_block(b, [&](int to) { store_quad_there(reinterpret_cast<Quad*>(place), quad, to); });
        else
          *reinterpret_cast<Quad*>(copied + (step & 1) * share + i) = quad;
      }
    }
    if constexpr (way == Way::kPlain) {
      warp_barrier();
      for (int to = thread_index() % kLanes; to < p.blocks; to += kLanes) arrive_there(arrival, to);
    }
    if constexpr (way == Way::kCopy) {
      before_copies();
      block_barrier();
      for (int to = thread_index(); to < p.blocks; to += block_size())
        copy_async(b.of(step) + b.own(0), copied + (step & 1) * share, static_cast<uint32_t>(share * 4),
                   arrival, to);
    }
    const int parity = (step - 1) >> 1 & 1;
    b.wait([&] {
      return way == Way::kPlain     ? arrivals_try_wait(arrival, parity)
             : way == Way::kCluster ? mbarrier_try_wait_in_cluster(arrival, parity)
                                    : mbarrier_try_wait(arrival, parity);
    });
    if (!b.lost) expect(step + 2);
    b.look(step);
  }
  b.end();
  cluster_barrier();  // who waited in vain leaves with the others
}

// through global memory, in packets that carry their step, as the kernels of a grid do
RNNFAST_KERNEL void exchange_in_packets(Exchanged p) {
  Buffers b{p, shared_memory<uint32_t>()};
  b.begin();
  block_barrier();
  for (int step = 1; step <= p.steps && !b.lost; ++step) {
    uint64_t* const places = p.places + (step & 1) * p.words;
    for (int i = thread_index(); i < b.share(); i += block_size())
      store_packet(places + b.own(i), static_cast<uint64_t>(step) << 32 | *b.source(step, i));
    constexpr int kAtOnce = 8;
    for (int first = thread_index(); first < p.words; first += kAtOnce * block_size()) {
      uint64_t packet[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * block_size();
        packet[j] = i < p.words ? load_packet(places + i) : 0;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * block_size();
        if (i >= p.words) continue;
        if (packet[j] >> 32 != static_cast<uint64_t>(step))
          b.wait([&] {
            pause(1);
            packet[j] = load_packet(places + i);
            return packet[j] >> 32 == static_cast<uint64_t>(step);
          });
        b.of(step)[i] = static_cast<uint32_t>(packet[j]);
      }
    }
    block_barrier();
    b.look(step);
  }
  b.end();
}

// one word to and fro between two blocks: each step is one way
RNNFAST_KERNEL void bounce(Exchanged p) {
  Buffers b{p, shared_memory<uint32_t>()};
  if (thread_index() == 0) {
    uint64_t packet = 0;
    for (int step = 1; step <= p.steps && !b.lost; ++step) {
      uint64_t* const place = p.places + (step & 1);
      if (step % 2 == b.rank()) {
        packet = (packet + 1) % 65521;
        store_packet(place, static_cast<uint64_t>(step) << 32 | packet);
        continue;
      }
      b.wait([&] {
        pause(1);
        packet = load_packet(place);
        return packet >> 32 == static_cast<uint64_t>(step);
      });
      packet = static_cast<uint32_t>(packet);
    }
    if (b.lost) *p.failed = 1;
    p.last[block_index() * p.words] = static_cast<uint32_t>(packet);
  }
  p.wrong[block_index() * block_size() + thread_index()] = 0;
}

// a word from each thread to the next one, and the barrier of one block
RNNFAST_KERNEL void meet(Exchanged p) {
  Buffers b{p, shared_memory<uint32_t>()};
  b.begin();
  block_barrier();
  const int next = thread_index() + 1 < block_size() ? thread_index() + 1 : 0;
  for (int step = 1; step <= p.steps; ++step) {
    b.of(step)[thread_index()] = b.of(step - 1)[next];
    block_barrier();
  }
  b.end();
}

int threads() { return is_emulated() ? 64 : 384; }

// launch(parameters): null or what went wrong. expected(i): a word of the last step
template <class Launch, class Expected>
Outcome measure(Exchanged p, const Launch& launch, const Expected& expected) {
  Array<uint64_t> places(2 * p.words);
  Array<uint32_t> last(static_cast<int64_t>(p.blocks) * p.words), wrong(p.blocks * threads());
  p.places = places.get(), p.last = last.get(), p.wrong = wrong.get();
  p.patience = 500'000'000, p.failed = cuda::failure_word();
  const auto differing = [&] {
    int64_t count = 0;
    for (const uint32_t n : wrong.read()) count += n;
    const std::vector<uint32_t> found = last.read();
    for (size_t i = 0; i < found.size(); ++i)
      count += found[i] != expected(static_cast<int>(i) % p.words, p.steps);
    return count;
  };
  const auto run = [&](bool looks, int steps) {
    p.looks = looks, p.steps = steps;
    places.zero(), last.poison(), wrong.poison();
    const double time = microseconds([&] { must(launch(p)); });
    finish(nullptr);
    return time;
  };
  const std::string words = std::to_string(p.words) + " words of " + std::to_string(p.blocks) + " blocks";
  run(true, is_emulated() ? 4 : 50);
  const Outcome looked = counted(differing(), words + ", in all steps that were looked at,");
  if (looked.result != Result::kRight) return looked;
  std::vector<double> times;
  for (int i = 0; i < (is_emulated() ? 1 : 6); ++i) {
    times.push_back(run(false, is_emulated() ? 3 : 3000));
    const Outcome timed = counted(differing(), words + " in the last step");
    if (timed.result != Result::kRight) return timed;
  }
  std::sort(times.begin(), times.end());
  Outcome outcome;
  outcome.us_a_step = times[times.size() / 2] / p.steps;
  return outcome;
}

Outcome rotated(const Exchanged& p, void (*kernel)(Exchanged), int64_t bytes, bool in_cluster) {
  const int threads_of_a_block = threads();
  const auto launch = [=](const Exchanged& parameters) {
    return in_cluster
               ? launch_clusters(kernel, 1, p.blocks, threads_of_a_block, bytes, false, nullptr, parameters)
               : launch_clusters(kernel, p.blocks, 1, threads_of_a_block, bytes, true, nullptr, parameters);
  };
  return measure(p, launch,
                 [=](int i, int step) { return word_of_step(i, step, p.words / p.blocks, p.words); });
}

template <Way way>
Outcome cluster(int blocks, int words) {
  if (current_device().clusters[blocks] == 0) return skipped("no clusters of so many blocks here");
  Exchanged p{};
  p.blocks = blocks, p.words = words;
  return rotated(p, exchange_in_cluster<way>, 16 + 4 * (2 * words + 2 * words / blocks), true);
}

Outcome packets(int blocks, int words) {
  if (current_device().multiprocessors < blocks) return skipped("fewer multiprocessors than blocks");
  Exchanged p{};
  p.blocks = blocks, p.words = words;
  return rotated(p, exchange_in_packets, 8 * words, false);
}

Outcome packet_latency() {
  Exchanged p{};
  p.blocks = 2, p.words = 1;
  const auto launch = [](const Exchanged& parameters) {
    return launch_clusters(bounce, 2, 1, threads(), 16, true, nullptr, parameters);
  };
  return measure(p, launch, [](int, int step) { return static_cast<uint32_t>(step % 65521); });
}

Outcome barrier() {
  Exchanged p{};
  p.blocks = 1, p.words = threads();
  const auto launch = [](const Exchanged& parameters) {
    return launch_clusters(meet, 1, 1, threads(), 8 * threads(), false, nullptr, parameters);
  };
  return measure(p, launch, [=](int i, int step) { return word_of_step(i, step, 1, p.words); });
}

}  // namespace

void add_micro(Checks& checks) {
  const auto add = [&](const std::string& name, const std::function<Outcome()>& run) {
    checks.push_back({"micro", "micro-" + name, run});
  };
  const auto size = [](int blocks, int kilobytes) {
    return "-c" + std::to_string(blocks) + "-" + std::to_string(kilobytes) + "k";
  };
  constexpr int kClusters[] = {2, 4, 8, 16}, kKilobytes[] = {2, 8, 32};
  for (const int blocks : kClusters)
    for (const int kilobytes : kKilobytes) {
      const int words = 256 * kilobytes;
      const std::string of = size(blocks, kilobytes);
      add("send-b32" + of, [=] { return cluster<Way::kWord>(blocks, words); });
      add("send-v4" + of, [=] { return cluster<Way::kQuad>(blocks, words); });
      add("send-plain" + of, [=] { return cluster<Way::kPlain>(blocks, words); });
      add("send-bulk" + of, [=] { return cluster<Way::kCopy>(blocks, words); });
    }
  for (const int blocks : kClusters) {
    add("wait-cluster" + size(blocks, 8), [=] { return cluster<Way::kCluster>(blocks, 2048); });
    add("wait-cta" + size(blocks, 8), [=] { return cluster<Way::kQuad>(blocks, 2048); });
    add("empty-c" + std::to_string(blocks), [=] { return cluster<Way::kWord>(blocks, blocks); });
  }
  for (const int blocks : {8, 64, 128})
    for (const int kilobytes : {2, 8})
      add("packets-b" + std::to_string(blocks) + "-" + std::to_string(kilobytes) + "k",
          [=] { return packets(blocks, 256 * kilobytes); });
  add("packet-latency", packet_latency);
  add("block-barrier", barrier);
}

}  // namespace rnnfast::device_check
