// The product of floats in parts (parts-inl.h) by the matrix unit: rows of A are split once for all
// panels, some at a time; sums of a band of at most 32 rows and some vectors stay in the unit's registers
// while it walks K, and are then scaled and added to C, or handed on. Compiled inside the instruction set's
// namespace, after matrix-inl.h. No guard on purpose.

// The unit's registers when a band has 16 rows or fewer: four of C, all parts of A, one of B
enum FlatRegister { kFlatA = 4, kFlatB = 7 };

constexpr int kMostVectors = 4, kTallRows = 2 * kUnitRows;

RNNFAST_INLINE void set_up_parts(int64_t rows, int& now) {
  const int upper = static_cast<int>(rows > kUnitRows ? (rows + 1) / 2 : rows);
  const int lower = static_cast<int>(rows) - upper, wanted = upper << 8 | lower;
  if (now == wanted) return;
  now = wanted;
  TileSetup setup;
  const auto set = [&](int r, int n) { setup.rows[r] = static_cast<uint8_t>(n), setup.row_bytes[r] = 64; };
  if (lower) {
    for (int i = 0; i < 4; ++i) set(kTileC + i, i < 2 ? upper : lower);
    set(kTileA, upper), set(kTileA + 1, lower);
    set(kTileB, kUnitRows), set(kTileB + 1, kUnitRows);
  } else {
    for (int i = 0; i < kFlatB; ++i) set(i, upper);
    set(kFlatB, kUnitRows);
  }
  load_setup(setup);
}

// a: part i of the numbers from k on of row m at (k / 32) a_step + m a_row + 64 i bytes. b: kCount packed
// vectors, b_vector bytes apart.
struct BandOperands {
  const char *a, *b;
  int64_t a_step, b_vector, K, upper;
};

// Where the sums of a band go: row m of vector v to row(v, m), rows row_bytes bytes apart, from vector v on
// after(v). Together, before they are added to C, or into C itself.
typedef float VectorSums[kTallRows][kUnitRows];
struct SumsTogether {
  VectorSums* sums;
  static constexpr int64_t row_bytes = sizeof(VectorSums) / kTallRows;
  RNNFAST_INLINE float* row(int64_t v, int64_t m) const { return sums[v][m]; }
  RNNFAST_INLINE SumsTogether after(int64_t v) const { return {sums + v}; }
};
struct SumsInC {
  float* first;
  const int64_t* offset;
  int64_t row_bytes;
  RNNFAST_INLINE float* row(int64_t v, int64_t m) const {
    return first + offset[v] + m * row_bytes / int64_t(sizeof(float));
  }
  RNNFAST_INLINE SumsInC after(int64_t v) const { return {first, offset + v, row_bytes}; }
};
constexpr int64_t kSplitRow = kFloatParts * 64;  // bytes of a row of A, of 32 numbers
constexpr int64_t kTileBytes = 1024, kTileStep = kFloatParts * kTileBytes;

// whether product i reads another part of A, or of B, than the one before it
constexpr bool is_other(int i, int PartPair::* of) { return i == 0 || kPairs[i].*of != kPairs[i - 1].*of; }

// The products of 16 rows, whose parts are in registers, by a vector's tiles
template <int kSum, int i = 0>
RNNFAST_INLINE void multiply_flat_step(const char* tiles) {
  if constexpr (i < kProducts) {
    constexpr PartPair pair = kPairs[i];
    if constexpr (is_other(i, &PartPair::b)) load_tile<kFlatB>(tiles + tile_of(pair.b) * kTileBytes, 64);
    multiply_tiles<kSum, kFlatA + pair.a, kFlatB>();
    multiply_flat_step<kSum, i + 1>(tiles);
  }
}

// of two times 16 rows, `lower` bytes apart, by the tiles of kCount vectors
template <int kCount, int i = 0>
RNNFAST_INLINE void multiply_tall_step(const char* a, int64_t lower, const char* tiles, int64_t b_vector) {
  if constexpr (i < kProducts) {
    constexpr PartPair pair = kPairs[i];
    if constexpr (is_other(i, &PartPair::a)) {
      load_tile<kTileA>(a + 64 * pair.a, kSplitRow);
      load_tile<kTileA + 1>(a + lower + 64 * pair.a, kSplitRow);
    }
    const char* const tile = tiles + tile_of(pair.b) * kTileBytes;
    if constexpr (is_other(i, &PartPair::b)) {
      load_tile<kTileB>(tile, 64);
      if constexpr (kCount > 1) load_tile<kTileB + 1>(tile + b_vector, 64);
    }
    multiply_tiles<kTileC, kTileA, kTileB>();
    if constexpr (kCount > 1) multiply_tiles<kTileC + 1, kTileA, kTileB + 1>();
    multiply_tiles<kTileC + 2, kTileA + 1, kTileB>();
    if constexpr (kCount > 1) multiply_tiles<kTileC + 3, kTileA + 1, kTileB + 1>();
    multiply_tall_step<kCount, i + 1>(a, lower, tiles, b_vector);
  }
}

