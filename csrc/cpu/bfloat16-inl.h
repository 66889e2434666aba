// bfloat16 for an instruction set that multiplies pairs of it: loads, stores, and the multiply-add that
// products are made of. Compiled inside its namespace, after RNNFAST_DOT_BF16 (a b + c over pairs) and
// RNNFAST_ROUND_BF16 (a pack of floats to halves), and, where there is such, RNNFAST_ROUND_TWO_BF16 and
// RNNFAST_MASKED_{LOAD,STORE}_HALVES. No guard on purpose.

typedef uint16_t halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t unaligned_halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// both products of each pair are added to c, in float
RNNFAST_INLINE f32v fma(pairs a, pairs b, f32v c) { return RNNFAST_DOT_BF16(a, b, c); }

// to the nearest, ties to even
RNNFAST_INLINE halves rounded(f32v v) { return RNNFAST_ROUND_BF16(v); }

RNNFAST_INLINE halves load_halves(const Bfloat16* p) { return *reinterpret_cast<const unaligned_halves*>(p); }

RNNFAST_INLINE halves load_halves(const Bfloat16* p, int64_t n) {
  if (n >= Vec<float>::kLanes) return load_halves(p);
  if (n <= 0) return halves{};
#if defined(RNNFAST_MASKED_LOAD_HALVES) && !defined(RNNFAST_CHECKED)
  return RNNFAST_MASKED_LOAD_HALVES(p, n);
#else
  halves h{};
  for (int64_t i = 0; i < n; ++i) h[i] = p[i].bits;
  return h;
#endif
}

RNNFAST_INLINE f32v load(const Bfloat16* p) {
  return __builtin_bit_cast(f32v, __builtin_convertvector(load_halves(p), pairs) << 16);
}

RNNFAST_INLINE f32v load_part(const Bfloat16* p, int64_t n) {
  return __builtin_bit_cast(f32v, __builtin_convertvector(load_halves(p, n), pairs) << 16);
}

RNNFAST_INLINE void store(Bfloat16* p, f32v v) { *reinterpret_cast<unaligned_halves*>(p) = rounded(v); }

RNNFAST_INLINE void store_part(Bfloat16* p, f32v v, int64_t n) {
  if (n >= Vec<float>::kLanes) return store(p, v);
  if (n <= 0) return;
#if defined(RNNFAST_MASKED_STORE_HALVES) && !defined(RNNFAST_CHECKED)
  RNNFAST_MASKED_STORE_HALVES(p, rounded(v), n);
#else
  const halves h = rounded(v);
  for (int64_t i = 0; i < n; ++i) p[i].bits = h[i];
#endif
}

RNNFAST_INLINE pairs paired(halves low, halves high) {
  return __builtin_convertvector(low, pairs) | __builtin_convertvector(high, pairs) << 16;
}

RNNFAST_INLINE pairs load_column_words(const Bfloat16* p, const Bfloat16* q) {
  return paired(load_halves(p), load_halves(q));
}

RNNFAST_INLINE pairs load_column_words_part(const Bfloat16* p, const Bfloat16* q, int64_t rows, int64_t n) {
  return paired(load_halves(p, rows > 0 ? n : 0), load_halves(q, rows > 1 ? n : 0));
}

// rows of words (pack-inl.h) of floats
RNNFAST_INLINE pairs rounded_pairs(f32v first, f32v second) {
#ifdef RNNFAST_ROUND_TWO_BF16
  return __builtin_bit_cast(pairs, RNNFAST_ROUND_TWO_BF16(first, second));
#else
  const halves both[] = {rounded(first), rounded(second)};
  return __builtin_bit_cast(pairs, both);
#endif
}
RNNFAST_INLINE pairs load_column_words(const RoundedPair* p, const RoundedPair*) {
  return rounded_pairs(load(p->numbers), load(p->numbers + Vec<float>::kLanes));
}
RNNFAST_INLINE pairs load_column_words_part(const RoundedPair* p, const RoundedPair*, int64_t rows,
                                            int64_t n) {
  constexpr int64_t L = Vec<float>::kLanes;
  if (rows <= 0 || n <= 0) return pairs{};
  return rounded_pairs(load_part(p->numbers, 2 * n), load_part(p->numbers + L, 2 * n - L));
}

RNNFAST_INLINE f32v add_words(pairs words, f32v sums) {
  int32_t ones = 0x3f803f80;
#ifdef __aarch64__
  asm("" : "+r"(ones));  // GCC 12 moves a constant of bfloat16 as if it were one of half precision
#endif
  return fma(words, ones - pairs{}, sums);
}
