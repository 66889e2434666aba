// Floats as sums of kFloatParts bfloat16 numbers, for a processor that multiplies those by a matrix unit and
// has no other way past its multiply-adds: x = high + middle + low, 8 bits each. Of the nine products of two
// such sums the six that count give what a float has (the others are 2^-24 of it), added up in float. Where
// less is asked for, numbers are rounded to two parts, of whose products three count (the other is 2^-18;
// TF32 rounds each number by 2^-11), or to bfloat16 itself. kFloatParts comes from the instruction set.
//
// The unit takes denormal parts for zero, so rows of A and columns of W whose largest number is not of an
// ordinary size are scaled by a power of two, which is exact, and their sums scaled back. Compiled inside the
// instruction set's namespace, before product-inl.h. No guard on purpose.

#ifndef RNNFAST_MATRIX_UNIT
constexpr int kFloatParts = 0;
#endif
constexpr int64_t kMostPanel = 12;                 // vectors that are packed together
constexpr int64_t kTileNumbers = 32;               // of k
constexpr int64_t kTileFloats = 16 * 16;           // the room of a tile
constexpr int64_t kPartsRow = 64 / sizeof(float);  // of a tile
constexpr int64_t kVectorTail =
    2 * 64 / sizeof(float);  // scales of a vector of columns, and whether to mind them

// Floats that a packed vector of columns takes: [K / 32, part, word, column], its low parts first, then the
// scales
RNNFAST_INLINE int64_t parts_size(int64_t K) {
  return K / kTileNumbers * kFloatParts * kTileFloats + kVectorTail;
}

// where part i of B stands among the tiles of a packed vector: products begin with the low one
RNNFAST_INLINE constexpr int64_t tile_of(int64_t part) { return kFloatParts - 1 - part; }

// what the end of a packed vector says about its scales: all are 1, or not, or not all numbers are finite
constexpr float kPlain = 0, kScaled = 1, kCareful = 2;

template <class E>
constexpr bool kInParts = false;
#ifdef RNNFAST_MATRIX_UNIT
template <>
inline constexpr bool kInParts<float> = true;

// The products of two sums that count, as parts of A and of B (0: the high one), in this order for every 32
// numbers of k, whatever the tile
struct PartPair {
  int a, b;
};
template <int kParts>
inline constexpr PartPair kPairsOf[] = {{0, 0}};
template <>
inline constexpr PartPair kPairsOf<2>[] = {{0, 1}, {0, 0}, {1, 0}};
template <>
inline constexpr PartPair kPairsOf<3>[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {0, 0}, {2, 0}};
inline constexpr auto& kPairs = kPairsOf<kFloatParts>;
constexpr int kProducts = sizeof kPairs / sizeof *kPairs;

// Of words, as the floats whose upper halves they are
RNNFAST_INLINE pairs lower_halves(pairs words) { return words << 16; }
RNNFAST_INLINE pairs upper_halves(pairs words) { return words & (pairs{} + int32_t(0xffff0000)); }

// A word of the unit, of A and of B, is two of 32 numbers: one of the first 16, and, above it, one of the
// others.
RNNFAST_INLINE pairs words_of(pairs first, pairs second) {
  typedef uint32_t unsigned_pairs __attribute__((vector_size(kVectorBytes)));
  return __builtin_bit_cast(pairs, __builtin_bit_cast(unsigned_pairs, first) >> 16) | upper_halves(second);
}
struct InTurns {  // 16 numbers, and the 16 after them
  static constexpr int at(int i) { return i / 2 + i % 2 * 16; }
};
RNNFAST_INLINE pairs rounded_words(f32v first, f32v second) {
  typedef uint16_t words16 __attribute__((vector_size(kVectorBytes)));
  const words16 all = __builtin_bit_cast(words16, RNNFAST_ROUND_TWO_BF16(first, second));
  return __builtin_bit_cast(pairs, shuffled<InTurns>(all, all, std::make_index_sequence<32>()));
}

