// The product of bfloat16 on a processor with a matrix unit (AMX): one instruction multiplies 16 rows by 16
// words by 16 units. Its operands are registers of 16 lines of 64 bytes, which are read with a stride: panels
// are packed as for any other set, and rows of A and C are taken in bands that stand evenly apart. For a lone
// row and a matrix that is read once W is not packed: there its rows are the unit's. Compiled inside the
// instruction set's namespace, after product-inl.h. No guard on purpose.
//
// An element's sum goes through k in order, whatever rows stand beside it. (The unit adds up the even and the
// odd ones of 32 numbers by themselves, so the last bit is not that of the vectors' tiles.)

constexpr int kUnitRows = 16;

// The registers: four of C, two of A, two of B
enum TileRegister { kTileC = 0, kTileA = 4, kTileB = 6 };

// What LDTILECFG reads
struct alignas(64) TileSetup {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#ifdef RNNFAST_CHECKED
// Sanitizers do not see what an instruction reads, so here are the same steps in plain code.
inline thread_local TileSetup tile_setup;
inline thread_local uint32_t tile_registers[8][16][16];

RNNFAST_INLINE void load_setup(const TileSetup& setup) { tile_setup = setup; }
RNNFAST_INLINE void release_setup() {}
RNNFAST_INLINE void tiles_see_memory() {}
RNNFAST_INLINE void stay_awake() {}

template <int r>
RNNFAST_INLINE void zero_tile() {
  __builtin_memset(tile_registers[r], 0, sizeof tile_registers[r]);
}
template <int r>
RNNFAST_INLINE void load_tile(const void* p, int64_t stride) {
  zero_tile<r>();
  for (int i = 0; i < tile_setup.rows[r]; ++i)
    __builtin_memcpy(tile_registers[r][i], static_cast<const char*>(p) + i * stride, tile_setup.row_bytes[r]);
}
template <int r>
RNNFAST_INLINE void store_tile(void* p, int64_t stride) {
  for (int i = 0; i < tile_setup.rows[r]; ++i)
    __builtin_memcpy(static_cast<char*>(p) + i * stride, tile_registers[r][i], tile_setup.row_bytes[r]);
}
template <int c, int a, int b>
RNNFAST_INLINE void multiply_tiles() {
  const auto number = [](uint32_t word, int odd) {
    return __builtin_bit_cast(float, odd ? word & 0xffff0000u : word << 16);
  };
  for (int m = 0; m < tile_setup.rows[c]; ++m)
    for (int n = 0; n < tile_setup.row_bytes[c] / 4; ++n) {
      float sum[2] = {};
      for (int k = 0; k < 16; ++k)
        for (int odd = 0; odd < 2; ++odd)
          sum[odd] = __builtin_fmaf(number(tile_registers[a][m][k], odd),
                                    number(tile_registers[b][k][n], odd), sum[odd]);
      float to = __builtin_bit_cast(float, tile_registers[c][m][n]);
      to += sum[0] + sum[1];
      tile_registers[c][m][n] = __builtin_bit_cast(uint32_t, to);
    }
}
#else
RNNFAST_INLINE void load_setup(const TileSetup& setup) { asm volatile("ldtilecfg %0" ::"m"(setup)); }
RNNFAST_INLINE void release_setup() { asm volatile("tilerelease"); }
// What is stored before, and what tiles store, is seen by what comes after; among themselves they stay in
// order.
RNNFAST_INLINE void tiles_see_memory() { asm volatile("" ::: "memory"); }
// Half a microsecond without a float added up, and the core's vector part sleeps: waking up for the sums
// takes it as long as 50 products (Granite Rapids; a lone addition in between keeps it awake).
RNNFAST_INLINE void stay_awake() {
  f32v zero{};
  asm volatile("vaddps %0, %0, %0" : "+v"(zero));
}

template <int r>
RNNFAST_INLINE void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(r));
}
template <int r>
RNNFAST_INLINE void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(r));
}
template <int r>
RNNFAST_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(r));
}
// c += a b
template <int c, int a, int b>
RNNFAST_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
#endif

