// bfloat16 for an instruction set that multiplies pairs of it: loads, stores, and the multiply-add that
// products are made of. Compiled inside its namespace, after RNNFAST_DOT_BF16 (a b + c over pairs) and
// RNNFAST_ROUND_BF16 (a pack of floats to halves). No guard on purpose.

typedef uint16_t halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t unaligned_halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// both products of each pair are added to c, in float
RNNFAST_INLINE f32v fma(pairs a, pairs b, f32v c) { return RNNFAST_DOT_BF16(a, b, c); }

// to the nearest, ties to even
RNNFAST_INLINE halves rounded(f32v v) { return RNNFAST_ROUND_BF16(v); }

RNNFAST_INLINE f32v load(const Bfloat16* p) {
  const halves h = *reinterpret_cast<const unaligned_halves*>(p);
  return __builtin_bit_cast(f32v, __builtin_convertvector(h, pairs) << 16);
}

RNNFAST_INLINE void store(Bfloat16* p, f32v v) { *reinterpret_cast<unaligned_halves*>(p) = rounded(v); }

RNNFAST_INLINE void store_part(Bfloat16* p, f32v v, int64_t n) {
  if (n >= Vec<float>::kLanes) return store(p, v);
  const halves h = rounded(v);
  for (int64_t i = 0; i < n; ++i) p[i].bits = h[i];
}
