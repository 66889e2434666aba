// The resident kernels of the deep transition: each product against the reference, which goes on from what
// the kernel stored of the one before (see compare.cpp); the same bits from every run; microseconds a step.
#include <algorithm>
#include <array>

#include "checks.h"
#include "compare.h"
#include "repeat.h"

namespace rnnfast::device_check {
namespace {

constexpr float kSlope = 0.125f;
constexpr int kDepth = 3;
typedef std::array<int64_t, kDepth> Widths;  // of layer 0, of that above it, ..; the last one is H

struct DeepSetup {
  Widths widths;
  int64_t T, B;
  cuda::ResidentPlan plan;

  int64_t H() const { return widths[kDepth - 1]; }
  int64_t reads(int layer) const { return layer ? widths[layer - 1] : H(); }  // of what travels
  int64_t widest() const { return *std::max_element(widths.begin(), widths.end()); }
};

DeepSetup deep_setup(Type type, const Widths& widths, int64_t T, int64_t B) {
  DeepSetup s{widths, T, B, {}};
  // the emulated device is slow: no wider than a cluster has to be
  for (int64_t& width : s.widths)
    if (is_emulated()) width = std::min<int64_t>(width, 208);
  s.plan = cuda::make_deep_plan(
      {type == Type::kTf32 ? 4 : 2, true, s.widest(), kDepth, B, cuda::current_device()});
  return s;
}

template <class E>
struct DeepCommon {
  typedef float A;
  DeepSetup s;
  std::vector<E> w[kDepth];  // [widths, reads]
  Array<E> packed;           // as ResidentDeep has it

  // layer_of(i): whose W product i multiplies; turned: backward
  template <class LayerOf, class Params>
  DeepCommon(const DeepSetup& setup, bool turned, const LayerOf& layer_of, Params& p) : s(setup) {
    p.products = kDepth, p.H = s.H(), p.batch = s.B, p.times = s.T, p.slope = kSlope;
    p.width = cuda::travelling(s.widest(), 1, false);
    p.ldw = cuda::kTile<E> * s.plan.held * s.plan.split;
    std::vector<E> all(kDepth * p.width * p.ldw);
    for (int layer = 0; layer < kDepth; ++layer) {
      const int64_t n = s.reads(layer);
      w[layer] = draw<E>(20 + layer, s.widths[layer] * n, std::sqrt(3.0f / static_cast<float>(n)));
    }
    for (int i = 0; i < kDepth; ++i) {
      const int layer = layer_of(i);
      const int64_t n = s.widths[layer], k = s.reads(layer);
      p.units[i] = turned ? k : n;
      for (int64_t row = 0; row < n; ++row)
        for (int64_t column = 0; column < k; ++column)
          all[(i * p.width + (turned ? column : row)) * p.ldw + (turned ? row : column)] =
              w[layer][row * k + column];
    }
    packed = Array<E>(all);
    p.w = packed.get();
    p.links.blocks = s.plan.blocks, p.links.split = s.plan.split, p.links.batches = 1;
    p.links.held = s.plan.held;
    if (s.plan.team == cuda::Team::kBlock) return;
    p.links.patience = cuda::current_device().patience, p.links.failed = cuda::failure_word();
  }

  // [B T, widths] products of rows with W of a layer, or with that turned
  std::vector<double> products(const std::vector<float>& rows, int layer, bool turned) const {
    const int64_t n = s.widths[layer], k = s.reads(layer);
    return multiply(rows, operands(w[layer]), !turned, s.B * s.T, turned ? n : k, turned ? k : n);
  }
};

template <class E>
struct DeepForward {
  typedef float A;
  cuda::ResidentDeepForward<E> p{};
  DeepCommon<E> common;
  std::vector<A> h0;         // [B, H], of numbers that E has
  std::vector<E> b;          // [kDepth, width]
  Repeated<A> input{26, 1};  // [T B, widths[0]], step after step
  Array<E> bias, y;
  Array<A> inputs, h, acts[kDepth];

