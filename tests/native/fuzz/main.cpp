// Random small layers through the kernels of csrc/cpu, without torch: what the sanitizers look at.
//   fuzz [layers] [seed] [isa, or "" for all] [fault]
// Layer i depends on seed + i alone, so a failure is repeated by `fuzz 1 <seed + i>`, up to how the threads
// met. A fault is planted on purpose, to see that it is found: short, race, mxcsr, differs, wrong.
//
// Every array is a heap block of exactly the size that params.h gives it. Each call is made alone and by a
// team on a random plan; the results must be equal bit for bit, near a plain scalar computation in double,
// and its gradients near the slope of that computation. What nobody wrote is NaN.
#include "cpu/team.cpp"  // not linked but included: its solitude would send most calls alone

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/plan.h"
#include "fuzz_world.h"

using namespace rnnfast;

namespace {

Pool* pool;
int64_t calls, teams;

// call(plan, workspace, member) is a row of KernelsOf with its parameters bound
template <class Call>
void launch(const char* kernel, Plan plan, int wanted, bool flush, const Call& call) {
  std::snprintf(call_text, sizeof call_text, "%s: split %s, parts %d, threads %d", kernel,
                name_of(plan.split), plan.parts, wanted);
  struct Bound {
    const Call& call;
    Plan plan;
    void* workspace;
  };
  // the race: each of the parts takes itself for the only one
  const Plan told = fault == "race" && plan.split == Split::kUnits ? Plan{Split::kSerial, 1} : plan;
  const size_t bytes = call(told, nullptr, nullptr);
  Bound bound{call, told, std::aligned_alloc(64, bytes)};
  std::memset(bound.workspace, rng.one_in(4) ? static_cast<int>(rng.in(0, 255)) : 0xff, bytes);
  mxcsr = {rng.one_in(2) ? 0x1f80u : 0x9fc0u, flush ? ~0u : ~0x3fu};
  solitude.learn({}, {}, {});  // forget the last call
  mxcsr.set();
  const bool profiled = rng.one_in(8);
  if (profiled) start_profile();
  const int members = Team::run(
      wanted, plan.parts, flush, plan.split == Split::kUnits,
      [](void* self, Team::Member& member) noexcept {
        const Bound& b = *static_cast<const Bound*>(self);
        b.call(b.plan, b.workspace, &member);
      },
      &bound);
  // the pool has checked its threads, the caller among them
  if (wanted > 1) mxcsr.set();
  mxcsr.check("the caller");
  if (profiled) {
    const Profile profile = stop_profile();
    if (!(profile.kernels > 0 && profile.kernels <= profile.elapsed))
      fail("a call of %g s took %g s", profile.elapsed, profile.kernels);
  }
  std::free(bound.workspace);
  if (members < 1 || members > wanted)
    fail("%d members worked, of %d threads on %d parts", members, wanted, plan.parts);
  calls += wanted > 1;
  teams += members > 1;
}

Plan random_plan(bool units, bool directions) {
  const int parts = static_cast<int>(rng.in(1, kThreads));
  if (rng.one_in(8)) return {Split::kSerial, 1};
  if (directions && rng.one_in(4)) return {Split::kDirections, 2};
  if (!units || rng.one_in(2)) return {Split::kRows, parts};
  return {Split::kUnits, parts};
}

// What a call writes: arrays of rows, and no byte more. Before the call they hold `fill`.
struct Outputs {
  struct Array {
    const char* name;
    size_t before, rows, stride, used;  // in bytes: where rows begin, and what of each counts
    bool keeps;                         // what stands beside the rows
    std::vector<unsigned char> bytes;
  };
  unsigned char fill;
  bool team;
  std::deque<Array> arrays;

  template <class T>
  T* take(const char* name, int64_t rows, int64_t n) {
    return place<T>(name, rows, n, n, 0, rows * n, true, fill);
  }
  template <class T>
  T* take_padded(const char* name, int64_t rows, int64_t n, unsigned char value) {
    return place<T>(name, rows, n, padded(n), 0, rows * padded(n), false, value);
  }
  // what forward saves: of a lone row in blocks of units, of which whole ones are compared
  template <class T>
  T* take_saved(const char* name, int64_t batch, int64_t rows, int64_t units, unsigned char value) {
    if (batch > 1 || units < kPad) return take_padded<T>(name, rows, units, value);
    const int64_t block = rows * kPad, blocks = units / kPad;
    return place<T>(name, blocks, block, block, 0, rows * padded(units), false, value);
  }
  // rows of whole lines; what that adds is zero
  template <class T>
  T* take_lines(const char* name, int64_t rows, int64_t n) {
    const int64_t ld = whole_lines<T>(n);
    T* const p = place<T>(name, rows, n, ld, 0, rows * ld, ld == n, fill);
    for (int64_t row = 0; row < rows; ++row) std::fill(p + row * ld + n, p + (row + 1) * ld, T{});
    return p;
  }
  // one side of rows that two directions share
  template <class T>
  T* take_side(const char* name, int64_t rows, int64_t n, int64_t ld, int64_t before) {
    return place<T>(name, rows, n, ld, before, before + (rows - 1) * ld + n, true, fill);
  }

