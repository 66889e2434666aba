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

// The first n lanes, the rest zero; n may be anything. RNNFAST_CHECKED is for sanitizers, which do not see
// what an intrinsic reads or writes.
template <class A>
RNNFAST_INLINE typename Vec<A>::type load_part(const A* p, int64_t n) {
  typedef typename Vec<A>::type V;
  if (n >= Vec<A>::kLanes) return load(p);
  if (n <= 0) return V{};
#if defined(RNNFAST_MASKED_LOAD) && !defined(RNNFAST_CHECKED)
  return RNNFAST_MASKED_LOAD(V, p, n);
#else
  V v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <class A>
RNNFAST_INLINE void store_part(A* p, typename Vec<A>::type v, int64_t n) {
  if (n >= Vec<A>::kLanes) return store(p, v);
  if (n <= 0) return;
#if defined(RNNFAST_MASKED_STORE) && !defined(RNNFAST_CHECKED)
  RNNFAST_MASKED_STORE(p, v, n);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
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

// Shuffles of two packs that are one instruction each: within every 128-bit lane, blocks of kSize numbers
// from the low (or high) halves of a and b in turn; and the even (or odd) lanes of a, then of b.
template <class A, int kSize>
RNNFAST_INLINE typename Vec<A>::type interleave(typename Vec<A>::type a, typename Vec<A>::type b, bool high) {
  constexpr int L = Vec<A>::kLanes, Q = 16 / sizeof(A);
  typename Vec<A>::Int from{};
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) {
    const int block = j % Q / kSize;
    from[j] = j / Q * Q + block / 2 * kSize + j % kSize + (high ? Q / 2 : 0) + (block % 2 ? L : 0);
  }
  return __builtin_shuffle(a, b, from);
}

template <class A>
RNNFAST_INLINE typename Vec<A>::type every_second_lane(typename Vec<A>::type a, typename Vec<A>::type b,
                                                       bool odd) {
  constexpr int L = Vec<A>::kLanes, Q = 16 / sizeof(A);
  typename Vec<A>::Int from{};
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) from[j] = (2 * (j / Q) + odd) * Q + j % Q;
  return __builtin_shuffle(a, b, from);
}

// r[i][j] -> r[j][i]: first within the lanes of every Q rows, then the lanes change places
template <class A>
RNNFAST_INLINE void transpose(typename Vec<A>::type* r) {
  typedef typename Vec<A>::type V;
  constexpr int L = Vec<A>::kLanes, Q = 16 / sizeof(A), kLanes = L / Q;
#pragma GCC unroll 16
  for (int i = 0; i < L; i += Q) {
    if constexpr (Q == 4) {
      const V ab_low = interleave<A, 1>(r[i], r[i + 1], false),
              ab_high = interleave<A, 1>(r[i], r[i + 1], true);
      const V cd_low = interleave<A, 1>(r[i + 2], r[i + 3], false),
              cd_high = interleave<A, 1>(r[i + 2], r[i + 3], true);
      r[i] = interleave<A, 2>(ab_low, cd_low, false);
      r[i + 1] = interleave<A, 2>(ab_low, cd_low, true);
      r[i + 2] = interleave<A, 2>(ab_high, cd_high, false);
      r[i + 3] = interleave<A, 2>(ab_high, cd_high, true);
    } else {
      const V a = r[i], b = r[i + 1];
      r[i] = interleave<A, 1>(a, b, false);
      r[i + 1] = interleave<A, 1>(a, b, true);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < Q; ++c) {
    if constexpr (kLanes == 2) {
      const V a = r[c], b = r[Q + c];
      r[c] = every_second_lane<A>(a, b, false);
      r[Q + c] = every_second_lane<A>(a, b, true);
    } else if constexpr (kLanes == 4) {
      const V a = r[c], b = r[Q + c], d = r[2 * Q + c], e = r[3 * Q + c];
      const V ab_even = every_second_lane<A>(a, b, false), ab_odd = every_second_lane<A>(a, b, true);
      const V de_even = every_second_lane<A>(d, e, false), de_odd = every_second_lane<A>(d, e, true);
      r[c] = every_second_lane<A>(ab_even, de_even, false);
      r[Q + c] = every_second_lane<A>(ab_odd, de_odd, false);
      r[2 * Q + c] = every_second_lane<A>(ab_even, de_even, true);
      r[3 * Q + c] = every_second_lane<A>(ab_odd, de_odd, true);
    }
  }
}

// r[j][i] = from[i, j] for L rows i and L columns j. Indices are constants, so the block stays in registers.
template <class A>
RNNFAST_INLINE void load_turned(typename Vec<A>::type* r, const A* from, int64_t ld) {
  constexpr int L = Vec<A>::kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) r[i] = load(from + i * ld);
  transpose<A>(r);
}

// The same for fewer rows or columns; what is missing is zero.
template <class A>
__attribute__((noinline)) void load_turned_part(typename Vec<A>::type* r, const A* from, int64_t ld,
                                                int64_t rows, int64_t columns) {
  constexpr int L = Vec<A>::kLanes;
  for (int i = 0; i < L; ++i) r[i] = i < rows ? load_part(from + i * ld, columns) : typename Vec<A>::type{};
  transpose<A>(r);
}

// to[j, i] = from[i, j] for at most L rows i and L columns j; whole vectors of `to` are written
template <class A>
RNNFAST_INLINE void turn_block(A* to, int64_t to_ld, const A* from, int64_t ld, int64_t rows,
                               int64_t columns) {
  constexpr int L = Vec<A>::kLanes;
  if (rows >= L && columns >= L) {
    typename Vec<A>::type r[L];
    load_turned(r, from, ld);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) store(to + j * to_ld, r[j]);
  } else {
    typename Vec<A>::type r[L];
    load_turned_part(r, from, ld, rows, columns);
    for (int64_t j = 0; j < least<int64_t>(L, columns); ++j) store(to + j * to_ld, r[j]);
  }
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
