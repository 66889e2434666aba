// The deep-transition RNN, whole sequences in one launch. A team of blocks (one, or a cluster) takes 8 rows
// of the batch; its blocks share out the units, and each keeps their rows of every layer's W in shared
// memory, as operands of the matrix instruction. What travels from one product to the next is what that one
// reads: activations and h, or backward dL/d(pre-activations). All layers are taken as wide as the widest:
// what a narrower one has not is zeros.
#pragma once
#include "cuda/resident_thread.cuh"

namespace rnnfast::cuda {

constexpr int kDeepUnits = 2;  // of a thread, kWarpUnits apart: a row of the instruction each

// What a thread knows, and the product. `makes`: it ends up with the whole sums of its units in two rows.
template <class E, Team kTeam>
struct DeepThread {
  typedef typename ComputeType<E>::type A;
  typedef A Numbers[kDeepUnits][2];
  static constexpr int kHigh = kTile<E> / 2;  // from a thread's low word of a tile to its high one

  const ResidentDeep<E>& deep;
  Place<E, 0, 1, Team::kCluster> my{deep.links};  // one block, too, has all of W in shared memory
  int base = kept(my.group * kWarpUnits * kDeepUnits + my.row), width = static_cast<int>(deep.width);
  int batch = static_cast<int>(deep.batch), times = static_cast<int>(deep.times);
  int place = kept(my.first * times);  // of this thread's first row at time step 0; the second is `times` on
  bool makes = my.part == 0;
  SharedMemory shared;
  Exchange<E, kTeam> exchange = take_exchange<E, kTeam>(shared, my, width);
  int size = my.warps * my.held * kLanes * 4;  // words of a product's W
  // [products, warps, held, kLanes, 4], of this warp, from this lane's on
  Shared<uint32_t> weights =
      shared.take<uint32_t>(deep.products * size).from((my.warp * my.held * kLanes + my.lane) * 4).kept();
  Parts<A, 2 * kDeepUnits, 4> parts = take_parts<A, 2 * kDeepUnits, 4>(shared, my.warps - my.groups, my.lane);

  RNNFAST_INLINE explicit DeepThread(const ResidentDeep<E>& parameters) : deep(parameters) {}

  RNNFAST_INLINE int unit_of(int k) const { return base + k * kWarpUnits; }
  // of what product i makes
  RNNFAST_INLINE int units(int i) const { return static_cast<int>(deep.units[i]); }

  // f(k, n) of this thread's units and rows
  template <class F>
  RNNFAST_INLINE static void each(const F& f) {
#pragma unroll
    for (int k = 0; k < kDeepUnits; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n) f(k, n);
  }
  // This thread's numbers of an array [rows, ld], of row `row` and of row `row + apart`. Who has no unit or
  // no row reads those of another, for sums that nobody stores.
  RNNFAST_INLINE void get(const A* from, int64_t ld, int row, int apart, int64_t rows, int count,
                          Numbers& to) const {
    each([&](int k, int n) {
      const int at = least(row + n * apart, static_cast<int>(rows) - 1), unit = least(unit_of(k), count - 1);
      to[k][n] = row_at(from, at, static_cast<int>(ld * sizeof(A)))[static_cast<unsigned>(unit)];
    });
  }
  // and into such an array, where there are such
  template <class T>
  RNNFAST_INLINE void put(const Numbers& from, T* to, int64_t ld, int row, int apart, int count) const {
    const Pair rows = rows_of_batch(my.first, batch);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      T* const of_row =
          row_at(to + static_cast<unsigned>(base), row + n * apart, static_cast<int>(ld * sizeof(T)));
#pragma unroll
      for (int k = 0; k < kDeepUnits; ++k)
        if (rows.has(n) && unit_of(k) < count) narrow(from[k][n], of_row[k * kWarpUnits]);
    }
  }