  template <class T>
  T* place(const char* name, int64_t rows, int64_t n, int64_t ld, int64_t before, int64_t numbers, bool keeps,
           unsigned char value) {
    if (fault == "short" && team && arrays.empty()) --numbers;
    arrays.push_back({name, before * sizeof(T), size_t(rows), ld * sizeof(T), n * sizeof(T), keeps,
                      std::vector<unsigned char>(numbers * sizeof(T), value)});
    return reinterpret_cast<T*>(arrays.back().bytes.data()) + before;
  }

  void check_kept() const {
    for (const Array& a : arrays)
      for (size_t i = 0; a.keeps && i < a.bytes.size(); ++i)
        if ((i < a.before || (i - a.before) % a.stride >= a.used) && a.bytes[i] != fill)
          fail("%s: byte %zu beside the rows was written", a.name, i);
  }
  void check_equal(const Outputs& other) const {
    for (size_t i = 0; i < arrays.size(); ++i)
      for (size_t row = 0; row < arrays[i].rows; ++row) {
        const size_t at = arrays[i].before + row * arrays[i].stride;
        if (std::memcmp(&arrays[i].bytes[at], &other.arrays[i].bytes[at], arrays[i].used))
          fail("%s: row %zu differs between one thread and a team", arrays[i].name, row);
      }
  }
};

// call(params, plan, workspace, member) alone, and by a team, which may take the other direction too, if
// there is one; takes(p, outputs) gives p what it writes to. p keeps the results of the lone call.
template <class Params, class Takes, class Call>
Outputs run_both(const char* kernel, Params& p, const Params* other, bool units, bool flush,
                 const Takes& takes, const Call& call) {
  const Plan plan = random_plan(units, other);
  Params alone[] = {p, other ? *other : p}, together[] = {alone[0], alone[1]};
  Outputs of_alone[] = {{0xff, false, {}}, {0xff, false, {}}},
          of_team[] = {{0x41, true, {}}, {0x41, true, {}}};
  const auto run = [&](Params* q, Outputs* outputs, Plan how, int wanted) {
    for (int i = 0; i < how.directions(); ++i) takes(q[i], outputs[i]);
    launch(kernel, how, wanted, flush, [&](Plan told, void* workspace, Team::Member* member) {
      return call(q, told, workspace, member);
    });
    for (int i = 0; i < how.directions(); ++i) outputs[i].check_kept();
  };
  for (int i = 0; i < plan.directions(); ++i) run(&alone[i], &of_alone[i], {Split::kSerial, 1}, 1);
  run(together, of_team, plan, static_cast<int>(rng.in(fault.empty() ? 1 : 2, kThreads)));
  if (fault == "differs") of_team[0].arrays[0].bytes[of_team[0].arrays[0].before] ^= 1;
  for (int i = 0; i < plan.directions() && fault != "race"; ++i) of_alone[i].check_equal(of_team[i]);
  p = alone[0];
  return std::move(of_alone[0]);
}

// what runs beside p: the same the other way round
template <class Params>
Params reversed(Params p) {
  p.walk.reverse = !p.walk.reverse;
  return p;
}

void round_to(double v, double& to) { to = v; }
void round_to(double v, float& to) { to = static_cast<float>(v); }
void round_to(double v, Bfloat16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(v));
  to.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
double value_of(double v) { return v; }
double value_of(Bfloat16 v) { return __builtin_bit_cast(float, uint32_t{v.bits} << 16); }

// Numbers as a kernel reads them; rounding them changes the doubles too. With `columns` they are rows of
// whole lines. Half of the arrays begin where a view of a tensor may begin.
template <class E>
class Input {
 public:
  explicit Input(std::vector<double>& numbers) : Input(numbers, 1, 1) {}
  Input(std::vector<double>& numbers, int64_t columns) : Input(numbers, columns, whole_lines<E>(columns)) {}
  const E* get() const { return all_.empty() ? nullptr : all_.data() + shift_; }

 private:
  Input(std::vector<double>& numbers, int64_t columns, int64_t ld) {
    if (numbers.empty()) return;
    const int64_t rows = numbers.size() / columns;
    shift_ = rng.one_in(2) ? 0 : sizeof(E) == 2 ? 2 : 1;
    all_ = std::vector<E>(shift_ + rows * ld);
    for (int64_t i = 0; i < rows * columns; ++i) {
      E& e = all_[shift_ + i / columns * ld + i % columns];
      round_to(numbers[i], e);
      numbers[i] = value_of(e);
    }
  }

