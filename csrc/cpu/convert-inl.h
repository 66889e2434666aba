// Numbers that are stored in 16 bits, to float and back. Compiled once per instruction set, inside its
// namespace, after isa-inl.h; a set that has it in one instruction says RNNFAST_WIDEN_F16 (bits to floats)
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

// to the nearest, ties to even; NaN to one with a clean sign
RNNFAST_INLINE bits16 rounded_bits(f32v v, Bfloat16) {
  const bits32 bits = bits_of(v), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(choose(exceeds(bits & kNoSign, kInfinity), 0x7fc0 - bits32{}, nearest),
                                 bits16);
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

template <class E>
void widen(const uint16_t* x, float* y, int64_t n) {
  constexpr int L = Vec<float>::kLanes;
  for (int64_t i = 0; i < n; i += L) {
    bits16 v{};
    if (n - i >= L)
      __builtin_memcpy(&v, x + i, sizeof v);
    else
      __builtin_memcpy(&v, x + i, (n - i) * sizeof *x);
    store_part(y + i, widened(v, E()), n - i);
  }
}

template <class E>
void round_off(const float* x, uint16_t* y, int64_t n) {
  constexpr int L = Vec<float>::kLanes;
  for (int64_t i = 0; i < n; i += L) {
    const bits16 v = rounded_bits(load_part(x + i, n - i), E());
    if (n - i >= L)
      __builtin_memcpy(y + i, &v, sizeof v);
    else
      __builtin_memcpy(y + i, &v, (n - i) * sizeof *y);
  }
}

template <class E>
constexpr Conversion kConversion = {widen<E>, round_off<E>};