template <int i>
struct Index {
  static constexpr int value = i;
};
// f(Index<0>()), f(Index<1>()) ... : registers have their numbers in the instruction
template <int n, int i = 0, class F>
RNNFAST_INLINE void each(const F& f) {
  if constexpr (i < n) {
    f(Index<i>());
    each<n, i + 1>(f);
  }
}

// At most 32 rows: where the first one of A, of C and of what C starts from is, and bytes from one to the
// next. To 16 they are flat, four vectors of C at a time; more are tall, two halves by two vectors, so that
// what is loaded of B counts twice.
struct Band {
  const char *a, *in;
  char* out;
  int64_t a_stride, in_stride, out_stride;
  Range rows;

  int upper() const {
    return static_cast<int>(rows.size() > kUnitRows ? (rows.size() + 1) / 2 : rows.size());
  }
  int lower() const { return static_cast<int>(rows.size()) - upper(); }
};

// Registers for tiles of C of so many rows, the last two perhaps of others, and so many columns. This takes
// as long as ten products: `now` remembers it.
RNNFAST_INLINE void set_up_tiles(int upper, int lower, int columns, int& now) {
  const int wanted = columns << 16 | upper << 8 | lower;
  if (now == wanted) return;
  now = wanted;
  TileSetup setup;
  const auto set = [&](int r, int rows, int row_words) {
    setup.rows[r] = static_cast<uint8_t>(rows);
    setup.row_bytes[r] = static_cast<uint16_t>(rows ? 4 * row_words : 0);
  };
  for (int i = 0; i < 4; ++i) set(kTileC + i, i < 2 || !lower ? upper : lower, columns);
  for (int i = 0; i < 2; ++i)
    set(kTileA + i, i ? lower : upper, kUnitWords), set(kTileB + i, kUnitRows, columns);
  load_setup(setup);
}
RNNFAST_INLINE void set_up_tiles(const Band& band, int& now) {
  set_up_tiles(band.upper(), band.lower(), kUnitRows, now);
}

RNNFAST_INLINE void release_tiles(int& now) {
  if (now) release_setup();
  now = 0;
}

// C += A B for vectors kFirst .. kFirst + kCount - 1 of a panel of kVectors, over K words
template <int kHalves, int kVectors, int kFirst, int kCount, class W>
RNNFAST_INLINE void multiply_vectors(const Band& band, const W* panel, int64_t K, const int64_t* offset) {
  constexpr int64_t kPanelRow = kVectors * kLine;
  const auto place = [&](auto* first, int64_t stride, int half, int v) {
    return first + half * band.upper() * stride + sizeof(float) * offset[kFirst + v];
  };
  const auto each_sum = [](const auto& f) {
    each<kHalves>([&](auto half) {
      each<kCount>([&](auto v) { f(half, v, Index<kTileC + 2 * half.value + v.value>()); });
    });
  };
  each_sum([&](auto half, auto v, auto c) {
    load_tile<c.value>(place(band.in, band.in_stride, half.value, v.value), band.in_stride);
  });
  const char *a = band.a, *b = reinterpret_cast<const char*>(panel) + kFirst * kLine;
  const int64_t a_stride = band.a_stride, lower = band.upper() * a_stride;
  for (int64_t k = 0; k < K; k += kUnitWords, a += kLine, b += kUnitWords * kPanelRow) {
    each<kCount>([&](auto v) {
      constexpr int kB = kTileB + v.value % 2;
      load_tile<kB>(b + v.value * kLine, kPanelRow);
      each<kHalves>([&](auto half) {
        constexpr int kA = kTileA + half.value;
        if constexpr (v.value == 0) load_tile<kA>(a + half.value * lower, a_stride);
        multiply_tiles<kTileC + 2 * half.value + v.value, kA, kB>();
      });
    });
    stay_awake();
  }
  each_sum([&](auto half, auto v, auto c) {
    store_tile<c.value>(place(band.out, band.out_stride, half.value, v.value), band.out_stride);
  });
}