  int64_t shift_ = 0;
  std::vector<E> all_;
};

using Numbers = std::vector<std::vector<double>>;

template <class T>
std::vector<double> doubles(const T* p, int64_t rows, int64_t n, int64_t ld) {
  std::vector<double> v(rows * n);
  for (int64_t i = 0; i < rows * n; ++i) v[i] = value_of(p[i / n * ld + i % n]);
  return v;
}

std::vector<double> column_sums(const std::vector<double>& m, int64_t n) {
  std::vector<double> sums(n);
  for (size_t i = 0; i < m.size(); ++i) sums[i % n] += m[i];
  return sums;
}

void check_near(const char* name, const std::vector<double>& found, const std::vector<double>& expected,
                double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i]))))
      fail("%s[%zu] is %.9g, expected %.9g", name, i, found[i], expected[i]);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// All gradients at once: the slope of the loss along a random direction. An empty gradient was not asked for.
template <class Loss>
void check_gradients(const Numbers& in, const Numbers& gradients, double tolerance, const Loss& loss) {
  Numbers direction(in.size());
  double slope = 0, size = 1, expected = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    direction[i] = rng.reals(gradients[i].size());
    for (size_t j = 0; j < gradients[i].size(); ++j) {
      slope += gradients[i][j] * direction[i][j];
      size += std::abs(gradients[i][j] * direction[i][j]);
    }
  }
  // of ten thousand layers a few have a kink of LeakyReLU within the larger step
  for (const double step : {1e-6, 1e-8}) {
    Numbers ahead = in, behind = in;
    for (size_t i = 0; i < in.size(); ++i)
      for (size_t j = 0; j < direction[i].size(); ++j)
        ahead[i][j] += step * direction[i][j], behind[i][j] -= step * direction[i][j];
    expected = (loss(ahead) - loss(behind)) / (2 * step);
    if (std::abs(slope - expected) <= tolerance * size) return;
  }
  fail("gradients: the slope is %.9g, expected %.9g (of terms of %.3g together)", slope, expected, size);
}

// the rows of h0 and y from which the rows of a layer begin
template <class E>
std::vector<const void*> states_before(const Walk& walk, const E* h0, int64_t P, const E* y, int64_t ldy) {
  std::vector<const void*> rows(walk.total);
  previous_states(walk, reinterpret_cast<const char*>(h0), P * sizeof(E), reinterpret_cast<const char*>(y),
                  ldy * sizeof(E), rows.data());
  return rows;
}

// a b [M, N] by the gradient kernel, alone or beside a second product; a is [M, K], or turned [K, M]. With
// `rows` row k of b is rows[k].
template <class E>
std::vector<double> multiplied(const Kernels& k, int64_t M, int64_t N, int64_t K, const E* a, int64_t lda,
                               bool turned, const E* b, int64_t ldb, const void* const* rows = nullptr) {
  typedef typename ComputeType<E>::type A;
  if (M * N == 0) return {};
  const bool summed = turned && rng.one_in(2);
  const typename GradientParams<E>::Product first{N, b, ldb, rows, nullptr, padded(N), nullptr};
  typename GradientParams<E>::Product other = first;  // fewer columns of the same
  if (rng.one_in(2)) other.N = rng.in(1, N), other.ldc = padded(other.N);
  GradientParams<E> p{M, K, a, lda, turned, static_cast<int>(rng.in(1, 2)), {first, other}, false};
  const auto takes = [&](GradientParams<E>& q, Outputs& o) {
    q.product[0].c = o.take_padded<A>("product", M, N, o.fill);
    if (q.products > 1) q.product[1].c = o.take_padded<A>("second product", M, other.N, o.fill);
    if (summed) q.product[0].sums = o.take<A>("sums", M, 1);
    if (summed && q.products > 1) q.product[1].sums = o.take<A>("second sums", M, 1);
  };
  const auto call = [&](const GradientParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
    return k.layer(E()).gradient(*q, plan, workspace, member);
  };
  const Outputs once =
      run_both<GradientParams<E>>("gradient", p, nullptr, false, sizeof(A) == 4, takes, call);
  const std::vector<double> product = doubles(p.product[0].c, M, N, first.ldc);
  if (p.products > 1) {
    const std::vector<double> second = doubles(p.product[1].c, M, other.N, other.ldc);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < other.N; ++n)
        if (second[m * other.N + n] != product[m * N + n]) fail("the second product differs from the first");
  }
  if (summed && p.products > 1 && doubles(p.product[0].sums, M, 1, 1) != doubles(p.product[1].sums, M, 1, 1))
    fail("the second sums differ from the first");
  if (summed)
    check_near("sums", doubles(p.product[0].sums, M, 1, 1), column_sums(doubles(a, K, M, lda), M),
               sizeof(A) == 4 ? 1e-4 : 1e-12);
  if (rng.one_in(4)) {
    constexpr unsigned char kByte = 0x3f;
    A before;
    std::memset(&before, kByte, sizeof before);
    p.accumulate = true;
    p.product[0].sums = nullptr;
    p.products = 1;
    const auto keeps = [&](GradientParams<E>& q, Outputs& o) {
      q.product[0].c = o.take_padded<A>("sum", M, N, kByte);
    };
    const Outputs again =
        run_both<GradientParams<E>>("gradient, accumulated", p, nullptr, false, sizeof(A) == 4, keeps, call);
    std::vector<double> sum = doubles(p.product[0].c, M, N, first.ldc);
    for (double& v : sum) v -= before;
    check_near("sum", sum, product, sizeof(A) == 4 ? 1e-4 : 1e-12);
  }
  return product;
}