  RNNFAST_INLINE uint32_t* operand(int i, int t) const {
    return weights.from(i * size + t * kLanes * 4).get();
  }
  RNNFAST_INLINE void load_weights() const {
    for (int i = 0; i < deep.products; ++i)
      for (int t = 0; t < my.held; ++t)
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          // a unit beyond the last computes what nobody takes
          const int64_t row = int64_t{i} * width + least(unit_of(word % 2), width - 1);
          const int k = my.part * my.length + my.offset + t * kTile<E> + word / 2 * kHigh;
          operand(i, t)[word] = as_operand<E>(load_word(deep.w + row * deep.ldw + k));
        }
  }

  // f(row of the batch, number): what the first product reads
  template <class F>
  RNNFAST_INLINE void fill(const F& f) const {
    for (int i = thread_index(); i < 2 * exchange.size; i += block_size()) {
      const int b = my.first - my.column + i % exchange.size / my.ld, k = i % my.ld;
      narrow_operand(b < batch && k < deep.H ? f(int64_t{b}, k) : A(0), exchange.buffers[i]);
    }
  }

  // sums += this warp's part of the i-th W times the row at `from`, in two chains
  RNNFAST_INLINE void multiply_held(int i, const E* from, A (&sums)[2][2 * kDeepUnits]) const {
#pragma unroll 2
    for (int t = 0; t < my.held; t += 2)
#pragma unroll
      for (int chain = 0; chain < 2; ++chain) {
        const E* const here = from + (t + chain) * kTile<E>;
        uint32_t low = load_word(here);
        if (exchange.lost && t + chain == 0) low = kNanWord<E>;
        multiply_tile<E>(sums[chain], load_chunk(operand(i, t + chain)).number, low, load_word(here + kHigh));
      }
  }
  // sum += the i-th W times what came for product q of all, by the warps that share it; the first has all
  RNNFAST_INLINE void product(int q, int i, Numbers& sum) {
    A half[2][2 * kDeepUnits] = {{sum[0][0], sum[0][1], sum[1][0], sum[1][1]}, {}};
    multiply_held(i, my.operand(exchange.buffer(q), 0), half);
    parts.leave(my.part > 0, my.warp - my.groups, [&](int j) { return half[0][j] + half[1][j]; });
#pragma unroll
    for (int j = 0; j < 2 * kDeepUnits; ++j) sum[j / 2][j % 2] = half[0][j] + half[1][j];
    if (makes)
#pragma unroll 1
      for (int other = 1; other < my.split; ++other) {
        const auto part = parts.of(my.warp_of(other) - my.groups)[0];
#pragma unroll
        for (int j = 0; j < 2 * kDeepUnits; ++j) sum[j / 2][j % 2] += part.number[j];
      }
    parts.next();
  }

  // to all who read it in product q of all
  RNNFAST_INLINE void send(int q, const Numbers& made) const {
    E sent[kDeepUnits][2];
#pragma unroll
    for (int j = 0; j < 2 * kDeepUnits; ++j) narrow_operand(made[j / 2][j % 2], sent[j / 2][j % 2]);
    exchange.send(q, 0, my.column, base, kWarpUnits, base < width, sent);
  }
};

template <class E, Team kTeam>
struct DeepForwardThread : DeepThread<E, kTeam> {
  typedef DeepThread<E, kTeam> Thread;
  typedef typename Thread::A A;
  typedef typename Thread::Numbers Numbers;
  using Thread::batch, Thread::deep, Thread::each, Thread::my, Thread::place, Thread::shared, Thread::times,
      Thread::unit_of, Thread::units, Thread::width;

  const ResidentDeepForward<E>& p;
  // [layers, warps, kWarpUnits], of this thread's units
  Shared<Several<A, kDeepUnits>> bias =
      shared.template take<Several<A, kDeepUnits>>(deep.products * my.warps * kWarpUnits)
          .from(my.warp * kWarpUnits + my.row);

  RNNFAST_INLINE explicit DeepForwardThread(const ResidentDeepForward<E>& parameters)
      : Thread(parameters), p(parameters) {}

