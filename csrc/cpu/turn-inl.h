// Blocks of a matrix turned in registers, so that what stands in columns can be read in rows. Compiled once
// per instruction set, inside its namespace. No guard on purpose.

// lane j is lane From::at(j) of a and, after them, b
template <class From, class V, size_t... j>
RNNFAST_INLINE V shuffled(V a, V b, std::index_sequence<j...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, From::at(j)...);
#else
  typedef decltype(a < b) Int;
  return __builtin_shuffle(a, b, Int{From::at(j)...});
#endif
}

// Shuffles of two packs that are one instruction each: within every 128-bit lane, blocks of kSize numbers
// from the low (or high) halves of a and b in turn; and the even (or odd) lanes of a, then of b.
template <class A, int kSize, bool kHigh>
struct Interleaved {
  static constexpr int at(int j) {
    constexpr int L = Vec<A>::kLanes, Q = 16 / sizeof(A);
    const int block = j % Q / kSize;
    return j / Q * Q + block / 2 * kSize + j % kSize + (kHigh ? Q / 2 : 0) + (block % 2 ? L : 0);
  }
};
template <class A, bool kOdd>
struct EverySecondLane {
  static constexpr int at(int j) {
    constexpr int Q = 16 / sizeof(A);
    return (2 * (j / Q) + kOdd) * Q + j % Q;
  }
};

template <class A, int kSize, bool kHigh>
RNNFAST_INLINE typename Vec<A>::type interleave(typename Vec<A>::type a, typename Vec<A>::type b) {
  return shuffled<Interleaved<A, kSize, kHigh>>(a, b, std::make_index_sequence<Vec<A>::kLanes>());
}
template <class A, bool kOdd>
RNNFAST_INLINE typename Vec<A>::type every_second_lane(typename Vec<A>::type a, typename Vec<A>::type b) {
  return shuffled<EverySecondLane<A, kOdd>>(a, b, std::make_index_sequence<Vec<A>::kLanes>());
}

// r[i][j] -> r[j][i]: first within the lanes of every Q rows, then the lanes change places
template <class A>
RNNFAST_INLINE void transpose(typename Vec<A>::type* r) {
  typedef typename Vec<A>::type V;
  constexpr int L = Vec<A>::kLanes, Q = 16 / sizeof(A), kLanes = L / Q;
#pragma GCC unroll 16
  for (int i = 0; i < L; i += Q) {
    if constexpr (Q == 4) {
      const V ab_low = interleave<A, 1, false>(r[i], r[i + 1]),
              ab_high = interleave<A, 1, true>(r[i], r[i + 1]);
      const V cd_low = interleave<A, 1, false>(r[i + 2], r[i + 3]),
              cd_high = interleave<A, 1, true>(r[i + 2], r[i + 3]);
      r[i] = interleave<A, 2, false>(ab_low, cd_low);
      r[i + 1] = interleave<A, 2, true>(ab_low, cd_low);
      r[i + 2] = interleave<A, 2, false>(ab_high, cd_high);
      r[i + 3] = interleave<A, 2, true>(ab_high, cd_high);
    } else {
      const V a = r[i], b = r[i + 1];
      r[i] = interleave<A, 1, false>(a, b);
      r[i + 1] = interleave<A, 1, true>(a, b);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < Q; ++c) {
    if constexpr (kLanes == 2) {
      const V a = r[c], b = r[Q + c];
      r[c] = every_second_lane<A, false>(a, b);
      r[Q + c] = every_second_lane<A, true>(a, b);
    } else if constexpr (kLanes == 4) {
      const V a = r[c], b = r[Q + c], d = r[2 * Q + c], e = r[3 * Q + c];
      const V ab_even = every_second_lane<A, false>(a, b), ab_odd = every_second_lane<A, true>(a, b);
      const V de_even = every_second_lane<A, false>(d, e), de_odd = every_second_lane<A, true>(d, e);
      r[c] = every_second_lane<A, false>(ab_even, de_even);
      r[Q + c] = every_second_lane<A, false>(ab_odd, de_odd);
      r[2 * Q + c] = every_second_lane<A, true>(ab_even, de_even);
      r[3 * Q + c] = every_second_lane<A, true>(ab_odd, de_odd);
    }
  }
}

// r[j][i] = word (i, j) for L rows i of words and L columns j, of a matrix whose rows of numbers are ld
// apart. Indices are constants, so the block stays in registers.
template <class E>
RNNFAST_INLINE void load_turned(typename Vec<typename WordOf<E>::type>::type* r, const E* from, int64_t ld) {
  typedef typename WordOf<E>::type W;
#pragma GCC unroll 16
  for (int i = 0; i < Vec<W>::kLanes; ++i, from += WordOf<E>::kNumbers * ld)
    r[i] = load_column_words(from, from + ld);
  transpose<W>(r);
}

// The same for fewer rows (of numbers) or columns; what is missing is zero.
template <class E>
__attribute__((noinline)) void load_turned_part(typename Vec<typename WordOf<E>::type>::type* r,
                                                const E* from, int64_t ld, int64_t rows, int64_t columns) {
  typedef typename WordOf<E>::type W;
  constexpr int kNumbers = WordOf<E>::kNumbers;
  for (int i = 0; i < Vec<W>::kLanes; ++i, from += kNumbers * ld)
    r[i] = load_column_words_part(from, from + ld, rows - i * kNumbers, columns);
  transpose<W>(r);
}

// to[j, i] = word (i, j) for at most L rows of words and L columns; whole vectors of `to` are written, of so
// many columns: more than there are become zero
template <class E>
RNNFAST_INLINE void turn_block(typename WordOf<E>::type* to, int64_t to_ld, const E* from, int64_t ld,
                               int64_t rows, int64_t columns, int64_t written) {
  typedef typename WordOf<E>::type W;
  constexpr int L = Vec<W>::kLanes;
  typename Vec<W>::type r[L];
  if (rows >= L * WordOf<E>::kNumbers && columns >= L) {
    load_turned(r, from, ld);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) store(to + j * to_ld, r[j]);
  } else {
    load_turned_part(r, from, ld, rows, columns);
    for (int64_t j = 0; j < least<int64_t>(L, written); ++j) store(to + j * to_ld, r[j]);
  }
}
