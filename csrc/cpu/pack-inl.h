// Packs of lanes as GNU vector types: loads, stores, and what cells/math.h asks for.
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

template <>
struct Real<f32v> : Constants<float> {
  typedef Vec<float>::Int Int;
};

template <>
struct Real<f64v> : Constants<double> {
  typedef Vec<double>::Int Int;
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

// What storage of type E is read as by a product (words of so many numbers), and what a product of words W
// adds up in.
template <class E>
struct WordOf {
  typedef E type;
  static constexpr int kNumbers = 1;
};
template <>
struct WordOf<Bfloat16> {
  typedef int32_t type;
  static constexpr int kNumbers = 2;
};
// Storage of 16 bits that a product of floats reads, and floats that it reads rounded to 16 bits
template <class E>
struct Widened {
  E number;
};
template <class E>
struct Rounded {
  float number;
};
// Two floats that a product of bfloat16 reads rounded, as a pair
struct RoundedPair {
  float numbers[2];
};
template <class E>
struct WordOf<Widened<E>> : WordOf<float> {};
template <class E>
struct WordOf<Rounded<E>> : WordOf<float> {};
template <>
struct WordOf<RoundedPair> : WordOf<int32_t> {};
template <class W>
struct SumOf {
  typedef W type;
};
template <>
struct SumOf<int32_t> {
  typedef float type;
};

template <class E>
RNNFAST_INLINE const typename WordOf<E>::type* words(const E* p) {
  return reinterpret_cast<const typename WordOf<E>::type*>(p);
}

// A row of words from numbers that stand in rows: word j is number j of each of kNumbers rows, of which there
// are at most two; where what is stored makes a whole word, the second one is not read. `part`: only the
// first n of them, and no more rows than are left; what is missing is zero.
template <class A>
RNNFAST_INLINE typename Vec<A>::type load_column_words(const A* p, const A*) {
  return load(p);
}
template <class A>
RNNFAST_INLINE typename Vec<A>::type load_column_words_part(const A* p, const A*, int64_t rows, int64_t n) {
  return rows > 0 ? load_part(p, n) : typename Vec<A>::type{};
}

// every word's numbers added to a lane of sums
template <class V>
RNNFAST_INLINE V add_words(V words, V sums) {
  return sums + words;
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
  return {i ? n * i / parts : 0, i + 1 < parts ? n * (i + 1) / parts : n};  // divisions are slow
}

RNNFAST_INLINE Range share(Range all, int64_t parts, int64_t i) {
  const Range r = share(all.size(), parts, i);
  return {all.begin + r.begin, all.begin + r.end};
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