// The rows of a layer: time-major, batch-first or packed, forwards or backwards
struct Rows {
  std::vector<int64_t> offsets, sizes;
  Walk walk{};
  const char* name;

  explicit Rows(bool plain, int64_t steps) {
    const int64_t T = steps ? steps : rng.in(1, 6), B = rng.in(1, 9);
    const int64_t kind = rng.in(0, plain ? 1 : 2);
    name = kind == 0 ? "time-major" : kind == 1 ? "batch-first" : "packed";
    int64_t total = 0, size = B;
    for (int64_t t = 0; t < T; ++t) {
      if (kind == 2 && t > 0) size = rng.in(1, size);
      offsets.push_back(kind == 1 ? t : total);
      sizes.push_back(size);
      total += size;
    }
    walk = {T, B, total, kind == 1 ? T : 1, offsets.data(), sizes.data(), !plain && rng.one_in(2)};
    const int64_t n = rng.in(1, total), enough = walk.sequences_with(n);
    if (walk.rows_of(enough) < n || walk.rows_of(enough - 1) >= n)
      fail("%lld sequences are not the fewest with %lld rows", static_cast<long long>(enough),
           static_cast<long long>(n));
  }
};

enum { kX, kH0, kC0, kWIh, kWHh, kBIh, kBHh, kWHr, kInputs };

struct Sizes {
  Mode mode;
  int64_t G, S, I, H, P;
  bool projected;
};

// y, h_n, c_n
Numbers reference(const Sizes& s, const Walk& walk, const Numbers& in) {
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  Numbers out{std::vector<double>(walk.total * s.P), in[kH0], in[kC0]};
  std::vector<double> ax(s.G * s.H), ah(s.G * s.H), m(s.H);
  for (int64_t step = 0; step < walk.steps; ++step) {
    const int64_t t = walk.time(step);
    for (int64_t b = 0; b < walk.sizes[t]; ++b) {
      double* const h = &out[1][b * s.P];
      for (int64_t j = 0; j < s.G * s.H; ++j) {
        ax[j] = in[kBIh].empty() ? 0 : in[kBIh][j];
        ah[j] = in[kBHh].empty() ? 0 : in[kBHh][j];
        for (int64_t i = 0; i < s.I; ++i) ax[j] += in[kWIh][j * s.I + i] * in[kX][walk.row(t, b) * s.I + i];
        for (int64_t i = 0; i < s.P; ++i) ah[j] += in[kWHh][j * s.P + i] * h[i];
      }
      for (int64_t u = 0; u < s.H; ++u) {
        const auto a = [&](int gate) { return ax[gate * s.H + u] + ah[gate * s.H + u]; };
        if (s.mode == Mode::kLstm) {
          double& c = out[2][b * s.H + u];
          c = sigmoid(a(1)) * c + sigmoid(a(0)) * std::tanh(a(2));
          m[u] = sigmoid(a(3)) * std::tanh(c);
        } else if (s.mode == Mode::kGru) {
          const double z = sigmoid(a(1)), n = std::tanh(ax[2 * s.H + u] + sigmoid(a(0)) * ah[2 * s.H + u]);
          m[u] = (1 - z) * n + z * h[u];
        } else {
          m[u] = s.mode == Mode::kRnnTanh ? std::tanh(a(0)) : std::max(a(0), 0.0);
        }
      }
      for (int64_t i = 0; i < s.P; ++i) {
        h[i] = s.projected ? 0 : m[i];
        if (s.projected)
          for (int64_t u = 0; u < s.H; ++u) h[i] += in[kWHr][i * s.H + u] * m[u];
        out[0][walk.row(t, b) * s.P + i] = h[i];
      }
    }
  }
  return out;
}