template <class W, int kVectors>
__attribute__((noinline)) void multiply_band(const Band& band, const W* panel, int64_t K,
                                             const int64_t* offset) {
  tiles_see_memory();
  if (!band.lower()) {
    multiply_vectors<1, kVectors, 0, kVectors>(band, panel, K, offset);
  } else {
    multiply_vectors<2, kVectors, 0, (kVectors > 1 ? 2 : 1)>(band, panel, K, offset);
    if constexpr (kVectors > 2) multiply_vectors<2, kVectors, 2, kVectors - 2>(band, panel, K, offset);
  }
  tiles_see_memory();
}

template <class W>
inline constexpr void (*kBands[])(const Band&, const W*, int64_t, const int64_t*) = {
    nullptr, multiply_band<W, 1>, multiply_band<W, 2>, multiply_band<W, 3>, multiply_band<W, 4>};

// The rows of a product as bands, so many rows at a time
struct Bands {
  static constexpr int64_t kRows = 256;
  Band band[kRows];
  int count = 0;

  // Rows that stand evenly apart, `run` all of them: bands of equal height but for the last
  void add(Band run) {
    const int64_t height = divide_up(run.rows.size(), divide_up(run.rows.size(), 2 * kUnitRows));
    for (int64_t begin = run.rows.begin; begin < run.rows.end; begin += height) {
      Band& b = band[count++] = run;
      const int64_t on = begin - run.rows.begin;
      b.rows = {begin, least(begin + height, run.rows.end)};
      b.a += on * run.a_stride, b.in += on * run.in_stride, b.out += on * run.out_stride;
    }
  }

  // rows begin .. end - 1, at most kRows
  template <class W, class A, class Rows>
  void cut(int64_t begin, int64_t end, Rows& rows) {
    count = 0;
    Band run{};
    const char *last_a = nullptr, *last_in = nullptr, *last_out = nullptr;
    for (int64_t m = begin; m < end; ++m) {
      const W* a_row;
      const A* in_row;
      A* out_row;
      rows(m, a_row, in_row, out_row);
      const char *a = reinterpret_cast<const char*>(a_row), *in = reinterpret_cast<const char*>(in_row);
      char* const out = reinterpret_cast<char*>(out_row);
      const int64_t n = m - run.rows.begin;  // of the run so far
      if (m > begin && n == 1)
        run.a_stride = a - last_a, run.in_stride = in - last_in, run.out_stride = out - last_out;
      if (m == begin || a - last_a != run.a_stride || in - last_in != run.in_stride ||
          out - last_out != run.out_stride) {
        if (m > begin) add(run);
        run = {a, in, out, 0, 0, 0, {m, m}};
      }
      run.rows.end = m + 1;
      last_a = a, last_in = in, last_out = out;
    }
    add(run);
  }
};

