// Numbers that are stored in 16 bits, to float and back. Compiled once per instruction set, inside its
// namespace, after pack-inl.h; a set that has it in one instruction says RNNFAST_WIDEN_F16 (bits to floats)
// and RNNFAST_ROUND_F16 (floats to bits). No guard on purpose.

typedef uint16_t bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t bits32 __attribute__((vector_size(kVectorBytes)));

RNNFAST_INLINE bits32 bits_of(f32v v) { return __builtin_bit_cast(bits32, v); }
RNNFAST_INLINE f32v float_of(bits32 bits) { return __builtin_bit_cast(f32v, bits); }
// mask: all ones or all zeros in each lane
RNNFAST_INLINE bits32 choose(bits32 mask, bits32 a, bits32 b) { return (mask & a) | (~mask & b); }
RNNFAST_INLINE bits32 exceeds(bits32 a, uint32_t b) { return __builtin_bit_cast(bits32, a > b); }

constexpr uint32_t kNoSign = 0x7fffffff, kInfinity = 0x7f800000;

RNNFAST_INLINE f32v widened(bits16 v, Bfloat16) { return float_of(__builtin_convertvector(v, bits32) << 16); }

// floats rounded to the nearest, ties to even; NaN to one with a clean sign
RNNFAST_INLINE f32v rounded_to(Bfloat16, f32v v) {
  const bits32 bits = bits_of(v), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  return float_of(choose(__builtin_bit_cast(bits32, v == v), nearest, 0x7fc00000 - bits32{}));
}
RNNFAST_INLINE bits16 rounded_bits(f32v v, Bfloat16 e) {
  return __builtin_convertvector(bits_of(rounded_to(e, v)) >> 16, bits16);
}

#ifdef RNNFAST_WIDEN_F16
RNNFAST_INLINE f32v widened(bits16 v, Half) { return RNNFAST_WIDEN_F16(v); }
RNNFAST_INLINE bits16 rounded_bits(f32v v, Half) { return RNNFAST_ROUND_F16(v); }
#else
RNNFAST_INLINE f32v widened(bits16 v, Half) {
  const bits32 h = __builtin_convertvector(v, bits32), sign = (h & 0x8000) << 16, rest = h & 0x7fff;
  // an exponent that is 112 too large keeps infinities and NaN what they are; a denormal is so many of 2^-24,
  // which the lowest bits of 0.5 + n 2^-24 are
  const bits32 usual = bits_of(float_of((rest << 13) + (0xe0u << 23)) * 0x1p-112f);
  const bits32 denormal = bits_of(float_of(rest | (126u << 23)) - 0.5f);
  return float_of(sign | choose(exceeds(rest, 0x3ff), usual, denormal));
}

// to the nearest, ties to even, by the addition of a number whose last place is the half's last one
RNNFAST_INLINE bits16 rounded_bits(f32v v, Half) {
  const bits32 bits = bits_of(v), rest = bits & kNoSign, sign = (bits >> 16) & 0x8000;
  const f32v size = float_of(rest) * 0x1p112f * 0x1p-110f;  // what is too large becomes infinite
  const bits32 exponent = (rest << 1) & 0xff000000u, least = 0x71000000u - bits32{};
  const bits32 place = choose(exceeds(exponent, 0x71000000u), exponent, least);
  const bits32 sum = bits_of(float_of((place >> 1) + 0x07800000u) + size);
  const bits32 nearest = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
  const bits32 nan = exceeds(rest, kInfinity);
  return __builtin_convertvector(sign | choose(nan, 0x7e00 - bits32{}, nearest), bits16);
}
#endif

RNNFAST_INLINE f32v rounded_to(Half e, f32v v) { return widened(rounded_bits(v, e), e); }

// the first n of so many lanes
RNNFAST_INLINE bits16 load_bits(const uint16_t* p, int64_t n) {
  bits16 v{};
  __builtin_memcpy(&v, p, n * sizeof *p);
  return v;
}
RNNFAST_INLINE void store_bits(uint16_t* p, bits16 v, int64_t n) { __builtin_memcpy(p, &v, n * sizeof *p); }

// rows of words (pack-inl.h) of such storage
template <class E>
RNNFAST_INLINE f32v load_column_words(const Widened<E>* p, const Widened<E>*) {
  return widened(load_bits(&p->number.bits, Vec<float>::kLanes), E());
}
template <class E>
RNNFAST_INLINE f32v load_column_words_part(const Widened<E>* p, const Widened<E>*, int64_t rows, int64_t n) {
  if (rows <= 0 || n <= 0) return f32v{};
  if (n >= Vec<float>::kLanes) return load_column_words(p, p);
  return widened(load_bits(&p->number.bits, n), E());
}
template <class E>
RNNFAST_INLINE f32v load_column_words(const Rounded<E>* p, const Rounded<E>*) {
  return rounded_to(E(), load(&p->number));
}
template <class E>
RNNFAST_INLINE f32v load_column_words_part(const Rounded<E>* p, const Rounded<E>*, int64_t rows, int64_t n) {
  return rows > 0 ? rounded_to(E(), load_part(&p->number, n)) : f32v{};
}

// f(i, lanes) for each vector of n numbers: the whole ones in a loop that holds nothing else, so that
// constants stay in registers, and the rest
template <class F>
RNNFAST_INLINE void each_vector(int64_t n, const F& f) {
  constexpr int64_t L = Vec<float>::kLanes;
  int64_t i = 0;
  for (; n - i >= L; i += L) f(i, L);
  if (i < n) f(i, n - i);
}

template <class E>
void widen(const uint16_t* x, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    store_part(y + i, widened(load_bits(x + i, lanes), E()), lanes);
  });
}

template <class E>
void round_off(const float* x, uint16_t* y, int64_t n) {
  each_vector(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    store_bits(y + i, rounded_bits(load_part(x + i, lanes), E()), lanes);
  });
}

template <class E>
void round_within(const float* x, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    store_part(y + i, rounded_to(E(), load_part(x + i, lanes)), lanes);
  });
}

template <class E>
constexpr Conversion kConversion = {widen<E>, round_off<E>, round_within<E>};