template <class E>
void recurrent_backward(const Kernels& k, const Sizes& s, const Numbers& in, const BackwardParams<E>& saved,
                        int64_t side, const E* x, const E* w_ih) {
  typedef typename ComputeType<E>::type A;
  const Walk& walk = saved.walk;
  const int64_t N = walk.total, B = walk.batch, GH = s.G * s.H, ldy = saved.ldy;
  const int64_t lda = whole_lines<E>(GH), ldp = whole_lines<E>(s.P), ldx = whole_lines<E>(s.I);
  // dL/dy, dL/dh_n, dL/dc_n, and dL/dy as it stands in memory
  Numbers d{rng.reals(N * s.P), rng.reals(B * s.P), rng.reals(saved.c0 ? B * s.H : 0)};
  std::vector<double> rows(side + (N - 1) * ldy + s.P, std::numeric_limits<double>::quiet_NaN());
  for (int64_t i = 0; i < N * s.P; ++i) rows[side + i / s.P * ldy + i % s.P] = d[0][i];
  const Input<E> dy(rows);
  const Input<A> dhn(d[1]), dcn(d[2]);
  for (int64_t i = 0; i < N * s.P; ++i) d[0][i] = rows[side + i / s.P * ldy + i % s.P];

  BackwardParams<E> p = saved;
  p.dy = dy.get() + side, p.dhn = dhn.get(), p.dcn = dcn.get();
  if (rng.one_in(8)) p.dy = nullptr, d[0].clear();
  if (rng.one_in(8)) p.dhn = nullptr, d[1].clear();
  if (rng.one_in(8)) p.dcn = nullptr, d[2].clear();
  const bool needs_hr = s.projected && !rng.one_in(8);
  const auto takes = [&](BackwardParams<E>& q, Outputs& o) {
    q.da = o.take_lines<E>("da", N, GH);
    q.dx = s.S > s.G ? o.take_lines<E>("dx", N, GH) : nullptr;
    q.dprojected = s.projected ? o.take_lines<E>("dprojected", N, s.P) : nullptr;
    q.hidden = needs_hr ? o.take<E>("hidden", N, s.H) : nullptr;
    q.dh0 = o.take<A>("dh0", B, s.P);
    q.dc0 = q.c0 ? o.take<A>("dc0", B, s.H) : nullptr;
  };
  const BackwardParams<E> other = reversed(p);
  const Outputs kept =
      run_both("backward", p, &other, true, sizeof(A) == 4, takes,
               [&](const BackwardParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
                 return k.layer(E()).backward(s.mode, q, plan, workspace, member);
               });

  const E* const dx = p.dx ? p.dx : p.da;
  Numbers g(kInputs);
  g[kX] = multiplied(k, N, s.I, GH, dx, lda, false, w_ih, ldx);
  g[kH0] = doubles(p.dh0, B, s.P, s.P);
  if (p.dc0) g[kC0] = doubles(p.dc0, B, s.H, s.H);
  g[kWIh] = multiplied(k, GH, s.I, N, dx, lda, true, x, ldx);
  std::vector<double> initial = in[kH0];
  const Input<E> h0(initial);
  const auto previous = states_before<E>(walk, h0.get(), s.P, p.y, ldy);
  g[kWHh] = multiplied<E>(k, GH, s.P, N, p.da, lda, true, nullptr, 0, previous.data());
  if (!in[kBIh].empty()) g[kBIh] = column_sums(doubles(dx, N, GH, lda), GH);
  if (!in[kBHh].empty()) g[kBHh] = column_sums(doubles(p.da, N, GH, lda), GH);
  if (needs_hr) g[kWHr] = multiplied<E>(k, s.P, s.H, N, p.dprojected, ldp, true, p.hidden, s.H);
  check_gradients(in, g,
                  sizeof(E) == 2   ? 0.05
                  : sizeof(E) == 4 ? 1e-3
                                   : 1e-5,
                  [&](const Numbers& at) {
                    const Numbers out = reference(s, walk, at);
                    return dot(d[0], out[0]) + dot(d[1], out[1]) + dot(d[2], out[2]);
                  });
}

