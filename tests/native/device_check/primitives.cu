// Each primitive of csrc/cuda/primitives.cuh alone against what it is said to do.
#include <cmath>

#include "checks.h"
#include "cuda/primitives.cuh"
#include "device.h"

namespace rnnfast::device_check {
namespace {

using namespace cuda;

struct Numbers {
  float* out;
  const float* in;
};

RNNFAST_KERNEL void exchange(Numbers n) {
  const int lane = thread_index() % kLanes;
  const float mine = static_cast<float>(thread_index() + 100 * block_index());
  const int64_t at = (block_index() * block_size() + thread_index()) * 2;
  n.out[at] = shuffle_xor(mine, 5);
  n.out[at + 1] = shuffle(mine, (lane + 3) % kLanes);
}

Outcome check_exchange() {
  constexpr int kBlocks = 3, kThreads = 64;
  Array<float> out(kBlocks * kThreads * 2);
  finish(launch(exchange, kBlocks, kThreads, nullptr, Numbers{out.get(), nullptr}));
  const std::vector<float> found = out.read();
  int64_t differences = 0;
  for (int b = 0; b < kBlocks; ++b)
    for (int t = 0; t < kThreads; ++t) {
      const int first = t / kLanes * kLanes, lane = t % kLanes;
      differences += found[(b * kThreads + t) * 2] != first + (lane ^ 5) + 100 * b;
      differences += found[(b * kThreads + t) * 2 + 1] != first + (lane + 3) % kLanes + 100 * b;
    }
  return counted(differences, "384 numbers");
}

template <class E>
struct Conversion {
  E* narrowed;
  float* widened_to;
};

template <class E>
RNNFAST_KERNEL void convert(Conversion<E> c) {
  const int64_t i = block_index() * block_size() + thread_index();
  E e;
  e.bits = static_cast<uint16_t>(i);
  c.widened_to[i] = widened(e);
  // between this number and the next, a quarter of the way, three quarters, and halfway
  E next;
  next.bits = static_cast<uint16_t>(i + 1);
  const float a = widened(e), step = widened(next) - a;
  narrow(a + 0.25f * step, c.narrowed[3 * i]);
  narrow(a + 0.75f * step, c.narrowed[3 * i + 1]);
  narrow(a + 0.5f * step, c.narrowed[3 * i + 2]);
}

// mantissa bits of E
template <class E>
Outcome check_conversion(int mantissa, int bias) {
  constexpr int kAll = 1 << 16;
  Array<E> to_narrow(3 * kAll);
  Array<float> to_wide(kAll);
  finish(launch(convert<E>, kAll / 128, 128, nullptr, Conversion<E>{to_narrow.get(), to_wide.get()}));
  const std::vector<E> narrowed = to_narrow.read();
  const std::vector<float> wide = to_wide.read();
  int64_t differences = 0;
  for (int i = 0; i < kAll; ++i) {
    const int fraction = i & ((1 << mantissa) - 1), exponent = (i & 0x7fff) >> mantissa;
    const int highest = 0x7fff >> mantissa;
    const double size = exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                                      : std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
    if (exponent == highest) {
      differences += fraction ? wide[i] == wide[i] : !std::isinf(wide[i]);
      continue;
    }
    differences += wide[i] != static_cast<float>(i & 0x8000 ? -size : size);
    if (exponent + 1 >= highest) continue;  // the next one may be infinite
    differences += narrowed[3 * i].bits != i || narrowed[3 * i + 1].bits != i + 1;
    differences += narrowed[3 * i + 2].bits != (i % 2 ? i + 1 : i);  // ties to even
  }
  return counted(differences, "65,536 numbers and their neighbours");
}

template <class E>
struct Product {
  const E *a, *b;  // [16, numbers], and [8, numbers]: columns
  float* c;        // [16, 8]
};

template <class E>
RNNFAST_KERNEL void product(Product<E> p) {
  constexpr int kNumbers = 32 / sizeof(E), kHigh = kNumbers / 2;
  const int lane = thread_index(), row = lane / 4, at = lane % 4 * (4 / static_cast<int>(sizeof(E)));
  const E *const low = p.a + row * kNumbers + at, *const high = low + 8 * kNumbers;
  const E* const column = p.b + row * kNumbers + at;
  const uint32_t a[] = {as_operand<E>(load_word(low)), as_operand<E>(load_word(high)),
                        as_operand<E>(load_word(low + kHigh)), as_operand<E>(load_word(high + kHigh))};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = p.c[(row + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  multiply_tile<E>(c, a, load_word(column), load_word(column + kHigh));
  for (int i = 0; i < 4; ++i) p.c[(row + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}

// small whole numbers, so that any order of adding them is exact
template <class E>
Outcome check_product(E (*stored)(int)) {
  constexpr int kNumbers = 32 / sizeof(E);
  std::vector<E> a(16 * kNumbers), b(8 * kNumbers);
  int whole_a[16 * kNumbers], whole_b[8 * kNumbers];
  std::vector<float> c(128);
  for (int i = 0; i < 16 * kNumbers; ++i) a[i] = stored(whole_a[i] = i * 7 % 5 - 2);
  for (int i = 0; i < 8 * kNumbers; ++i) b[i] = stored(whole_b[i] = i * 11 % 7 - 3);
  for (int i = 0; i < 128; ++i) c[i] = static_cast<float>(i % 3);
  const Array<E> pa(a), pb(b);
  const Array<float> pc(c);
  finish(launch(product<E>, 1, kLanes, nullptr, Product<E>{pa.get(), pb.get(), pc.get()}));
  const std::vector<float> found = pc.read();
  int64_t differences = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      int sum = (i * 8 + j) % 3;
      for (int k = 0; k < kNumbers; ++k) sum += whole_a[i * kNumbers + k] * whole_b[j * kNumbers + k];
      differences += found[i * 8 + j] != static_cast<float>(sum);
    }
  return counted(differences, "128 sums");
}

// floats as a product reads them: 10 bits of the mantissa, to the nearest, ties away from zero
RNNFAST_KERNEL void round_operands(Numbers n) { narrow_operand(n.in[thread_index()], n.out[thread_index()]); }

Outcome check_operands() {
  const float in[] = {1,         1 + 0x1p-10f, 1 + 0x1p-11f, 1 + 0x1.8p-11f, 1 + 0x0.fp-11f, -1 - 0x1p-11f,
                      0x1p-140f, -3.5f};
  const float expected[] = {1, 1 + 0x1p-10f, 1 + 0x1p-10f, 1 + 0x1p-10f, 1, -1 - 0x1p-10f, 0x1p-140f, -3.5f};
  std::vector<float> numbers(in, in + 8);
  numbers.resize(kLanes);
  const Array<float> from(numbers), to(kLanes);
  finish(launch(round_operands, 1, kLanes, nullptr, Numbers{to.get(), from.get()}));
  const std::vector<float> found = to.read();
  int64_t differences = 0;
  for (int i = 0; i < 8; ++i) differences += i != 6 && found[i] != expected[i];
  return counted(differences, "7 numbers");
}

Bfloat16 as_bfloat16(int n) {
  return {static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(n)) >> 16)};
}
Half as_half(int n) {
  static constexpr uint16_t kSizes[] = {0, 0x3c00, 0x4000, 0x4200};
  return {static_cast<uint16_t>(kSizes[n < 0 ? -n : n] | (n < 0 ? 0x8000 : 0))};
}
float as_float(int n) { return static_cast<float>(n); }

RNNFAST_KERNEL void chunks(Numbers n) {
  const Chunk<float> four = load_chunk(n.in + 4 * thread_index());
  for (int i = 0; i < 4; ++i) n.out[4 * thread_index() + 3 - i] = four.number[i];
}

Outcome check_chunks() {
  std::vector<float> in(128);
  for (int i = 0; i < 128; ++i) in[i] = static_cast<float>(i);
  const Array<float> from(in), to(128);
  finish(launch(chunks, 1, kLanes, nullptr, Numbers{to.get(), from.get()}));
  const std::vector<float> found = to.read();
  int64_t differences = 0;
  for (int i = 0; i < 128; ++i) differences += found[i] != static_cast<float>(i / 4 * 4 + 3 - i % 4);
  return counted(differences, "128 numbers");
}

constexpr int kFollowing = 64 * 128;

// each number becomes its neighbour's, and one more
RNNFAST_KERNEL void turn_on(Numbers n) {
  let_next_begin();
  wait_for_previous();
  const int64_t i = block_index() * block_size() + thread_index();
  n.out[i] = n.in[(i + 1) % kFollowing] + 1;
}

// Kernels of which each may begin before the one before it has ended
Outcome check_following() {
  std::vector<float> in(kFollowing);
  for (int i = 0; i < kFollowing; ++i) in[i] = static_cast<float>(i);
  const Array<float> first(in), second(kFollowing);
  const int launches = is_emulated() ? 10 : 400;
  for (int step = 0; step < launches; ++step) {
    const bool odd = step % 2;
    const Numbers n{odd ? first.get() : second.get(), odd ? second.get() : first.get()};
    must(launch_blocks(turn_on, kFollowing / 128, 128, 0, /*follows=*/step > 0, nullptr, n));
  }
  finish(nullptr);
  const std::vector<float> found = first.read();
  int64_t differences = 0;
  for (int i = 0; i < kFollowing; ++i)
    differences += found[i] != static_cast<float>((i + launches) % kFollowing + launches);
  return counted(differences, std::to_string(kFollowing) + " numbers");
}

constexpr int kCluster = 4, kTurns = 1000;

// each thread tells its number to every block of its cluster, in ten steps
RNNFAST_KERNEL void cluster(Numbers n) {
  uint64_t* const arrivals = shared_memory<uint64_t>();        // [2]
  Quad* const shared = reinterpret_cast<Quad*>(arrivals + 2);  // [2, kCluster, threads]
  const int rank = static_cast<int>(block_index() % kCluster), threads = block_size();
  const auto expect = [&](int step) {
    if (thread_index() == 0)
      mbarrier_expect(arrivals + step % 2, static_cast<uint32_t>(kCluster * threads * sizeof(Quad)));
  };
  if (thread_index() == 0) mbarrier_init(arrivals), mbarrier_init(arrivals + 1);
  expect(0), expect(1);
  float sum = static_cast<float>(block_index() + thread_index());
  cluster_barrier();
  for (int step = 0; step < 10; ++step) {
    Quad* const place = shared + (step % 2 * kCluster + rank) * threads + thread_index();
    Quad quad{};
    for (int i = 0; i < 4; ++i)
      if (i == thread_index() % 4) quad.word[i] = __builtin_bit_cast(uint32_t, sum);
#pragma unroll 1
    for (int other = 0; other < kCluster; ++other) store_async(place, quad, arrivals + step % 2, other);
    // what never comes is wrong in the end, and not waited for for ever
    for (int turn = 0; !mbarrier_try_wait(arrivals + step % 2, step / 2 % 2) && turn < kTurns;) ++turn;
    if (step + 2 < 10) expect(step + 2);
    sum = 0;
    const int next = (thread_index() + 1) % threads;
    for (int other = 0; other < kCluster; ++other) {
      const Quad& came = shared[(step % 2 * kCluster + other) * threads + next];
      sum += __builtin_bit_cast(float, came.word[next % 4]);
    }
    sum *= 0.25f;
    block_barrier();
  }
  n.out[block_index() * threads + thread_index()] = sum;
}

Outcome check_cluster() {
  constexpr int kThreads = 64, kBlocks = 2 * kCluster;
  if (current_device().clusters[kCluster] == 0) return skipped("no clusters here");
  const Array<float> out(kBlocks * kThreads);
  finish(launch_clusters(cluster, 2, kCluster, kThreads, 16 + 2 * kCluster * kThreads * sizeof(Quad), false,
                         nullptr, Numbers{out.get(), nullptr}));
  const std::vector<float> found = out.read();
  int64_t differences = 0;
  for (int b = 0; b < kBlocks; ++b)
    for (int t = 0; t < kThreads; ++t)
      differences += found[b * kThreads + t] != b / kCluster * kCluster + 1.5f + (t + 10) % kThreads;
  return counted(differences, "512 sums");
}

struct Packets {
  uint64_t* places;  // [2, blocks]
  uint64_t* sums;    // [blocks]
  int blocks, steps;
};

// every block's number of a step goes to all others, and the next one depends on them
RNNFAST_KERNEL void packets(Packets p) {
  uint64_t mine = block_index() + 1;
  for (int step = 1; step <= p.steps; ++step) {
    uint64_t* const places = p.places + step % 2 * p.blocks;
    if (thread_index() == 0) store_packet(places + block_index(), uint64_t(step) << 32 | mine);
    uint64_t sum = 0;
    for (int other = 0; other < p.blocks; ++other) {
      const auto load = [&] {
        const PacketPair pair = load_packets(places + other / 2 * 2);
        return other % 2 ? pair.packet[1] : pair.packet[0];
      };
      uint64_t packet = load();
      for (int turn = 0; packet >> 32 != uint64_t(step) && turn < 1 << 24; ++turn) {
        pause(1);
        packet = load();
      }
      sum += static_cast<uint32_t>(packet);
    }
    mine = (sum * 3 + block_index()) % 65521;
    block_barrier();
  }
  if (thread_index() == 0) p.sums[block_index()] = mine;
}

Outcome check_packets() {
  constexpr int kBlocks = 6, kSteps = 50;
  const Array<uint64_t> places(std::vector<uint64_t>(2 * kBlocks)), sums(kBlocks);
  finish(launch_clusters(packets, kBlocks, 1, kLanes, 0, true, nullptr,
                         Packets{places.get(), sums.get(), kBlocks, kSteps}));
  const std::vector<uint64_t> found = sums.read();
  uint64_t expected[kBlocks];
  for (int b = 0; b < kBlocks; ++b) expected[b] = b + 1;
  for (int step = 0; step < kSteps; ++step) {
    uint64_t sum = 0;
    for (const uint64_t n : expected) sum += n;
    for (int b = 0; b < kBlocks; ++b) expected[b] = (sum * 3 + b) % 65521;
  }
  int64_t differences = 0;
  for (int b = 0; b < kBlocks; ++b) differences += found[b] != expected[b];
  return counted(differences, "6 sums");
}

// looks at phases of a mbarrier: one that nobody ends, then the same when it has all of its bytes
RNNFAST_KERNEL void look(Numbers n) {
  uint64_t* const arrival = shared_memory<uint64_t>();
  Quad* const quad = reinterpret_cast<Quad*>(arrival + 2);  // [2]
  const int rank = static_cast<int>(block_index() % 2);
  int ended = 0;
  if (thread_index() == 0) {
    mbarrier_init(arrival);
    mbarrier_expect(arrival, sizeof(Quad));
    mbarrier_expect_more(arrival, sizeof(Quad));
    for (int turn = 0; turn < 100; ++turn) ended += mbarrier_try_wait(arrival, 0);
  }
  cluster_barrier();
  const auto send = [&](int i) {
    if (thread_index() == 0)
      store_async(quad + i, {{0, 0, 0, __builtin_bit_cast(uint32_t, 7.0f)}}, arrival, 1 - rank);
  };
  send(0);
  // half of the bytes do not end it
  if (thread_index() == 0)
    for (int turn = 0; turn < 100; ++turn) ended += mbarrier_try_wait(arrival, 0);
  cluster_barrier();
  send(1);
  if (thread_index() == 0) {
    int turn = 0;
    while (!mbarrier_try_wait(arrival, 0) && turn < kTurns) ++turn;
    n.out[3 * block_index()] = static_cast<float>(ended);
    n.out[3 * block_index() + 1] = turn < kTurns ? __builtin_bit_cast(float, quad[0].word[3]) : 0;
    n.out[3 * block_index() + 2] = turn < kTurns ? __builtin_bit_cast(float, quad[1].word[3]) : 0;
  }
  cluster_barrier();
}

Outcome check_try_wait() {
  if (current_device().clusters[2] == 0) return skipped("no clusters here");
  const Array<float> out(6);
  const double time = microseconds([&] {
    must(launch_clusters(look, 1, 2, kLanes, 16 + 2 * sizeof(Quad), false, nullptr,
                         Numbers{out.get(), nullptr}));
  });
  finish(nullptr);
  const std::vector<float> found = out.read();
  int64_t differences = 0;
  for (int i = 0; i < 6; ++i) differences += found[i] != (i % 3 ? 7.0f : 0.0f);
  if (time > 1e6)
    return {Result::kWrong, "200 looks at a phase that does not end took over a second", 0, 0, {}, 0};
  return counted(differences, "6 answers");
}

}  // namespace

void add_primitives(Checks& checks) {
  const auto add = [&](const std::string& name, const std::function<Outcome()>& run) {
    checks.push_back({"primitive", "primitive-" + name, run});
  };
  add("shuffle", check_exchange);
  add("load_chunk", check_chunks);
  add("wait_for_previous", check_following);
  add("conversion-bf16", [] { return check_conversion<Bfloat16>(7, 127); });
  add("conversion-f16", [] { return check_conversion<Half>(10, 15); });
  add("multiply_tile-bf16", [] { return check_product<Bfloat16>(as_bfloat16); });
  add("multiply_tile-f16", [] { return check_product<Half>(as_half); });
  add("multiply_tile-tf32", [] { return check_product<float>(as_float); });
  add("narrow_operand-tf32", check_operands);
  add("packets", check_packets);
  add("store_async", check_cluster);
  add("mbarrier_try_wait", check_try_wait);
}

}  // namespace rnnfast::device_check