  explicit DeepForward(const DeepSetup& s) : common(s, false, [](int i) { return i; }, p) {
    for (const E e : draw<E>(24, s.B * s.H(), 1)) h0.push_back(value_of(e));
    b = std::vector<E>(kDepth * p.width);
    for (int l = 0; l < kDepth; ++l) {
      const std::vector<E> numbers = draw<E>(30 + l, s.widths[l], 0.5f);
      std::copy(numbers.begin(), numbers.end(), b.begin() + l * p.width);
    }
    bias = Array<E>(b), y = Array<E>(s.B * s.T * s.H());
    inputs = Array<A>(s.B * s.T * s.widths[0]), inputs.write_repeated(input.numbers);
    p.Hp = padded(s.H()), h = Array<A>(s.B * p.Hp);
    p.bias = bias.get(), p.y = y.get(), p.h = h.get();
    for (int l = 0; l + 1 < kDepth; ++l) {
      p.lda[l] = padded(s.widths[l]), acts[l] = Array<A>(s.B * s.T * p.lda[l]);
      p.acts[l] = acts[l].get();
    }
  }
  void prepare() {
    h.write(with_padding(h0, common.s.H(), p.Hp)), y.poison();
    for (int l = 0; l + 1 < kDepth; ++l) acts[l].poison();
  }
  void launch(int64_t launches = 1) {
    const int64_t T = common.s.T, chunk = (T + launches - 1) / launches;
    for (int64_t begin = 0; begin < T; begin += chunk) {
      p.first_step = begin, p.steps = std::min(chunk, T - begin);
      p.input = inputs.get() + begin * common.s.B * common.s.widths[0];
      must(resident_deep_forward(p, common.s.plan, nullptr));
    }
  }

  void compare(Comparison& comparison) const {
    const DeepSetup& s = common.s;
    const std::vector<E> found_y = y.read();
    const std::vector<A> found_h = h.read();
    compare_memory("y", found_y, s.H(), 0, s.H(), false, comparison);
    compare_memory("h_n", found_h, p.Hp, 0, s.H(), true, comparison);
    std::vector<float> read;  // row b T + t
    for (int64_t row = 0; row < s.B; ++row)
      for (int64_t t = 0; t < s.T; ++t)
        for (int64_t k = 0; k < s.H(); ++k)
          read.push_back(
              operand_of(t ? found_y[(row * s.T + t - 1) * s.H() + k] : stored<E>(h0[row * s.H() + k])));
    for (int l = 0; l < kDepth; ++l) {
      const int64_t W = s.widths[l];
      const bool last = l + 1 == kDepth;
      const std::vector<double> products = common.products(read, l, false);
      const std::vector<A> found = last ? std::vector<A>() : acts[l].read();
      if (!last) compare_memory("activations", found, p.lda[l], 0, W, false, comparison);
      read.clear();
      for (int64_t at = 0; at < s.B * s.T; ++at)
        for (int64_t k = 0; k < W; ++k) {
          const int64_t row = at / s.T, t = at % s.T;
          double sum = products[at * W + k] + value_of(b[l * p.width + k]);
          if (l == 0) sum += input[(t * s.B + row) * W + k];
          if (!last) {
            const double expected = sum < 0 ? sum * kSlope : sum;
            comparison.add("activations", row, t, l * s.widest() + k, found[at * p.lda[l] + k], expected,
                           limit_of_float(expected));
            read.push_back(operand_of(stored<E>(found[at * p.lda[l] + k])));
            continue;
          }
          comparison.add("y", row, t, k, value_of(found_y[at * W + k]), sum, limit_of<E>(sum));
          if (t + 1 == s.T)
            comparison.add("h_n", row, t, k, found_h[row * p.Hp + k], sum, limit_of_float(sum));
        }
    }
  }
};

template <class E>
struct DeepBackward {
  typedef float A;
  cuda::ResidentDeepBackward<E> p{};
  DeepCommon<E> common;
  Repeated<A> dy_numbers{27, 1};  // [B T, H]
  std::vector<A> dhn, saved[kDepth];
  Array<A> dy, dh_end, dh0, acts[kDepth];
  Array<E> da[kDepth];  // of each layer