  RNNFAST_INLINE void load_bias() const {
    for (int layer = 0; layer < deep.products; ++layer) {
      Several<A, kDeepUnits> of{};
      for (int k = 0; k < kDeepUnits; ++k)
        if (p.bias && my.part == 0 && unit_of(k) < deep.units[layer])
          of.number[k] = widened(p.bias[int64_t{layer} * width + unit_of(k)]);
      if (my.lane % 4 == 0) bias[layer * my.warps * kWarpUnits] = of;
    }
  }
  // what x adds in step s of this launch
  RNNFAST_INLINE void load_input(int s, Numbers& next) const {
    this->get(p.input, deep.units[0], s * batch + my.first, 1, p.steps * deep.batch, units(0), next);
  }
  RNNFAST_INLINE void begin_sum(int layer, const Numbers& next, Numbers& sum) const {
    const Several<A, kDeepUnits> constant = bias[layer * my.warps * kWarpUnits];
    each([&](int k, int n) { sum[k][n] = constant.number[k] + (layer ? A(0) : next[k][n]); });
  }
  // the sums become what the layer gives, and zeros of units that it has not
  RNNFAST_INLINE void activate(int layer, Numbers& sum) const {
    const bool last = layer + 1 == deep.products;
    each([&](int k, int n) {
      const A made = last ? sum[k][n] : leaky_relu(sum[k][n], p.slope);
      sum[k][n] = unit_of(k) < units(layer) ? made : A(0);
    });
  }
  RNNFAST_INLINE void store(int s, int layer, const Numbers& made) const {
    const int row = place + static_cast<int>(p.first_step) + s;
    if (layer + 1 == deep.products)
      this->put(made, p.y, deep.H, row, times, units(layer));
    else if (A* const acts = p.acts[layer])
      this->put(made, acts, p.lda[layer], row, times, units(layer));
  }
  // h after the last step
  RNNFAST_INLINE void leave(const Numbers& made) const {
    this->put(made, p.h, p.Hp, my.first, 1, static_cast<int>(deep.H));
  }
};

template <class E, Team kTeam>
RNNFAST_KERNEL void __launch_bounds__(kMostDeepWarps* kLanes, 1)
    resident_deep_forward(const RNNFAST_READ_ONLY ResidentDeepForward<E> p) {
  typedef DeepForwardThread<E, kTeam> Thread;
  Thread thread(p);
  typename Thread::Numbers next = {};
  thread.load_weights();
  thread.load_bias();
  thread.fill([&](int64_t b, int k) { return p.h[b * p.Hp + k]; });
  if (thread.makes) thread.load_input(0, next);
  thread.exchange.begin();
  const int steps = static_cast<int>(p.steps), layers = p.products, all = steps * layers;
  int s = 0, layer = 0;
  for (int q = 0;;) {
    typename Thread::Numbers sum;
    thread.begin_sum(layer, next, sum);
    thread.product(q, layer, sum);
    const bool last = layer + 1 == layers;
    if (thread.makes) {
      thread.activate(layer, sum);
      if (q + 1 < all) thread.send(q + 1, sum);
      // all the rest while what was sent is on its way
      thread.store(s, layer, sum);
      if (last && s + 1 < steps) thread.load_input(s + 1, next);
      if (q + 1 == all) thread.leave(sum);
    }
    thread.exchange.finish();
    if (++q == all) break;
    layer = last ? 0 : layer + 1, s += last;
    thread.exchange.receive(q, 0);
  }
  thread.exchange.end();
}

// Product i of a step makes dL/d(pre-activations), da, of the layer below the one whose da it reads; the last
// one those of the last layer in the step before, or of the state before the first step.
template <class E, Team kTeam>
struct DeepBackwardThread : DeepThread<E, kTeam> {
  typedef DeepThread<E, kTeam> Thread;
  typedef typename Thread::A A;
  typedef typename Thread::Numbers Numbers;
  using Thread::deep, Thread::each, Thread::my, Thread::place, Thread::times, Thread::unit_of, Thread::units;

  const ResidentDeepBackward<E>& p;
  int last = deep.products - 1;

  RNNFAST_INLINE explicit DeepBackwardThread(const ResidentDeepBackward<E>& parameters)
      : Thread(parameters), p(parameters) {}

  // da of the last layer in the last step
  RNNFAST_INLINE A first_of(int64_t b, int64_t unit) const {
    const A dh = p.dhn ? p.dhn[b * deep.H + unit] : A(0);
    return p.dy ? dh + p.dy[(b * deep.times + deep.times - 1) * deep.H + unit] : dh;
  }
  RNNFAST_INLINE void store_first() const {
    Numbers da;
    each([&](int k, int n) {
      const int b = least(my.batch_row(0, n), static_cast<int>(deep.batch) - 1);
      da[k][n] = first_of(b, least(unit_of(k), static_cast<int>(deep.H) - 1));
    });
    this->put(da, p.da[last], p.ldd[last], place + times - 1, times, units(last));
  }