template <int kCount, class Sums>
RNNFAST_INLINE void multiply_flat(const BandOperands& band, const Sums& sums) {
  each<kCount>([](auto v) { zero_tile<kTileC + v.value>(); });
  const char *a = band.a, *b = band.b;
  const int64_t a_step = band.a_step, b_vector = band.b_vector;
  for (int64_t k = 0; k < band.K; k += kTileNumbers, a += a_step, b += kTileStep) {
    each<kFloatParts>([&](auto part) { load_tile<kFlatA + part.value>(a + 64 * part.value, kSplitRow); });
    each<kCount>([&](auto v) { multiply_flat_step<kTileC + v.value>(b + v.value * b_vector); });
    stay_awake();
  }
  each<kCount>([&](auto v) { store_tile<kTileC + v.value>(sums.row(v.value, 0), sums.row_bytes); });
}

template <int kCount, class Sums>
RNNFAST_INLINE void multiply_tall(const BandOperands& band, const Sums& sums) {
  const auto each_sum = [](const auto& f) {
    each<2>([&](auto half) {
      each<kCount>([&](auto v) { f(half, v, Index<kTileC + 2 * half.value + v.value>()); });
    });
  };
  each_sum([](auto, auto, auto c) { zero_tile<c.value>(); });
  const char *a = band.a, *b = band.b;
  const int64_t a_step = band.a_step, b_vector = band.b_vector, upper = band.upper;
  for (int64_t k = 0; k < band.K; k += kTileNumbers, a += a_step, b += kTileStep) {
    multiply_tall_step<kCount>(a, upper * kSplitRow, b, b_vector);
    stay_awake();
  }
  each_sum([&](auto half, auto v, auto c) {
    store_tile<c.value>(sums.row(v.value, half.value * upper), sums.row_bytes);
  });
}

// The sums of `count` vectors, at most 4, of which a tall band makes two at a time
template <class Sums>
__attribute__((noinline)) void multiply_band_of_parts(BandOperands band, int64_t rows, int count, Sums sums) {
  band.upper = (rows + 1) / 2;
  tiles_see_memory();
  if (rows <= kUnitRows)
    count == 4   ? multiply_flat<4>(band, sums)
    : count == 3 ? multiply_flat<3>(band, sums)
    : count == 2 ? multiply_flat<2>(band, sums)
                 : multiply_flat<1>(band, sums);
  else
    for (int v = 0; v < count; v += 2) {
      BandOperands two = band;
      two.b += v * band.b_vector;
      count - v > 1 ? multiply_tall<2>(two, sums.after(v)) : multiply_tall<1>(two, sums.after(v));
    }
  tiles_see_memory();
}

// The sums of one row by multiply-adds, for what is not finite: n numbers of A, a packed vector
__attribute__((noinline)) inline void multiply_careful_row(const float* a, int64_t n, const float* vector,
                                                           float* sums) {
  f32v sum{};
  for (int64_t k = 0; k < n; ++k) {
    const float* const word =
        vector + k / kTileNumbers * kFloatParts * kTileFloats + k % (kTileNumbers / 2) * kPartsRow;
    const bool second = k % kTileNumbers >= kTileNumbers / 2;
    f32v w{};
    for (int part = 0; part < kFloatParts; ++part) {
      const pairs both = load(reinterpret_cast<const int32_t*>(word + part * kTileFloats));
      w = w + __builtin_bit_cast(f32v, second ? upper_halves(both) : both << 16);
    }
    sum = fma(a[k] - f32v{}, w, sum);
  }
  store(sums, sum);
}

// The sums of a band by some vectors, before they are added to C
template <int64_t vectors>
struct BandSums {
  alignas(64) VectorSums sums[vectors];
  RNNFAST_INLINE f32v of(int64_t v, int64_t row) const { return load(sums[v][row]); }
};

