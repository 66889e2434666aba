// Packs of lanes as GNU vector types: loads, stores, and the constants that cells/math.h asks for.
// Compiled once per instruction set, inside its namespace; kVectorBytes comes from there. No guard on
// purpose.

template <class A>
struct Vec;

template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  static constexpr int kLanes = kVectorBytes / 4;
};

template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  static constexpr int kLanes = kVectorBytes / 8;
};

// a lane is a pair of bfloat16
template <>
struct Vec<int32_t> {
  typedef Vec<float>::Int type;
  typedef Vec<float>::Int Int;
  typedef int32_t unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  static constexpr int kLanes = kVectorBytes / 4;
};

typedef Vec<float>::type f32v;
typedef Vec<double>::type f64v;
typedef Vec<int32_t>::type pairs;

template <class V>
struct Real;

template <class S>
constexpr S factorial_of(int n) {
  return n < 2 ? S(1) : S(n) * factorial_of<S>(n - 1);
}

template <>
struct Real<f32v> {
  typedef float Scalar;
  typedef Vec<float>::Int Int;
  static constexpr float kZero = 0, kOne = 1, kLog2E = 1.442695041f, kMagic = 12582912.f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kExpHigh = 89.f, kExpLow = -104.f, kTanhHigh = 20.f;
  static constexpr int kOrder = 7, kMantissa = 23;
  static constexpr int32_t kBias = 127, kSign = INT32_MIN;
  static constexpr float factorial(int n) { return factorial_of<float>(n); }
};

template <>
struct Real<f64v> {
  typedef double Scalar;
  typedef Vec<double>::Int Int;
  static constexpr double kZero = 0, kOne = 1, kLog2E = 1.4426950408889634, kMagic = 6755399441055744.0;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kExpHigh = 710, kExpLow = -746, kTanhHigh = 44;
  static constexpr int kOrder = 13, kMantissa = 52;
  static constexpr int64_t kBias = 1023, kSign = INT64_MIN;
  static constexpr double factorial(int n) { return factorial_of<double>(n); }
};

template <class A>
RNNFAST_INLINE typename Vec<A>::type load(const A* p) {
  return *reinterpret_cast<const typename Vec<A>::unaligned*>(p);
}

template <class A>
RNNFAST_INLINE void store(A* p, typename Vec<A>::type v) {
  *reinterpret_cast<typename Vec<A>::unaligned*>(p) = v;
}

// The first n lanes, the rest zero; n may be anything.
template <class A>
RNNFAST_INLINE typename Vec<A>::type load_part(const A* p, int64_t n) {
  if (n >= Vec<A>::kLanes) return load(p);
  typename Vec<A>::type v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class A>
RNNFAST_INLINE void store_part(A* p, typename Vec<A>::type v, int64_t n) {
  if (n >= Vec<A>::kLanes) return store(p, v);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

template <class T>
RNNFAST_INLINE T least(T a, T b) {
  return a < b ? a : b;
}

template <class T>
RNNFAST_INLINE T most(T a, T b) {
  return a > b ? a : b;
}

RNNFAST_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part i of n things shared into `parts`
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

RNNFAST_INLINE Range share(int64_t n, int64_t parts, int64_t i) {
  return {n * i / parts, n * (i + 1) / parts};
}

RNNFAST_INLINE Range share(Range all, int64_t parts, int64_t i) {
  const Range r = share(all.size(), parts, i);
  return {all.begin + r.begin, all.begin + r.end};
}

// r[i][j] -> r[j][i]: the blocks beside the diagonal change places, of 1, 2, 4, ... lanes
template <class A, int kBlock = 1>
RNNFAST_INLINE void transpose(typename Vec<A>::type* r) {
  constexpr int L = Vec<A>::kLanes;
  typename Vec<A>::Int low{}, high{};
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) {
    low[j] = j & kBlock ? L + j - kBlock : j;
    high[j] = j & kBlock ? L + j : j + kBlock;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & kBlock) continue;
    const auto a = r[i], b = r[i + kBlock];
    r[i] = __builtin_shuffle(a, b, low);
    r[i + kBlock] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * kBlock < L) transpose<A, 2 * kBlock>(r);
}

// to[j, i] = from[i, j] for at most L rows i and L columns j; whole vectors of `to` are written, what is
// missing as zero
template <class A>
RNNFAST_INLINE void turn_block(A* to, int64_t to_ld, const A* from, int64_t ld, int64_t rows,
                               int64_t columns) {
  constexpr int L = Vec<A>::kLanes;
  typename Vec<A>::type r[L];
  if (rows >= L && columns >= L) {  // constant indices: the block stays in registers
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = load(from + i * ld);
    transpose<A>(r);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) store(to + j * to_ld, r[j]);
    return;
  }
  for (int i = 0; i < L; ++i) r[i] = i < rows ? load_part(from + i * ld, columns) : typename Vec<A>::type{};
  transpose<A>(r);
  for (int64_t j = 0; j < least<int64_t>(L, columns); ++j) store(to + j * to_ld, r[j]);
}

// Workspace handed out from one block in lines of 64 bytes; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class A>
  A* take(int64_t n) {
    A* p = base ? reinterpret_cast<A*>(base + used) : nullptr;
    used += (n * sizeof(A) + 63) / 64 * 64;
    return p;
  }
};
