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

// Three parts are all of a float. Fewer are rounded, so that what is left out has either sign.
struct Parts {
  pairs part[kFloatParts];  // the high one first; as floats of which the lower half is zero

  RNNFAST_INLINE explicit Parts(f32v x) {
    for (pairs& p : part) {
      p = kFloatParts < 3 ? __builtin_convertvector(rounded(x), pairs) << 16
                          : __builtin_bit_cast(pairs, x) & (pairs{} + int32_t(0xffff0000));
      x = x - __builtin_bit_cast(f32v, p);
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

struct OddLanes {
  static constexpr int at(int j) { return 2 * j + 1; }
};
// the upper halves of 16 and 16 numbers, side by side
RNNFAST_INLINE pairs upper_halves(pairs a, pairs b) {
  typedef uint16_t words16 __attribute__((vector_size(kVectorBytes)));
  return __builtin_bit_cast(pairs,
                            shuffled<OddLanes>(__builtin_bit_cast(words16, a), __builtin_bit_cast(words16, b),
                                               std::make_index_sequence<32>()));
}
// of each lane the upper halves of a and, above it, of b
RNNFAST_INLINE pairs paired_halves(pairs a, pairs b) {
  typedef uint32_t unsigned_pairs __attribute__((vector_size(kVectorBytes)));
  return __builtin_bit_cast(pairs, __builtin_bit_cast(unsigned_pairs, a) >> 16) | b;
}

// n numbers of a row of A, filled with zeros to K: part i of the numbers from k on goes to
// to + (k / 32) step + 16 i floats. Returns what the sums are multiplied by; `finite` says whether all are.
__attribute__((noinline)) inline float split_row(const float* a, int64_t n, float* to, int64_t step,
                                                 bool& finite) {
  constexpr int L = Vec<float>::kLanes;
  const auto split = [&](float factor) {
    Largest largest;
    float* line = to;
    const auto put = [&](f32v first, f32v second) {
      largest.see(first), largest.see(second);
      const Parts p(first * factor), q(second * factor);
      for (int i = 0; i < kFloatParts; ++i)
        store(reinterpret_cast<int32_t*>(line + i * kPartsRow), upper_halves(p.part[i], q.part[i]));
      line += step;
    };
    int64_t k = 0;
    for (; k + kTileNumbers <= n; k += kTileNumbers) put(load(a + k), load(a + k + L));
    if (k < n) put(load_part(a + k, n - k), load_part(a + k + L, n - k - L));
    return largest.of_all();
  };
  const int32_t largest = split(1);
  finite = largest < kInfinite;
  const Scale scale(largest);
  if (scale.up != 1) split(scale.up);
  return scale.down;
}

// The scales of 16 columns whose largest numbers have these bits, at the end of their packed vector. Returns
// what to multiply them by.
RNNFAST_INLINE f32v put_scales(float* vector, int64_t K, const Largest& largest) {
  float* const tail = vector + parts_size(K) - kVectorTail;
  f32v up;
  int32_t infinite = 0;
  for (int i = 0; i < Vec<float>::kLanes; ++i) {
    const Scale scale(largest.lanes[i]);
    up[i] = scale.up, tail[i] = scale.down;
    infinite |= largest.lanes[i] >= kInfinite;
  }
  tail[kPartsRow] = static_cast<float>(infinite);
  return up;
}

// What the unit would make of infinity is NaN: there the other parts are zero.
RNNFAST_INLINE Parts parts_of_weights(f32v w) {
  Parts p(w);
  const pairs bits = __builtin_bit_cast(pairs, w) & (pairs{} + 0x7fffffff), infinite = bits >= kInfinite;
  for (int i = 1; i < kFloatParts; ++i) p.part[i] &= ~infinite;
  return p;
}

// Tiles of 16 columns from 16 rows of n numbers (a column's each), ld apart, of which `columns` are there
__attribute__((noinline)) inline void pack_parts_turned(float* to, const float* from, int64_t ld,
                                                        int64_t columns, int64_t n, int64_t K) {
  constexpr int L = Vec<float>::kLanes;
  Largest of_columns;
  for (int i = 0; i < L; ++i) {
    Largest largest;
    for (int64_t k = 0; i < columns && k < n; k += L) largest.see(load_part(from + i * ld + k, n - k));
    of_columns.lanes[i] = largest.of_all();
  }
  const f32v up = put_scales(to, K, of_columns);
  for (int64_t k = 0; k < K; k += kTileNumbers, to += kFloatParts * kTileFloats) {
    pairs part[kFloatParts][L];
    for (int i = 0; i < L; ++i) {
      const float* const row = from + i * ld + k;
      const int64_t left = i < columns ? n - k : 0;
      const Parts p = parts_of_weights(load_part(row, left) * up[i]),
                  q = parts_of_weights(load_part(row + L, left - L) * up[i]);
      for (int j = 0; j < kFloatParts; ++j) part[j][i] = upper_halves(p.part[j], q.part[j]);
    }
    for (int i = 0; i < kFloatParts; ++i) {
      transpose<int32_t>(part[i]);
      for (int j = 0; j < L; ++j)
        store(reinterpret_cast<int32_t*>(to + tile_of(i) * kTileFloats + j * kPartsRow), part[i][j]);
    }
  }
}

// The same from n rows of columns; row(k) is where row k begins
template <class Row>
RNNFAST_INLINE void pack_parts_straight(float* to, const Row& row, int64_t columns, int64_t n, int64_t K) {
  Largest largest;
  for (int64_t k = 0; k < n; ++k) largest.see(load_part(row(k), columns));
  const f32v up = put_scales(to, K, largest);
  const auto parts_of = [&](int64_t k) {
    return parts_of_weights(k < n ? load_part(row(k), columns) * up : f32v{});
  };
  for (int64_t k = 0; k < K; k += kTileNumbers, to += kFloatParts * kTileFloats)
    for (int64_t j = 0; j < kTileNumbers / 2; ++j) {
      const Parts p = parts_of(k + 2 * j), q = parts_of(k + 2 * j + 1);
      float* const word = to + j * kPartsRow;
      for (int i = 0; i < kFloatParts; ++i)
        store(reinterpret_cast<int32_t*>(word + tile_of(i) * kTileFloats),
              paired_halves(p.part[i], q.part[i]));
    }
}
#endif