  // the product that makes da of a layer
  static int product_of(int layer) { return layer + 1 == kDepth ? layer : kDepth - 2 - layer; }

  explicit DeepBackward(const DeepSetup& s)
      : common(s, true, [](int i) { return kDepth - 1 - i; }, p), dhn(draw<A>(28, s.B * s.H(), 1)) {
    dy = Array<A>(s.B * s.T * s.H()), dy.write_repeated(dy_numbers.numbers);
    dh_end = Array<A>(dhn), dh0 = Array<A>(s.B * s.H());
    p.dy = dy.get(), p.dhn = dh_end.get(), p.dh0 = dh0.get();
    for (int l = 0; l < kDepth; ++l) {
      const int i = product_of(l);
      p.ldd[i] = padded(s.widths[l]), da[l] = Array<E>(s.B * s.T * p.ldd[i]), p.da[i] = da[l].get();
      if (l + 1 == kDepth) continue;
      saved[l] = draw<A>(40 + l, s.B * s.T * p.ldd[i], 1);
      acts[l] = Array<A>(saved[l]), p.acts[i] = acts[l].get();
    }
  }
  void prepare() {
    dh0.poison();
    for (Array<E>& of : da) of.poison();
  }
  void launch() { must(resident_deep_backward(p, common.s.plan, nullptr)); }

