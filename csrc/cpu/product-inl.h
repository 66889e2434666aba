// C[M, N] += A[M, K] . B[K, N] with B packed: the one matrix product of every recurrence, forward and
// backward. The sums of a tile (some rows, some vectors) stay in registers while it walks K; each is one
// chain of multiply-adds in the order of k, added to C at the end, so tiles of any size round alike. K counts
// words (W): a float, a double, or a pair of bfloat16 that one instruction multiplies and adds up in float.
// Compiled once per instruction set, inside its namespace. No guard on purpose.

// Longer sums are cut, whatever the tile: the panel's block stays in the second cache while many tiles read
// it, and rounding errors of one chain do not grow with the length of the whole.
constexpr int64_t kBlock = 1024;
constexpr int64_t kLine = 64;
#ifdef RNNFAST_MATRIX_UNIT
constexpr bool kMatrixUnit = true;
constexpr int64_t kUnitWords = 16;  // of k, that the unit multiplies at once
#else
constexpr bool kMatrixUnit = false;
constexpr int64_t kUnitWords = 1;
#endif
#ifdef RNNFAST_MANY_REGISTERS
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
constexpr bool kManyRegisters = kRegisters == 32;
constexpr int kMaxRows = 8;
constexpr int kTurnedRows = kMatrixUnit ? 0 : 3;
constexpr int kMaxVectors = kMatrixUnit ? 4 : 8;

// Rows of a tile, by its vectors: as many accumulators as the registers hold beside what a step of k reads
// again.
constexpr int tile_rows(int vectors) {
  constexpr int wide[] = {0, 8, 8, 8, 6, 5, 4, 3, 3};
  constexpr int narrow[] = {0, 8, 6, 4, 3, 2, 2, 1, 1};
  return kManyRegisters ? wide[vectors] : narrow[vectors];
}

// Whether a step of k holds a row of B and reads the numbers of A one by one, or the other way round. With
// one register too few a sum goes through memory at every step, which takes longer than all its
// multiply-adds.
constexpr bool holds_row(int rows, int vectors) {
  return vectors <= rows || rows * vectors + vectors + 1 <= kRegisters;
}

// Steps of k between two looks at its end: 16 registers have no room for what is read ahead.
constexpr int kUnroll = kManyRegisters ? 4 : 1;

template <class W>
struct Tile {
  typedef typename SumOf<W>::type A;
  const W* a[kMaxRows];         // [K] each
  const A* in[kMaxRows];        // what C starts from, and
  A* out[kMaxRows];             // where it goes: rows of C
  int64_t offset[kMaxVectors];  // of each vector within a row of C
  const W* b;                   // [K, vectors, lanes]
  int64_t K;
  const char* next;  // what is read after this panel, and
  int64_t lines;     // how much of it, to K at most, is asked for meanwhile
};