template <class E>
void recurrent(const Kernels& k, const Kernels& k_backward) {
  using A = typename ComputeType<E>::type;
  Sizes s{};
  s.mode = static_cast<Mode>(rng.in(0, 3));
  s.G = s.mode == Mode::kLstm ? 4 : s.mode == Mode::kGru ? 3 : 1;
  s.S = s.mode == Mode::kLstm || s.mode == Mode::kGru ? 4 : 1;
  s.I = rng.one_in(50) ? 0 : rng.in(1, 40);
  s.H = rng.in(1, 40);
  if (rng.one_in(100)) s.I = rng.in(1000, 2200), s.H = rng.in(1, 5);  // sums that are cut in blocks
  s.projected = s.mode == Mode::kLstm && rng.one_in(3);
  s.P = s.projected ? rng.in(1, 40) : s.H;
  const bool cell = rng.one_in(10);  // one step, as a cell module calls it: h0 and c0 may be absent
  const bool stateless = cell && rng.one_in(2), save = !cell && !rng.one_in(4);
  const bool biases[] = {!rng.one_in(4), !rng.one_in(4)};
  const Rows rows(cell, cell ? 1 : 0);
  const Walk& walk = rows.walk;
  const int64_t N = walk.total, B = walk.batch, GH = s.G * s.H;
  const bool lstm = s.mode == Mode::kLstm, both = !cell && rng.one_in(2);
  const int64_t ldy = both ? 2 * s.P : s.P, side = both && walk.reverse ? s.P : 0;
  static constexpr const char* kModes[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
  describe("%s of %zu bytes, %s%s, T %ld, B %ld, N %ld, I %ld, H %ld, P %ld%s%s%s%s%s", kModes[int(s.mode)],
           sizeof(E), rows.name, walk.reverse ? " reversed" : "", long(walk.steps), long(B), long(N),
           long(s.I), long(s.H), long(s.P), biases[0] ? ", b_ih" : "", biases[1] ? ", b_hh" : "",
           save ? ", save" : "", stateless ? ", no state" : "", both ? ", ldy 2 P" : "");

  const double scale = 1.5 / std::sqrt(static_cast<double>(s.P + 1)), state = stateless ? 0 : 1;
  Numbers in(kInputs);
  in[kX] = rng.reals(N * s.I);
  in[kH0] = rng.reals(B * s.P, state);
  in[kC0] = rng.reals(lstm ? B * s.H : 0, state);
  in[kWIh] = rng.reals(GH * s.I, 1.5 / std::sqrt(s.I + 1.0));
  in[kWHh] = rng.reals(GH * s.P, scale);
  in[kBIh] = rng.reals(biases[0] ? GH : 0);
  in[kBHh] = rng.reals(biases[1] ? GH : 0);
  in[kWHr] = rng.reals(s.projected ? s.P * s.H : 0, scale);
  const Input<E> x(in[kX], s.I), w_ih(in[kWIh], s.I), w_hh(in[kWHh], s.P), w_hr(in[kWHr], s.H);
  const Input<A> h0(in[kH0]), c0(in[kC0]), b_ih(in[kBIh]), b_hh(in[kBHh]);

  ForwardParams<E> p{};
  p.walk = walk;
  p.I = s.I, p.H = s.H, p.P = s.P, p.ldy = ldy;
  p.x = x.get(), p.w_ih = w_ih.get(), p.w_hh = w_hh.get(), p.w_hr = w_hr.get();
  p.b_ih = b_ih.get(), p.b_hh = b_hh.get();
  if (!stateless) p.h0 = h0.get(), p.c0 = c0.get();
  std::unique_ptr<char[]> frozen;
  if (!s.projected && rng.one_in(3)) {
    frozen.reset(new char[k.layer(E()).freeze(s.G, p, nullptr)]);
    k.layer(E()).freeze(s.G, p, frozen.get());
    p.frozen = frozen.get();
    describe(" frozen");
  }
  const auto takes = [&](ForwardParams<E>& q, Outputs& o) {
    // what narrow vectors leave unwritten whoever reads it wants zero
    const unsigned char padding = k.fills_padding(s.H, sizeof(A)) ? o.fill : 0;
    q.y = o.take_side<E>("y", N, s.P, ldy, side);
    if constexpr (sizeof(E) == sizeof(A)) q.hn = cell ? q.y : nullptr;
    if (!cell || sizeof(E) < sizeof(A)) q.hn = o.take<A>("hn", B, s.P);
    q.cn = lstm ? o.take<A>("cn", B, s.H) : nullptr;
    const bool in_y = s.S == 1 && sizeof(E) == sizeof(A);
    q.gates = save && !in_y ? o.take_saved<A>("gates", B, gate_rows(N) * s.S, s.H, padding) : nullptr;
    q.cells = save && lstm ? o.take_saved<A>("cells", B, N, s.H, padding) : nullptr;
  };
  const ForwardParams<E> other = reversed(p);
  const Outputs kept =
      run_both("forward", p, &other, true, sizeof(A) == 4, takes,
               [&](const ForwardParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
                 return k.layer(E()).forward(s.mode, q, plan, workspace, member);
               });

  if (fault == "wrong") in[kWHh][0] += 1;
  const Numbers expected = reference(s, walk, in);
  const double tolerance = sizeof(E) == 8 ? 1e-9 : sizeof(E) == 4 ? 1e-4 : 0.1;
  check_near("y", doubles(p.y, N, s.P, ldy), expected[0], tolerance);
  check_near("hn", doubles(p.hn, B, s.P, s.P), expected[1], tolerance);
  if (lstm) check_near("cn", doubles(p.cn, B, s.H, s.H), expected[2], tolerance);
  if (!save) return;
  const Input<E> dense_hh(in[kWHh]), dense_hr(in[kWHr]);
  BackwardParams<E> q{};
  q.walk = walk;
  q.H = s.H, q.P = s.P, q.ldy = ldy;
  q.w_hh = dense_hh.get(), q.w_hr = dense_hr.get(), q.h0 = p.h0, q.c0 = p.c0;
  q.y = p.y, q.gates = p.gates, q.cells = p.cells;
  recurrent_backward<E>(sizeof(E) == 2 && !k_backward.bf16 ? k : k_backward, s, in, q, side, p.x, p.w_ih);
}

// y, h_n of the deep-transition RNN; in: x, h0, then the weights, then the biases
template <class A>
Numbers deep_reference(const DeepParams<A>& p, const Numbers& in) {
  Numbers out{std::vector<double>(p.walk.total * p.H), in[1]};
  for (int64_t t = 0; t < p.walk.steps; ++t)
    for (int64_t b = 0; b < p.walk.batch; ++b) {
      const auto x = in[0].begin() + p.walk.row(t, b) * p.I, h = out[1].begin() + b * p.H;
      std::vector<double> read(x, x + p.I), value;
      read.insert(read.end(), h, h + p.H);
      for (int l = 0; l < p.depth; ++l, read = value) {
        value.assign(p.width[l], 0);
        for (int64_t j = 0; j < p.width[l]; ++j) {
          value[j] = p.b[l] ? in[2 + p.depth + l][j] : 0;
          for (size_t i = 0; i < read.size(); ++i) value[j] += in[2 + l][j * read.size() + i] * read[i];
          if (l + 1 < p.depth && value[j] < 0) value[j] *= p.slope;
        }
      }
      std::copy(value.begin(), value.end(), h);
      std::copy(value.begin(), value.end(), out[0].begin() + p.walk.row(t, b) * p.H);
    }
  return out;
}

template <class A>
void deep(const Kernels& k, const Kernels& k_backward) {
  const Rows rows(true, 0);
  const int64_t N = rows.walk.total, B = rows.walk.batch;
  const bool save = !rng.one_in(4), biased = rng.one_in(2), flush = sizeof(A) == 4;
  DeepParams<A> p{};
  p.walk = rows.walk;
  p.depth = static_cast<int>(rng.in(1, 4));
  p.I = rng.one_in(50) ? 0 : rng.in(1, 40);
  for (int l = 0; l < p.depth; ++l) p.width[l] = rng.in(1, 40);
  const int last = p.depth - 1;
  const int64_t I = p.I, H = p.H = p.width[last];
  p.slope = rng.one_in(4) ? A(0) : A(0.125);
  describe("deep of %zu bytes, %s, T %ld, B %ld, I %ld, widths %ld %ld %ld %ld, depth %d%s%s", sizeof(A),
           rows.name, long(p.walk.steps), long(B), long(I), long(p.width[0]), long(p.width[1]),
           long(p.width[2]), long(p.width[3]), p.depth, biased ? ", biases" : "", save ? ", save" : "");

  Numbers in{rng.reals(N * I), rng.reals(B * H)};
  for (int l = 0; l < p.depth; ++l) {
    const int64_t reads = l ? p.width[l - 1] : I + H;
    in.push_back(rng.reals(p.width[l] * reads, 1.5 / std::sqrt(static_cast<double>(reads))));
  }
  for (int l = 0; l < p.depth; ++l) in.push_back(rng.reals(biased ? p.width[l] : 0));
  std::vector<Input<A>> inputs;
  for (std::vector<double>& numbers : in) inputs.emplace_back(numbers);
  p.x = inputs[0].get(), p.h0 = inputs[1].get();
  for (int l = 0; l < p.depth; ++l) p.w[l] = inputs[2 + l].get(), p.b[l] = inputs[2 + p.depth + l].get();

  const auto takes = [&](DeepParams<A>& q, Outputs& o) {
    q.y = o.take<A>("y", N, H);
    q.hn = o.take<A>("hn", B, H);
    for (int l = 0; l < last && save; ++l) q.acts[l] = o.take_padded<A>("acts", N, q.width[l], 0);
  };
  const Outputs kept =
      run_both<DeepParams<A>>("deep_forward", p, nullptr, true, flush, takes,
                              [&](const DeepParams<A>* q, Plan plan, void* workspace, Team::Member* member) {
                                return k.of(A()).deep_forward(*q, plan, workspace, member);
                              });
  const Numbers expected = deep_reference(p, in);
  check_near("y", doubles(p.y, N, H, H), expected[0], flush ? 1e-4 : 1e-9);
  check_near("hn", doubles(p.hn, B, H, H), expected[1], flush ? 1e-4 : 1e-9);
  if (!save) return;

  Numbers d{rng.reals(N * H), rng.reals(B * H)};
  const Input<A> dy(d[0]), dhn(d[1]);
  p.dy = dy.get(), p.dhn = dhn.get();
  if (rng.one_in(8)) p.dy = nullptr, d[0].clear();
  if (rng.one_in(8)) p.dhn = nullptr, d[1].clear();
  const auto takes_backward = [&](DeepParams<A>& q, Outputs& o) {
    for (int l = 0; l < q.depth; ++l) q.da[l] = o.take<A>("da", N, q.width[l]);
    q.dh0 = o.take<A>("dh0", B, H);
  };
  const Outputs kept_backward =
      run_both<DeepParams<A>>("deep_backward", p, nullptr, true, flush, takes_backward,
                              [&](const DeepParams<A>* q, Plan plan, void* workspace, Team::Member* member) {
                                return k_backward.of(A()).deep_backward(*q, plan, workspace, member);
                              });

  const int64_t W = p.width[0];
  Numbers g(in.size());
  g[0] = multiplied<A>(k, N, I, W, p.da[0], W, false, p.w[0], I + H);
  g[1] = doubles(p.dh0, B, H, H);
  const std::vector<double> of_x = multiplied<A>(k, W, I, N, p.da[0], W, true, p.x, I);
  const auto previous = states_before<A>(p.walk, p.h0, H, p.y, H);
  const std::vector<double> of_h = multiplied<A>(k, W, H, N, p.da[0], W, true, nullptr, 0, previous.data());
  for (int64_t j = 0; j < W; ++j) {
    g[2].insert(g[2].end(), of_x.begin() + j * I, of_x.begin() + (j + 1) * I);
    g[2].insert(g[2].end(), of_h.begin() + j * H, of_h.begin() + (j + 1) * H);
  }
  for (int l = 1; l < p.depth; ++l)
    g[2 + l] = multiplied<A>(k, p.width[l], p.width[l - 1], N, p.da[l], p.width[l], true, p.acts[l - 1],
                             padded(p.width[l - 1]));
  for (int l = 0; l < p.depth && biased; ++l)
    g[2 + p.depth + l] = column_sums(doubles(p.da[l], N, p.width[l], p.width[l]), p.width[l]);
  check_gradients(in, g, flush ? 1e-3 : 1e-5, [&](const Numbers& at) {
    const Numbers out = deep_reference(p, at);
    return dot(d[0], out[0]) + dot(d[1], out[1]);
  });
}

// A product beyond the sizes that small layers have: several blocks of rows, sums that are cut
template <class A>
void product(const Kernels& k) {
  const int64_t M = rng.in(1, 120), N = rng.in(1, 60), K = rng.one_in(4) ? rng.in(1000, 2200) : 30;
  const bool turned = rng.one_in(2);
  describe("product of %zu bytes, M %ld, N %ld, K %ld%s", sizeof(A), long(M), long(N), long(K),
           turned ? ", turned" : "");
  std::vector<double> a_numbers = rng.reals(M * K), b_numbers = rng.reals(K * N), c(M * N);
  const Input<A> a(a_numbers), b(b_numbers);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t i = 0; i < K; ++i)
      for (int64_t n = 0; n < N; ++n)
        c[m * N + n] += a_numbers[turned ? i * M + m : m * K + i] * b_numbers[i * N + n];
  const int64_t lda = turned ? M : K;
  check_near("product", multiplied(k, M, N, K, a.get(), lda, turned, b.get(), N), c,
             sizeof(A) == 4 ? 1e-4 : 1e-9);
}