// The sums of one row by a packed vector where its scales, or the row's, are not all 1, or not all is finite
__attribute__((noinline)) inline void scale_sums(float* sums, const float* a, float scale,
                                                 const float* vector, int64_t size, int64_t numbers) {
  const float* const tail = vector + size - kVectorTail;
  const bool by_hand = scale == 0 || tail[kPartsRow] == kCareful;
  if (by_hand) multiply_careful_row(a, numbers, vector, sums);
  store(sums, load(sums) * (by_hand ? load(tail) : load(tail) * scale));
}

// bytes from one of these rows to the next, or 0 where they are not evenly apart
RNNFAST_INLINE int64_t stride_of(float* const* row, Range rows) {
  const int64_t step = rows.size() > 1 ? row[rows.begin + 1] - row[rows.begin] : kUnitRows;
  for (int64_t i = rows.begin + 1; i < rows.end; ++i)
    if (row[i] - row[i - 1] != step) return 0;
  return step * int64_t(sizeof(float));
}

// Whether `then` takes the sums as they are, and C as it began: then(rows, vectors, sums)
template <class Then>
constexpr bool kTakesSums = std::is_invocable_v<Then, Range, Range, const BandSums<kMostPanel>&>;

template <class E, class Rows, class Then>
RNNFAST_INLINE void product_by_parts(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                     bool last_first, Rows rows, Then then) {
  constexpr bool kTakes = kTakesSums<Then>, kStores = std::is_same_v<Then, StoreSums>;
  constexpr int64_t kRows = Packed<E>::kMostSplitRows;
  const float *a[kRows], *in[kRows];
  float* out[kRows];
  BandSums<kTakes ? kMostPanel : kMostVectors> of_band;
  const int64_t chunk = w.split_rows, size = parts_size(w.K);
  float* const split = w.split + part.index * w.split_size();
  float* const scale = split + w.split_size() - kRows;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t count = least(chunk, n - begin), step = count * kFloatParts * kPartsRow;
    bool plain_rows = true;
    for (int64_t i = 0; i < count; ++i) {
      rows(begin + i, a[i], in[i], out[i]);
      if (!w.is_split) scale[i] = split_row(a[i], w.numbers, split + i * kFloatParts * kPartsRow, step);
      plain_rows &= scale[i] == 1;
    }
    part.watch.lap(Work::kPack);
    const int64_t bands = divide_up(count, kTallRows);
    w.for_panels(w.vectors_of(part.cut), {0, 1}, last_first, [&](Range p) {
      const int vectors = static_cast<int>(w.gates * p.size());
      int64_t offset[kMostPanel];
      columns.of<Vec<E>::kLanes>(p, w.gates, offset);
      const float* const panel = w.panel(p, part.cut);
      if (w.once) part.watch.lap(Work::kPack);
      bool plain = plain_rows;
      for (int v = 1; v <= vectors; ++v) plain &= panel[v * size - kVectorTail + kPartsRow] == kPlain;
      for (int64_t band = 0; band < bands; ++band) {
        const Range r = share(count, bands, band);
        const int64_t stride = kStores && plain ? stride_of(out, r) : 0;
        set_up_parts(r.size(), part.tiles);
        for (int first = 0; first < vectors; first += kMostVectors) {
          const int some = least(kMostVectors, vectors - first);
          const float* const packed = panel + first * size;
          VectorSums* const sums = of_band.sums + (kTakes ? first : 0);
          const BandOperands operands{
              reinterpret_cast<const char*>(split + r.begin * kFloatParts * kPartsRow),
              reinterpret_cast<const char*>(packed),
              step * int64_t(sizeof(float)),
              size * int64_t(sizeof(float)),
              w.K,
              0};
          if (stride) {
            multiply_band_of_parts(operands, r.size(), some, SumsInC{out[r.begin], offset + first, stride});
            continue;
          }
          multiply_band_of_parts(operands, r.size(), some, SumsTogether{sums});
          for (int v = 0; v < (plain ? 0 : some); ++v)
            for (int64_t i = r.begin; i < r.end; ++i)
              scale_sums(sums[v][i - r.begin], a[i], scale[i], packed + v * size, size, w.numbers);
          for (int v = 0; v < (kTakes ? 0 : some); ++v) {
            const int64_t at = offset[first + v];
            for (int64_t i = r.begin; i < r.end; ++i) {
              const f32v sum = load(sums[v][i - r.begin]);
              store(out[i] + at, kStores ? sum : sum + load(in[i] + at));
            }
          }
        }
        part.watch.lap(Work::kProduct);
        if constexpr (kTakes)
          then(Range{begin + r.begin, begin + r.end}, p, of_band);
        else
          then(Range{begin + r.begin, begin + r.end}, p);
        part.watch.lap(Work::kCell);
      }
    });
  }
}