  // what product i of time step t makes da of: activations, or dy of the step before
  RNNFAST_INLINE void load_saved(int i, int t, Numbers& saved) const {
    const int64_t places = deep.batch * deep.times;
    if (i < last)
      this->get(p.acts[i], p.ldd[i], place + t, times, places, units(i), saved);
    else if (p.dy && t > 0)
      this->get(p.dy, deep.H, place + t - 1, times, places, units(i), saved);
    else
      each([&](int k, int n) { saved[k][n] = 0; });
  }
  // the sums become da, and zeros of units that there are not
  RNNFAST_INLINE void pass_back(int i, const Numbers& saved, Numbers& sum) const {
    each([&](int k, int n) {
      const A da = i < last ? leaky_relu_backward(saved[k][n], sum[k][n], p.slope) : sum[k][n] + saved[k][n];
      sum[k][n] = unit_of(k) < units(i) ? da : A(0);
    });
  }
  RNNFAST_INLINE void store(int i, int t, const Numbers& da) const {
    const int of = i < last ? t : t - 1;
    if (of >= 0)
      this->put(da, p.da[i], p.ldd[i], place + of, times, units(i));
    else
      this->put(da, p.dh0, deep.H, my.first, 1, units(i));
  }
};

template <class E, Team kTeam>
RNNFAST_KERNEL void __launch_bounds__(kMostDeepWarps* kLanes, 1)
    resident_deep_backward(const RNNFAST_READ_ONLY ResidentDeepBackward<E> p) {
  typedef DeepBackwardThread<E, kTeam> Thread;
  Thread thread(p);
  typename Thread::Numbers saved = {};
  thread.load_weights();
  thread.fill([&](int64_t b, int k) { return thread.first_of(b, k); });
  const int times = static_cast<int>(p.times), products = p.products;
  if (thread.makes) {
    thread.store_first();
    thread.load_saved(0, times - 1, saved);
  }
  thread.exchange.begin();
  int t = times - 1, i = 0;
  for (int q = 0;;) {
    typename Thread::Numbers sum = {};
    thread.product(q, i, sum);
    // the next one
    const int last = i + 1 == products, next = last ? 0 : i + 1, next_t = t - last;
    if (thread.makes) {
      thread.pass_back(i, saved, sum);
      if (next_t >= 0) {
        thread.send(q + 1, sum);
        thread.load_saved(next, next_t, saved);
      }
      thread.store(i, t, sum);
    }
    thread.exchange.finish();
    if (next_t < 0) break;
    ++q, i = next, t = next_t;
    thread.exchange.receive(q, 0);
  }
  thread.exchange.end();
}

template <class E, template <class> class Params>
const char* launch_deep(void (*block)(Params<E>), void (*cluster)(Params<E>), const Params<E>& p,
                        const ResidentPlan& plan, void* stream) {
  return launch_clusters(plan.team == Team::kCluster ? cluster : block, divide_up(p.batch, kBatch),
                         plan.blocks, plan.warps * kLanes, plan.bytes, /*together=*/false, stream, p);
}

template <class E>
const char* resident_deep_forward(const ResidentDeepForward<E>& p, const ResidentPlan& plan, void* stream) {
  return launch_deep<E>(resident_deep_forward<E, Team::kBlock>, resident_deep_forward<E, Team::kCluster>, p,
                        plan, stream);
}

template <class E>
const char* resident_deep_backward(const ResidentDeepBackward<E>& p, const ResidentPlan& plan, void* stream) {
  return launch_deep<E>(resident_deep_backward<E, Team::kBlock>, resident_deep_backward<E, Team::kCluster>, p,
                        plan, stream);
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT_DEEP(E)                                                                         \
  template const char* resident_deep_forward(const ResidentDeepForward<E>&, const ResidentPlan&, void*); \
  template const char* resident_deep_backward(const ResidentDeepBackward<E>&, const ResidentPlan&, void*);