const Kernels& kernels_of(const std::string& isa) {
  set_isa(isa);
  return kernels();
}

void one_layer(uint64_t seed, const std::string& isa) {
  rng.engine.seed(seed);
  const std::vector<std::string> all = isa.empty() ? isas() : std::vector<std::string>{isa};
  const Kernels& k = kernels_of(all[rng.in(0, all.size() - 1)]);
  // what one set saves suits all others
  const Kernels& k_backward = rng.one_in(4) ? kernels_of(all[rng.in(0, all.size() - 1)]) : k;
  std::snprintf(layer_text, sizeof layer_text, "fuzz 1 %llu \"%s\": %s (backward %s), ",
                static_cast<unsigned long long>(seed), isa.c_str(), k.name, k_backward.name);
  call_text[0] = 0;
  const bool wide = rng.one_in(2);
  const int64_t kind = rng.in(0, 19);
  if (kind == 0)
    wide ? product<double>(k) : product<float>(k);
  else if (kind <= 4)
    wide ? deep<double>(k, k_backward) : deep<float>(k, k_backward);
  else if (kind <= 7 && k.bf16)
    recurrent<Bfloat16>(k, k_backward);
  else
    wide ? recurrent<double>(k, k_backward) : recurrent<float>(k, k_backward);
}

}  // namespace

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc f,
                                             void* context) {
  return pool->run(begin, end, f, context) ? 0 : 1;
}

extern "C" AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = kThreads;
  return 0;
}

int main(int argc, char** argv) {
  const int64_t layers = argc > 1 ? std::atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::string isa = argc > 3 ? argv[3] : "";
  if (argc > 4) fault = argv[4];
  std::signal(SIGABRT, [](int) { print_where(); });
  const auto start = std::chrono::steady_clock::now();
  Pool threads;
  pool = &threads;
  for (int64_t i = 0; i < layers; ++i) one_layer(seed + i, isa);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%lld layers, %lld of %lld calls by a team of more than one member, %.1f s\n",
              static_cast<long long>(layers), static_cast<long long>(teams), static_cast<long long>(calls),
              seconds.count());
}