  void compare(Comparison& comparison) const {
    const DeepSetup& s = common.s;
    std::vector<E> found[kDepth];
    std::vector<double> below[kDepth];  // [B T, reads]: da of a layer times its W
    for (int l = 0; l < kDepth; ++l) {
      const int64_t ld = p.ldd[product_of(l)];
      found[l] = da[l].read();
      compare_memory("da", found[l], ld, 0, s.widths[l], false, comparison);
      std::vector<float> read;
      for (int64_t at = 0; at < s.B * s.T; ++at)
        for (int64_t k = 0; k < s.widths[l]; ++k) read.push_back(operand_of(found[l][at * ld + k]));
      below[l] = common.products(read, l, true);
    }
    const std::vector<A> found_dh0 = dh0.read();
    compare_memory("dh_0", found_dh0, s.H(), 0, s.H(), false, comparison);
    for (int l = 0; l < kDepth; ++l)
      for (int64_t at = 0; at < s.B * s.T; ++at)
        for (int64_t k = 0, W = s.widths[l]; k < W; ++k) {
          const int64_t row = at / s.T, t = at % s.T, ld = p.ldd[product_of(l)];
          double expected = 0;
          if (l + 1 < kDepth) {
            expected = below[l + 1][at * W + k];
            if (!(saved[l][at * ld + k] > 0)) expected *= kSlope;
          } else {
            expected = dy_numbers[at * W + k];
            expected += t + 1 < s.T ? below[0][(at + 1) * W + k] : dhn[row * W + k];
          }
          comparison.add("da", row, t, l * s.widest() + k, value_of(found[l][at * ld + k]), expected,
                         limit_of<E>(expected));
        }
    for (int64_t row = 0; row < s.B; ++row)
      for (int64_t k = 0; k < s.H(); ++k) {
        const double expected = below[0][row * s.T * s.H() + k];
        comparison.add("dh_0", row, 0, k, found_dh0[row * s.H() + k], expected, limit_of_float(expected));
      }
  }
};

const char* obstacle_of(const DeepSetup& s, cuda::Team team) {
  return !cuda::is_resident(s.plan) ? "no resident kernel does it here"
         : s.plan.team != team      ? "it is another team here"
                                    : nullptr;
}

template <class E>
Outcome run_case(Type type, cuda::Team team, const Widths& widths, bool backward) {
  struct Run {
    int64_t T, B;
    int launches;
  };
  const Run runs[] = {{is_emulated() ? 3 : 9, 8, 1}, {is_emulated() ? 4 : 60, 11, 2}};
  Outcome outcome;
  double worst = -1;
  for (const Run& run : runs) {
    const DeepSetup s = deep_setup(type, widths, run.T, run.B);
    if (const char* const why = obstacle_of(s, team)) return skipped(why);
    outcome.plans.push_back(s.plan);
    Comparison comparison;
    const auto check = [&](auto&& layer, const auto& launch) {
      layer.prepare();
      launch(layer);
      finish(nullptr);
      layer.compare(comparison);
    };
    if (backward)
      check(DeepBackward<E>(s), [](auto& layer) { layer.launch(); });
    else
      check(DeepForward<E>(s), [&](auto& layer) { layer.launch(run.launches); });
    if (const double excess = comparison.error() / comparison.limit(); excess > worst)
      worst = excess, outcome.error = comparison.error(), outcome.limit = comparison.limit();
    if (comparison.right()) continue;
    outcome.result = Result::kWrong;
    outcome.said =
        comparison.said() + " (T = " + std::to_string(run.T) + ", B = " + std::to_string(run.B) + ")";
    return outcome;
  }
  return outcome;
}

template <class E>
Outcome run_again(Type type, cuda::Team team, const Widths& widths) {
  const DeepSetup s = deep_setup(type, widths, is_emulated() ? 3 : 1000, 16);
  if (const char* const why = obstacle_of(s, team)) return skipped(why);
  DeepForward<E> forward(s);
  DeepBackward<E> backward(s);
  const int64_t differing =
      differences(forward, forward.y, forward.h, forward.acts[0], forward.acts[1]) +
      differences(backward, backward.da[0], backward.da[1], backward.da[2], backward.dh0);
  Outcome outcome = counted(differing, "all words of later runs, where the first one's are right,");
  outcome.plans = {s.plan};
  return outcome;
}

template <class E>
Outcome run_timed(Type type, cuda::Team team, const Widths& widths) {
  const DeepSetup s = deep_setup(type, widths, is_emulated() ? 2 : 1024, 16);
  if (const char* const why = obstacle_of(s, team)) return skipped(why);
  DeepForward<E> layer(s);
  Outcome outcome;
  outcome.plans = {s.plan};
  outcome.us_a_step = median(layer, layer.y) / static_cast<double>(s.T);
  return outcome;
}

}  // namespace

void add_deep(Checks& checks) {
  for (const Type type : kTypes)
    for (const cuda::Team team : {cuda::Team::kBlock, cuda::Team::kCluster}) {
      const int64_t n = type == Type::kTf32 ? 2 : 1, most = team == cuda::Team::kBlock ? 128 : 512;
      const Widths even{most / n, most / n, most / n};
      const Widths uneven{most / n / 2 + 3, most / n - 17, most / n / 4 + 1};
      const auto add = [&](const char* kind, const std::string& what, const auto& run) {
        const std::string name = std::string(kind) + "-deep-" + name_of(type) + '-' + name_of(team) + what;
        checks.push_back(
            {kind, name, [type, run] { return with_element(type, [&](auto e) { return run(e); }); }});
      };
      for (const bool backward : {false, true})
        for (const Widths& widths : {even, uneven}) {
          const std::string way = backward ? "-backward" : "-forward";
          add("case", way + "-h" + std::to_string(widths[kDepth - 1]),
              [=](auto e) { return run_case<decltype(e)>(type, team, widths, backward); });
        }
      add("determinism", "", [=](auto e) { return run_again<decltype(e)>(type, team, even); });
      add("time", "", [=](auto e) { return run_timed<decltype(e)>(type, team, even); });
    }
}

}  // namespace rnnfast::device_check