template <class W, int kRows, int kVectors>
__attribute__((noinline)) void multiply_tile(const Tile<W>& tile) {
  typedef typename Vec<W>::type Operand;
  typedef typename Vec<typename SumOf<W>::type>::type V;
  constexpr int L = Vec<W>::kLanes;
  V acc[kRows][kVectors];
  const W* a[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    a[m] = tile.a[m];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[m][v] = V{};
  }
  const int64_t K = tile.K, lines = tile.lines;
  const char* const next = tile.next;
  const W* b = tile.b;
#pragma GCC unroll kUnroll
  for (int64_t k = 0; k < K; ++k, b += kVectors * L) {
    if (k < lines) __builtin_prefetch(next + k * kLine, 0, 2);
    if constexpr (holds_row(kRows, kVectors)) {
      Operand row[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * L);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Operand x = a[m][k] - Operand{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[m][v] = fma(x, row[v], acc[m][v]);
      }
    } else {
      Operand x[kRows];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) x[m] = a[m][k] - Operand{};
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Operand row = load(b + v * L);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m][v] = fma(x[m], row, acc[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = tile.offset[v];
      store(tile.out[m] + at, load(tile.in[m] + at) + acc[m][v]);
    }
}

// multiply_tile by [vectors][rows], filled for all sizes that a tile may have
template <class W>
struct TileTable {
  void (*entry[kMaxVectors + 1][kMaxRows + 1])(const Tile<W>&) = {};

  constexpr TileTable() { fill_vectors<1>(); }

  template <int kVectors>
  constexpr void fill_vectors() {
    fill_rows<kVectors, 1>();
    if constexpr (kVectors < kMaxVectors) fill_vectors<kVectors + 1>();
  }
  template <int kVectors, int kRows>
  constexpr void fill_rows() {
    entry[kVectors][kRows] = multiply_tile<W, kRows, kVectors>;
    if constexpr (kRows < tile_rows(kVectors)) fill_rows<kVectors, kRows + 1>();
  }
};

template <class W>
inline constexpr TileTable<W> kTiles;

// Where vector v of L units stands in a row of a Layout with such blocks
template <int64_t L>
RNNFAST_INLINE int64_t vector_at(int64_t v, int64_t block) {
  if constexpr (L == kPad) return v * block;
  const uint64_t unit = v * L;
  return unit / kPad * block + unit % kPad;
}

// Where a row of C has the gates of a unit: gate g of the first one at slot[g], of the others as a Layout has
// them.
struct Columns {
  const int64_t* slot;
  int64_t block = kPad;

  // those of a panel's vectors, gate by gate
  template <int64_t L>
  RNNFAST_INLINE void of(Range panel, int64_t gates, int64_t* places) const {
    for (int64_t g = 0; g < gates; ++g)
      for (int64_t v = panel.begin; v < panel.end; ++v) *places++ = slot[g] + vector_at<L>(v, block);
  }
};
constexpr int64_t kFirst = 0;
constexpr Columns kDense{&kFirst};  // units side by side

// Where a weight matrix comes from: weights[g units + unit, k] of torch (forward), or, straight,
// weights[k, unit] (backward). Its rows are ld numbers apart; those that are not straight hold whole words.
// Or row k of a straight one is rows[k], from `column` on.
template <class E>
struct Source {
  const E* weights;
  int64_t ld;
  bool straight;
  const void* const* rows = nullptr;
  int64_t column = 0;

  const E* row(int64_t k) const { return rows ? static_cast<const E*>(rows[k]) + column : weights + k * ld; }
};

// A weight matrix in the order in which tiles read it. The unit vectors (16 hidden units, say) are cut into
// panels of at most `width`; a panel holds, for each k, the lanes of all its units, gate by gate.
// A matrix that the call reads only once is never packed whole: each panel is packed when its turn comes,
// into a place that stays in the nearest cache; for a few rows it is not packed at all (`turned`).
template <class E>
struct Packed {
  typedef typename WordOf<E>::type W;
  static constexpr int L = Vec<W>::kLanes, kNumbers = WordOf<E>::kNumbers;

  Source<E> source{};
  W* data = nullptr;    // all panels, or one for each piece
  int64_t numbers = 0;  // that one sum goes over, and
  int64_t K = 0;        // the words they make
  int64_t units = 0;
  int gates = 1;
  int width = 1;
  bool once = false;
  bool turned = false;
  // of A, that are split at a time: [split_rows, K] in parts, for each part of the plan
  W* split = nullptr;
  int64_t split_rows = 0;
  bool frozen = false;  // packed before this call: cuts are where panels begin, at multiples of `width`

  static constexpr int64_t kUnit = kInParts<E> ? 2 * kUnitWords : kUnitWords;  // K is a multiple of it
  static constexpr int64_t kMostSplitRows = 128, kMostPanel = 8;

  int64_t vectors() const { return divide_up(units, L); }
  // what a packed vector takes
  int64_t vector_size() const {
    if constexpr (kInParts<E>)
      return parts_size(K);
    else
      return K * L;
  }
  int64_t split_size() const { return split_rows * K / 2 * kFloatParts; }
  Range vectors_of(Cut cut) const {
    if (!frozen) return share(vectors(), cut.pieces, cut.piece);
    const Range panels = share(divide_up(vectors(), width), cut.pieces, cut.piece);
    return {least(panels.begin * width, vectors()), least(panels.end * width, vectors())};
  }

  // rows: of a product, about. uses: how often each panel is read. Few rows have wider panels, so that
  // enough chains are in flight to hide the latency of one.
  static Packed make(Arena& arena, Source<E> source, int64_t numbers, int64_t units, int gates, int64_t rows,
                     int64_t uses, Plan plan) {
    Packed w;
    w.source = source;
    w.set_numbers(numbers);
    w.units = units;
    w.gates = gates;
    w.once = uses == 1 && plan.split != Split::kRows;
    w.turned = w.once && !source.straight && rows <= kTurnedRows;
    w.width = (rows < 4 && !w.turned ? kMaxVectors : 4) / gates;
    if (kInParts<E> && gates == 3) w.width = 2;  // pairs of vectors
    const int64_t held = w.turned ? 0 : w.once ? plan.parts * w.width : w.vectors();
    w.data = arena.take<W>(held * gates * w.vector_size());
    w.take_split(arena, rows, plan.parts);
    return w;
  }

  // For any plan and number of rows: panels of one vector of units, or of two where there are few gates
  static Packed freeze(Arena& arena, Source<E> source, int64_t numbers, int64_t units, int gates) {
    Packed w;
    w.source = source;
    w.set_numbers(numbers);
    w.units = units;
    w.gates = gates;
    w.frozen = true;
    w.width = gates <= 2 ? 2 : 1;
    w.data = arena.take<W>(w.vectors() * gates * w.vector_size());
    return w;
  }

  // Room for rows of A in parts: as many as a quarter of the second cache holds, for they are read once for
  // every panel
  void take_split(Arena& arena, int64_t rows, int64_t parts) {
    if constexpr (kInParts<E>) {
      constexpr int64_t kBand = 32;
      const int64_t fit = second_cache() / 4 / (most<int64_t>(K, 1) * 2 * kFloatParts) / kBand * kBand;
      split_rows = least(least(most(fit, kBand), kMostSplitRows), most<int64_t>(rows, 1));
      split = arena.take<W>(parts * split_size());
    }
  }

  void set_numbers(int64_t n) {
    numbers = n;
    K = divide_up(n, kNumbers * kUnit) * kUnit;
  }

  // every panel of a range of unit vectors; with turn {i, n} only each n-th one, from the i-th on
  template <class F>
  RNNFAST_INLINE void for_panels(Range vectors, Range turn, bool last_first, F f) const {
    const int64_t panels = divide_up(vectors.size(), width);
    for (int64_t i = turn.begin; i < panels; i += turn.end) {
      const int64_t j = last_first ? panels - 1 - i : i, begin = vectors.begin + j * width;
      f(frozen ? Range{begin, least(begin + width, vectors.end)} : share(vectors, panels, j));
    }
  }

  // What the i-th of so many tiles over panel p asks for: its part of the panel after p among `all`, unless
  // the second cache holds them all.
  void ask_for(Tile<W>& tile, Range p, Range all, bool last_first, int64_t tiles, int64_t i) const {
    const int64_t vector = K * gates * L * sizeof(W) / kLine;  // in lines
    Range lines{};
    if (!once && all.size() * vector * kLine > second_cache() / 2) {
      const Range next = last_first ? Range{most(all.begin, p.begin - p.size()), p.begin}
                                    : Range{p.end, least(all.end, p.end + p.size())};
      lines = share({next.begin * vector, next.end * vector}, tiles, i);
    }
    tile.next = reinterpret_cast<const char*>(data) + lines.begin * kLine;
    tile.lines = lines.size();
  }

  // the panel of p, ready to be read by the owner of this piece
  const W* panel(Range p, Cut cut) const {
    if (!once) return data + p.begin * gates * vector_size();
    W* place = data + cut.piece * width * gates * vector_size();
    pack_panel(p, place);
    return place;
  }

  void pack(Range vectors, Range turn) const {
    for_panels(vectors, turn, false, [&](Range p) { pack_panel(p, data + p.begin * gates * vector_size()); });
  }

  void pack_panel(Range p, W* to) const {
    if constexpr (kInParts<E>) {
      for (int64_t g = 0; g < gates; ++g)
        for (int64_t v = p.begin; v < p.end; ++v, to += vector_size())
          if (source.straight)
            pack_parts_straight(
                to, [&](int64_t k) { return source.row(k) + v * L; }, units - v * L, numbers, K);
          else
            pack_parts_turned(to, at(g, v, 0), source.ld, units - v * L, numbers, K);
      return;
    }
    if (source.straight) {
      for (int64_t k = 0; k < K; ++k) {
        const int64_t first = least(k * kNumbers, numbers - 1), second = least(first + 1, numbers - 1);
        const E *low = source.row(first), *high = source.row(second);
        for (int64_t v = p.begin; v < p.end; ++v, to += L)
          store(to, load_column_words_part(low + v * L, high + v * L, numbers - k * kNumbers, units - v * L));
      }
      return;
    }
    const int64_t stride = gates * p.size() * L;
    for (int64_t g = 0; g < gates; ++g)
      for (int64_t v = p.begin; v < p.end; ++v, to += L)
        for (int64_t k = 0; k < K; k += L)
          turn_block(to + k * stride, stride, at(g, v, k), source.ld / kNumbers, units - v * L, K - k);
  }

  // word k of the first unit of a vector, in the matrix itself
  const W* at(int64_t g, int64_t v, int64_t k) const {
    return words(source.weights + (g * units + v * L) * source.ld) + k;
  }
};

// multiply_tile for a few rows without a packed B: each block of `w` is turned in registers on its way to the
// sums. The tile's words begin at word `first` of w.
template <class E, int kRows>
__attribute__((noinline)) void multiply_turned(const Tile<typename WordOf<E>::type>& tile, const Packed<E>& w,
                                               Range p, int64_t first) {
  typedef typename WordOf<E>::type W;
  typedef typename Vec<W>::type Operand;
  typedef typename Vec<typename SumOf<W>::type>::type V;
  constexpr int L = Vec<W>::kLanes;
  const int64_t ld = w.source.ld / WordOf<E>::kNumbers;
  int n = 0;
  for (int64_t g = 0; g < w.gates; ++g)
    for (int64_t v = p.begin; v < p.end; ++v, ++n) {
      const W* from = w.at(g, v, first);
      const int64_t units = w.units - v * L, whole = units >= L ? tile.K / L * L : 0;
      V acc[kRows] = {};
      const auto add = [&](int64_t k, Operand row) {
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m] = fma(tile.a[m][k] - Operand{}, row, acc[m]);
      };
      for (int64_t k = 0; k < whole; k += L) {
        Operand block[L];
        load_turned(block, from + k, ld);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) add(k + j, block[j]);
      }
      for (int64_t k = whole; k < tile.K; k += L) {
        Operand block[L];
        load_turned_part(block, from + k, ld, units, tile.K - k);
        for (int64_t j = 0; j < least<int64_t>(L, tile.K - k); ++j) add(k + j, block[j]);
      }
      const int64_t at = tile.offset[n];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) store(tile.out[m] + at, load(tile.in[m] + at) + acc[m]);
    }
}