// The parts of 32 numbers. Three are all of a float. Fewer are rounded, so that what is left out has either
// sign.
struct Parts {
  pairs words[kFloatParts];  // the high parts first

  RNNFAST_INLINE Parts(f32v first, f32v second) {
    for (pairs& w : words) {
      w = kFloatParts < 3 ? rounded_words(first, second)
                          : words_of(__builtin_bit_cast(pairs, first), __builtin_bit_cast(pairs, second));
      first = first - __builtin_bit_cast(f32v, lower_halves(w));
      second = second - __builtin_bit_cast(f32v, upper_halves(w));
    }
  }
};

// The largest magnitudes among numbers, as bits, which compare like them
struct Largest {
  pairs lanes{};

  RNNFAST_INLINE void see(f32v x) {
    const pairs bits = __builtin_bit_cast(pairs, x) & (pairs{} + 0x7fffffff);
    lanes = bits > lanes ? bits : lanes;
  }
  RNNFAST_INLINE int32_t of_all() const {
    int32_t most = 0;
    for (int i = 0; i < Vec<float>::kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
  }
};

constexpr int32_t kExponent = 23, kInfinite = 255 << kExponent;
constexpr int32_t kOrdinary = (127 - 40) << kExponent, kLarge = (127 + 40) << kExponent;

// What numbers are multiplied by of which the largest has these bits, and its reciprocal: powers of two
struct Scale {
  float up = 1, down = 1;