// C += A B for a lone row of A and a panel of B that is not packed, kVectors of 16 units: turned, so that 16
// rows of W by 16 words are the first operand as they lie in memory, and the words of A, one below the other,
// a second one of one column. Each sum is the same, bit for bit.
template <class E, class From, int kVectors>
__attribute__((noinline)) void multiply_lone(const Packed<E>& w, Range p, const void* a, const float* in,
                                             float* out, const int64_t* offset) {
  constexpr bool kAsRead = std::is_same_v<From, typename WordOf<E>::type>;
  constexpr int kWord = sizeof(float);
  const int64_t row_words = w.source.ld / WordOf<E>::kNumbers;
  const From* rows[kVectors];
  each<kVectors>([&](auto v) {
    rows[v.value] = w.template at<From>(v.value / p.size(), p.begin + v.value % p.size(), 0);
  });
  // of float, rounded: written while the unit reads the one before
  alignas(64) typename WordOf<E>::type in_halves[kAsRead ? 1 : 2][kVectors][kUnitRows][kUnitWords];
  tiles_see_memory();
  each<kVectors>([&](auto v) { load_tile<kTileC + v.value>(in + offset[v.value], kWord); });
  for (int64_t k = 0; k < w.K; k += kUnitWords) {
    auto& place = in_halves[kAsRead ? 0 : k / kUnitWords % 2];
    if constexpr (!kAsRead) {
      for (int v = 0; v < kVectors; ++v)
        for (int i = 0; i < kUnitRows; ++i) {
          const From* const from = rows[v] + i * row_words + k;
          store(place[v][i], row_words - k >= kUnitWords
                                 ? load_column_words(from, from)
                                 : load_column_words_part(from, from, 1, row_words - k));
        }
      tiles_see_memory();
    }
    load_tile<kTileB>(static_cast<const char*>(a) + k * kWord, kWord);
    each<kVectors>([&](auto v) {
      constexpr int kA = kTileA + v.value % 2;
      if constexpr (kAsRead)
        load_tile<kA>(rows[v.value] + k, row_words * kWord);
      else
        load_tile<kA>(place[v.value], sizeof place[v.value][0]);
      multiply_tiles<kTileC + v.value, kA, kTileB>();
    });
    stay_awake();
  }
  each<kVectors>([&](auto v) { store_tile<kTileC + v.value>(out + offset[v.value], kWord); });
  tiles_see_memory();
}

template <class E, class From>
inline constexpr void (*kLone[])(const Packed<E>&, Range, const void*, const float*, float*,
                                 const int64_t*) = {nullptr, multiply_lone<E, From, 1>,
                                                    multiply_lone<E, From, 2>, multiply_lone<E, From, 3>,
                                                    multiply_lone<E, From, 4>};

template <class E, class Rows, class Then>
RNNFAST_INLINE void product_of_lone(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                    bool last_first, Rows rows, Then then) {
  set_up_tiles(kUnitRows, kUnitRows, /*columns=*/1, part.tiles);
  for (int64_t m = 0; m < n; ++m) {
    const typename WordOf<E>::type* a;
    const float* in;
    float* out;
    rows(m, a, in, out);
    w.for_panels(w.vectors_of(part.cut), {0, 1}, last_first, [&](Range p) {
      int64_t offset[kMaxVectors];
      columns.of<Vec<float>::kLanes>(p, w.gates, offset);
      with_stored<E>(w.source.stored, [&](auto from) {
        kLone<E, decltype(from)>[w.gates * p.size()](w, p, a, in, out, offset);
      });
      part.watch.lap(Work::kProduct);
      then(Range{m, m + 1}, p);
      part.watch.lap(Work::kCell);
    });
  }
}

template <class E, class Rows, class Then>
RNNFAST_INLINE void product_by_bands(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                     bool last_first, Rows rows, Then then) {
  typedef typename WordOf<E>::type W;
  typedef typename ComputeType<E>::type A;
  if constexpr (std::is_same_v<E, Bfloat16>)
    if (w.turned) return product_of_lone(w, part, n, columns, last_first, rows, then);
  Bands bands;
  for (int64_t begin = 0; begin < n; begin += Bands::kRows) {
    bands.cut<W, A>(begin, least(n, begin + Bands::kRows), rows);
    w.for_panels(w.vectors_of(part.cut), {0, 1}, last_first, [&](Range p) {
      int64_t offset[kMaxVectors];
      columns.of<Vec<W>::kLanes>(p, w.gates, offset);
      const W* const panel = w.panel(p, part.cut);
      if (w.once) part.watch.lap(Work::kPack);
      for (int i = 0; i < bands.count; ++i) {
        const Band& band = bands.band[i];
        set_up_tiles(band, part.tiles);
        kBands<W>[w.gates * p.size()](band, panel, w.K, offset);
        part.watch.lap(Work::kProduct);
        then(band.rows, p);
        part.watch.lap(Work::kCell);
      }
    });
  }
}