template <class E>
inline constexpr void (*kTurnedTiles[])(const Tile<typename WordOf<E>::type>&, const Packed<E>&, Range,
                                        int64_t) = {nullptr, multiply_turned<E, 1>, multiply_turned<E, 2>,
                                                    multiply_turned<E, 3>};

template <class E, class Rows, class Then>
RNNFAST_INLINE void product_by_tiles(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                     bool last_first, Rows rows, Then then) {
  typedef typename WordOf<E>::type W;
  constexpr int L = Vec<W>::kLanes;
  w.for_panels(w.vectors_of(part.cut), {0, 1}, last_first, [&](Range p) __attribute__((always_inline)) {
    Tile<W> tile;
    columns.of<L>(p, w.gates, tile.offset);
    const int64_t width = w.gates * p.size();
    const int64_t tiles = divide_up(n, tile_rows(static_cast<int>(width)));
    const W* const panel = w.turned ? nullptr : w.panel(p, part.cut);
    if (w.once && panel) part.watch.lap(Work::kPack);
    const int64_t blocks = most<int64_t>(1, divide_up(w.K, kBlock));
    for (int64_t block = 0; block < blocks; ++block) {
      const Range k = share(w.K, blocks, block);
      if (panel) tile.b = panel + k.begin * width * L;
      tile.K = k.size();
      for (int64_t i = 0; i < tiles; ++i) {
        const Range r = share(n, tiles, i);
        for (int64_t m = 0; m < r.size(); ++m) {
          rows(r.begin + m, tile.a[m], tile.in[m], tile.out[m]);
          tile.a[m] += k.begin;
          if (block > 0) tile.in[m] = tile.out[m];
        }
        w.ask_for(tile, p, w.vectors_of(part.cut), last_first, blocks * tiles, block * tiles + i);
        if (panel)
          kTiles<W>.entry[width][r.size()](tile);
        else
          kTurnedTiles<E>[r.size()](tile, w, p, k.begin);
        part.watch.lap(Work::kProduct);
        if (block + 1 < blocks) continue;
        then(r, p);
        part.watch.lap(Work::kCell);
      }
    }
  });
}

// C += A . w over n rows and a slice of the units. rows(m, a, in, out) gives the pointers of row m, m = 0, 1,
// 2 and so on; then(rows, vectors)
// is called when a tile is done. Every other step reads the panels last first: what it begins with is still
// in the nearer cache.
template <class E, class Rows, class Then>
RNNFAST_INLINE void product(const Packed<E>& w, const Part& part, int64_t n, Columns columns, bool last_first,
                            Rows rows, Then then) {
  if (n <= 0) return;
  if constexpr (kInParts<E>)
    product_by_parts(w, part, n, columns, last_first, rows, then);  // parts-product-inl.h
  else if constexpr (kMatrixUnit)
    product_by_bands(w, part, n, columns, last_first, rows, then);  // matrix-inl.h
  else
    product_by_tiles(w, part, n, columns, last_first, rows, then);
}