  RNNFAST_INLINE explicit Scale(int32_t largest) {
    if (largest == 0 || (largest >= kOrdinary && largest < kLarge) || largest >= kInfinite) return;
    const int32_t wanted = 254 - (largest >> kExponent), e = wanted < 1 ? 1 : wanted > 253 ? 253 : wanted;
    up = __builtin_bit_cast(float, e << kExponent);
    down = __builtin_bit_cast(float, (254 - e) << kExponent);
  }
};

// n numbers of a row of A, filled with zeros to K: part i of the numbers from k on goes to
// to + (k / 32) step + 16 i floats. Returns what the sums are multiplied by, or 0 where not all are finite.
__attribute__((noinline)) inline float split_row(const float* a, int64_t n, float* to, int64_t step) {
  constexpr int L = Vec<float>::kLanes;
  const auto split = [&](auto scaled) {
    Largest largest;
    float* line = to;
    const auto put = [&](f32v first, f32v second) {
      largest.see(first), largest.see(second);
      const Parts parts(scaled(first), scaled(second));
      for (int i = 0; i < kFloatParts; ++i)
        store(reinterpret_cast<int32_t*>(line + i * kPartsRow), parts.words[i]);
      line += step;
    };
    int64_t k = 0;
    for (; k + kTileNumbers <= n; k += kTileNumbers) put(load(a + k), load(a + k + L));
    if (k < n) put(load_part(a + k, n - k), load_part(a + k + L, n - k - L));
    return largest.of_all();
  };
  const int32_t largest = split([&](f32v x) { return x; });
  const Scale scale(largest);
  if (scale.up != 1) split([&](f32v x) { return x * scale.up; });
  return largest < kInfinite ? scale.down : 0;
}

// The scales of 16 columns whose largest numbers have these bits, at the end of their packed vector. Returns
// what to multiply them by.
RNNFAST_INLINE f32v put_scales(float* vector, int64_t K, const Largest& largest) {
  float* const tail = vector + parts_size(K) - kVectorTail;
  f32v up;
  bool infinite = false, scaled = false;
  for (int i = 0; i < Vec<float>::kLanes; ++i) {
    const Scale scale(largest.lanes[i]);
    up[i] = scale.up, tail[i] = scale.down;
    infinite |= largest.lanes[i] >= kInfinite, scaled |= scale.up != 1;
  }
  tail[kPartsRow] = infinite ? kCareful : scaled ? kScaled : kPlain;
  return up;
}

// What the unit would make of infinity is NaN: there the other parts are zero.
RNNFAST_INLINE Parts parts_of_weights(f32v first, f32v second) {
  const pairs magnitude = pairs{} + 0x7fffffff, p = __builtin_bit_cast(pairs, first) & magnitude,
              q = __builtin_bit_cast(pairs, second) & magnitude;
  Parts parts(first, second);
  const pairs others = ~words_of(p >= kInfinite, q >= kInfinite);
  for (int i = 1; i < kFloatParts; ++i) parts.words[i] &= others;
  return parts;
}

// A block of a vector's tiles, 32 numbers of 16 columns, as parts_of says
template <class PartsOf>
RNNFAST_INLINE void pack_parts_block(float* to, const f32v* first, const f32v* second, Largest& largest,
                                     const PartsOf& parts_of) {
#pragma GCC unroll 16
  for (int i = 0; i < Vec<float>::kLanes; ++i) {
    largest.see(first[i]), largest.see(second[i]);
    const Parts parts = parts_of(first[i], second[i]);
    for (int j = 0; j < kFloatParts; ++j)
      store(reinterpret_cast<int32_t*>(to + tile_of(j) * kTileFloats + i * kPartsRow), parts.words[j]);
  }
}

// `vectors` of columns, their tiles and scales; block(v, k, r) has r[i] = number k + i of each column of
// vector v, zero where there is none. Numbers of an ordinary size, which is what weights are, take one pass,
// in which rows of all vectors are read side by side.
template <class Block>
RNNFAST_INLINE void pack_parts(float* to, int64_t vectors, int64_t K, const Block& block) {
  constexpr int L = Vec<float>::kLanes;
  const int64_t size = parts_size(K);
  const auto pack = [&](int64_t v, int64_t k, Largest& largest, const auto& parts_of) {
    f32v first[L], second[L];
    block(v, k, first);
    block(v, k + L, second);
    pack_parts_block(to + v * size + k / kTileNumbers * kFloatParts * kTileFloats, first, second, largest,
                     parts_of);
  };
  Largest largest[kMostPanel];
  for (int64_t k = 0; k < K; k += kTileNumbers)
    for (int64_t v = 0; v < vectors; ++v)
      pack(v, k, largest[v], [](f32v first, f32v second) { return Parts(first, second); });
  for (int64_t v = 0; v < vectors; ++v) {
    float* const vector = to + v * size;
    const f32v up = put_scales(vector, K, largest[v]);
    if (vector[size - kVectorTail + kPartsRow] == kPlain) continue;
    Largest again;
    for (int64_t k = 0; k < K; k += kTileNumbers)
      pack(v, k, again, [&](f32v first, f32v second) { return parts_of_weights(first * up, second * up); });
  }
}

// from `columns` rows of n numbers, a column's each, ld apart
__attribute__((noinline)) inline void pack_parts_turned(float* to, const float* from, int64_t ld,
                                                        int64_t columns, int64_t n, int64_t K) {
  constexpr int64_t L = Vec<float>::kLanes;
  pack_parts(to, 1, K, [&](int64_t, int64_t k, f32v* r) {
    if (columns >= L && n - k >= L)
      load_turned(r, from + k, ld);
    else
      load_turned_part(r, from + k, ld, columns, n - k);
  });
}

// from n rows of columns; row(k) is where row k begins
template <class Row>
RNNFAST_INLINE void pack_parts_straight(float* to, const Row& row, int64_t columns, int64_t n, int64_t K) {
  constexpr int64_t L = Vec<float>::kLanes;
  pack_parts(to, divide_up(columns, L), K, [&](int64_t v, int64_t k, f32v* r) {
    const bool whole = columns - v * L >= L && n - k >= L;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      r[i] = whole       ? load(row(k + i) + v * L)
             : k + i < n ? load_part(row(k + i) + v * L, columns - v * L)
                         : f32v{};
  });
}
#endif
