// Blocks of a matrix turned in registers, so that what stands in columns can be read in rows. Compiled once
// per instruction set, inside its namespace. No guard on purpose.

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

// to[j, i] = word (i, j) for at most L rows of words and L columns; whole vectors of `to` are written
template <class E>
RNNFAST_INLINE void turn_block(typename WordOf<E>::type* to, int64_t to_ld, const E* from, int64_t ld,
                               int64_t rows, int64_t columns) {
  typedef typename WordOf<E>::type W;
  constexpr int L = Vec<W>::kLanes;
  typename Vec<W>::type r[L];
  if (rows >= L * WordOf<E>::kNumbers && columns >= L) {
    load_turned(r, from, ld);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) store(to + j * to_ld, r[j]);
  } else {
    load_turned_part(r, from, ld, rows, columns);
    for (int64_t j = 0; j < least<int64_t>(L, columns); ++j) store(to + j * to_ld, r[j]);
  }
}
