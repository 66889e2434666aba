// C[M, N] += A[M, K] . B[K, N] with B packed: the one matrix product of every recurrence, forward and
// backward, by tiles (tile-inl.h). Compiled once per instruction set, inside its namespace. No guard on
// purpose.

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
// weights[k, unit] (backward). Its rows are ld numbers apart; those that are not straight hold whole words,
// or are stored in their own way. Or row k of a straight one is rows[k], from `column` on.
template <class E>
struct Source {
  const void* weights;
  int64_t ld;
  bool straight;
  const void* const* rows = nullptr;
  int64_t column = 0;
  Stored stored = Stored::kAsRead;

  static Source of(WeightMatrix w, int64_t numbers) {
    const bool as_read = w.stored == Stored::kAsRead;
    return {w.numbers, as_read ? whole_lines<E>(numbers) : numbers, false, nullptr, 0, w.stored};
  }
  const E* row(int64_t k) const {
    return rows ? static_cast<const E*>(rows[k]) + column : static_cast<const E*>(weights) + k * ld;
  }
};

// f(F()), F being what words are loaded from (load_column_words): words themselves, or what is stored for
// them
template <class E, class F>
RNNFAST_INLINE void with_stored(Stored stored, const F& f) {
  if constexpr (std::is_same_v<E, float> && !kInParts<E>) switch (stored) {
      case Stored::kAsRead:
        break;
      case Stored::kBfloat16:
        return f(Widened<Bfloat16>());
      case Stored::kHalf:
        return f(Widened<Half>());
      case Stored::kFloatForBfloat16:
        return f(Rounded<Bfloat16>());
      case Stored::kFloatForHalf:
        return f(Rounded<Half>());
    }
  if constexpr (std::is_same_v<E, Bfloat16>)
    if (stored == Stored::kFloatForBfloat16) return f(RoundedPair());
  f(typename WordOf<E>::type());
}

// A weight matrix in the order in which tiles read it. The unit vectors (16 hidden units, say) are cut into
// panels of at most `width`; a panel holds, for each k, the lanes of all its units, gate by gate; or, in
// groups, those of some of its vectors, and after all k those of the next ones.
// A matrix that the call reads only once is never packed whole: each panel is packed when its turn comes,
// into a place that stays in the nearer caches; for a few rows it is not packed at all (`turned`).
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
  int64_t group = 0;  // vectors: 2, of panels with an even number of them; 3, or some more; or 0: all
  bool turned = false;
  // of A, that are split at a time: for each part of the plan [split_rows, K] in parts, and what split_row
  // gives
  W* split = nullptr;
  int64_t split_rows = 0;
  bool is_split = false;  // by the product before, which has the same A
  bool frozen = false;    // packed before this call: cuts are where panels begin, at multiples of `width`

  static constexpr int64_t kUnit = kInParts<E> ? 2 * kUnitWords : kUnitWords;  // K is a multiple of it
  static constexpr int64_t kMostSplitRows = 128;
  static constexpr int64_t kPaired = 256;  // one row of fewer numbers reads no faster by several streams

  int64_t vectors() const { return divide_up(units, L); }
  // of a panel of so many vectors; each has a share of them
  int64_t groups(int64_t vectors) const {
    if (group == 2 && vectors % 2) return 1;
    return group ? most<int64_t>(1, vectors / group) : 1;
  }
  // what a packed vector takes
  int64_t vector_size() const {
    if constexpr (kInParts<E>)
      return parts_size(K);
    else
      return K * L;
  }
  int64_t split_size() const { return split_rows * K / 2 * kFloatParts + kMostSplitRows; }
  Range vectors_of(Cut cut) const {
    if (!frozen) return share(vectors(), cut.pieces, cut.piece);
    const Range panels = share(divide_up(vectors(), width), cut.pieces, cut.piece);
    return {least(panels.begin * width, vectors()), least(panels.end * width, vectors())};
  }

  // rows: of a product, about. uses: how often each panel is read, by 512 rows at most.
  static Packed make(Arena& arena, Source<E> source, int64_t numbers, int64_t units, int gates, int64_t rows,
                     int64_t uses, Plan plan) {
    Packed w;
    w.source = source;
    w.set_numbers(numbers);
    w.units = units;
    w.gates = gates;
    w.once = uses == 1 && plan.split != Split::kRows;
    // a matrix unit reads 16 rows of W, so there must be as many
    w.turned = w.once && !source.straight && rows <= kTurnedRows<E> && (!kMatrixUnit || units % L == 0);
    // With 16 registers many rows take tiles of four rows and three vectors. None have fewer instructions
    // for their multiply-adds, and 256 numbers of three vectors stay in the nearest cache. Few rows have
    // panels of many vectors, so that enough chains are in flight to hide the latency of one.
    constexpr int64_t kManyRows = 7;
    if (!kManyRegisters) w.group = rows >= kManyRows ? 3 : rows > 1 || w.K >= kPaired ? 2 : 0;
    w.width = (w.group == 3 && gates != 3 ? 12 : rows < 4 && !w.turned ? kMaxVectors : 4) / gates;
    if (kInParts<E>) w.width = gates == 1 ? 8 : 2;  // cells of one vector would look for their rows as often
    w.width = static_cast<int>(least<int64_t>(w.width, most<int64_t>(1, w.vectors())));
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
    if (!kManyRegisters && w.K >= kPaired) w.group = 2;
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

  // of the same A, in products of at most `rows` rows one after the other
  void split_like(const Packed& other, int64_t rows) {
    split = other.split;
    is_split = rows <= split_rows;
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

  // What a tile over panel p asks for: its part of the panel after p among `all`, unless the second cache
  // holds them all. The panel is gone through in turns, each with some tiles: turn, of_turn say in which.
  void ask_for(Tile<W>& tile, Range p, Range all, bool last_first, Cut turn, Cut of_turn) const {
    const int64_t vector = K * gates * L * sizeof(W) / kLine;  // in lines
    Range lines{};
    if (!once && all.size() * vector * kLine > second_cache() / 2) {
      const Range next = last_first ? Range{most(all.begin, p.begin - p.size()), p.begin}
                                    : Range{p.end, least(all.end, p.end + p.size())};
      lines = share(share({next.begin * vector, next.end * vector}, turn.pieces, turn.piece), of_turn.pieces,
                    of_turn.piece);
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
      if (source.straight)
        return pack_parts_straight(
            to, [&](int64_t k) { return source.row(k) + p.begin * L; },
            least(units - p.begin * L, p.size() * L), numbers, K);
      for (int64_t g = 0; g < gates; ++g)
        for (int64_t v = p.begin; v < p.end; ++v, to += vector_size())
          pack_parts_turned(to, at<E>(g, v, 0), source.ld, units - v * L, numbers, K);
      return;
    }
    if (source.straight) {
      for (int64_t i = 0; i < groups(p.size()); ++i) {
        const Range some = share(p, groups(p.size()), i);
        for (int64_t k = 0; k < K; ++k) {
          const int64_t first = least(k * kNumbers, numbers - 1), second = least(first + 1, numbers - 1);
          const E *low = source.row(first), *high = source.row(second);
          for (int64_t v = some.begin; v < some.end; ++v, to += L)
            store(to,
                  load_column_words_part(low + v * L, high + v * L, numbers - k * kNumbers, units - v * L));
        }
      }
      return;
    }
    with_stored<E>(source.stored, [&](auto from) { turn_panel<decltype(from)>(p, to); });
  }

  // that stand in the matrix itself: rows of pairs are not filled up to K
  template <class From>
  RNNFAST_INLINE int64_t words_of_row() const {
    return std::is_same_v<From, RoundedPair> ? source.ld / kNumbers : K;
  }

  template <class From>
  void turn_panel(Range p, W* to) const {
    const int64_t vectors = gates * p.size();
    for (int64_t i = 0; i < groups(vectors); ++i) {
      const Range some = share(vectors, groups(vectors), i);
      const int64_t stride = some.size() * L;
      for (int64_t n = some.begin; n < some.end; ++n) {
        W* const first = to + some.begin * K * L + (n - some.begin) * L;
        const int64_t g = n / p.size(), v = p.begin + n % p.size();
        for (int64_t k = 0; k < K; k += L)
          turn_block(first + k * stride, stride, at<From>(g, v, k), source.ld / kNumbers, units - v * L,
                     words_of_row<From>() - k, K - k);
      }
    }
  }

  // word k of the first unit of a vector, in the matrix itself
  template <class From>
  const From* at(int64_t g, int64_t v, int64_t k) const {
    return static_cast<const From*>(source.weights) + (g * units + v * L) * (source.ld / kNumbers) + k;
  }
};

// multiply_tile for a few rows without a packed B: each block of `w` is turned in registers on its way to the
// sums. The tile's words begin at word `first` of w.
template <class E, class From, int kRows>
__attribute__((noinline)) void multiply_turned(const Tile<typename WordOf<E>::type>& tile, const Packed<E>& w,
                                               Range p) {
  typedef typename WordOf<E>::type W;
  typedef typename Vec<W>::type Operand;
  typedef typename Vec<typename SumOf<W>::type>::type V;
  constexpr int L = Vec<W>::kLanes;
  const int64_t ld = w.source.ld / WordOf<E>::kNumbers;
  const W* a[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) a[m] = tile.a[m] + tile.first;
  int n = 0;
  for (int64_t g = 0; g < w.gates; ++g)
    for (int64_t v = p.begin; v < p.end; ++v, ++n) {
      const From* from = w.template at<From>(g, v, tile.first);
      const int64_t units = w.units - v * L, whole = units >= L ? tile.K / L * L : 0;
      V acc[kRows] = {};
      const auto add = [&](int64_t k, Operand row) {
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m] = fma(a[m][k] - Operand{}, row, acc[m]);
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

template <class E, class From>
inline constexpr void (*kTurnedTiles[])(const Tile<typename WordOf<E>::type>&, const Packed<E>&, Range) = {
    nullptr, multiply_turned<E, From, 1>, multiply_turned<E, From, 2>, multiply_turned<E, From, 3>};

// Where rows of a product stand, worked out once for all panels
template <class W>
struct RowPointers {
  typedef typename SumOf<W>::type A;
  static constexpr int64_t kMost = 512;
  const W* a[kMost];
  const A* in[kMost];
  A* out[kMost];

  template <class Rows>
  RNNFAST_INLINE void find(int64_t begin, int64_t count, Rows& rows) {
    for (int64_t m = 0; m < count; ++m) rows(begin + m, a[m], in[m], out[m]);
  }
};

// C += A . (panel p of w) over n rows; done(rows) is called when all sums of a tile are whole
template <class E, class Pointers, class Done>
RNNFAST_INLINE void multiply_panel(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                   bool last_first, Range p, const Pointers& rows, Done done) {
  typedef typename WordOf<E>::type W;
  constexpr int L = Vec<W>::kLanes;
  Tile<W> tile;
  int64_t offsets[kMostPanel];
  columns.of<L>(p, w.gates, offsets);
  const int64_t width = w.gates * p.size(), groups = w.groups(width);
  const W* const panel = w.turned ? nullptr : w.panel(p, part.cut);
  if (w.once && panel) part.watch.lap(Work::kPack);
  // A tile takes a group, or some pairs.
  const bool pairs = panel && w.group == 2 && groups > 1;
  const int64_t wide = pairs ? tile_vectors(width, n) : 0;
  const int64_t strips = !panel ? 1 : pairs ? divide_up(width, wide) : groups;
  const int64_t blocks = most<int64_t>(1, divide_up(w.K, kBlock)), turns = strips * blocks;
  tile.further = 2 * w.K * L;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t block = turn % blocks, strip = turn / blocks;
    const Range some =
        pairs ? Range{strip * wide, least(width, (strip + 1) * wide)} : share(width, strips, strip);
    const int64_t vectors = some.size(), side = pairs ? 2 : vectors;
    const int64_t tiles = divide_up(n, tile_rows(static_cast<int>(vectors)));
    const Range k = share(w.K, blocks, block);
    tile.offset = offsets + some.begin;
    if (panel) tile.b = panel + (some.begin * w.K + k.begin * side) * L;
    tile.first = k.begin, tile.K = k.size();
    for (int64_t i = 0; i < tiles; ++i) {
      const Range r = share(n, tiles, i);
      tile.a = rows.a + r.begin, tile.out = rows.out + r.begin;
      tile.in = block > 0 ? tile.out : rows.in + r.begin;
      w.ask_for(tile, p, w.vectors_of(part.cut), last_first, {turns, turn}, {tiles, i});
      if (!panel)
        with_stored<E>(w.source.stored,
                       [&](auto from) { kTurnedTiles<E, decltype(from)>[r.size()](tile, w, p); });
      else if (!kManyRegisters && pairs)
        kTiles<W, !kManyRegisters>.entry[vectors][r.size()](tile);
      else
        kTiles<W, false>.entry[vectors][r.size()](tile);
      part.watch.lap(Work::kProduct);
      if (turn + 1 == turns) done(r);
    }
  }
}

// So many vectors of units, each of a row, are finished at once: one by one their cells would wait for their
// own results, and look for their places as often. The gates of an LSTM are 8 KB then, in the nearest cache.
constexpr int64_t kFinished = 2048 / kVectorBytes;

template <class E, class Rows, class Then>
RNNFAST_INLINE void product_by_tiles(const Packed<E>& w, const Part& part, int64_t n, Columns columns,
                                     bool last_first, Rows rows, Then then) {
  RowPointers<typename WordOf<E>::type> pointers;
  constexpr int64_t kMost = pointers.kMost;
  for (int64_t begin = 0; begin < n; begin += kMost) {
    const int64_t count = least(n - begin, kMost);
    pointers.find(begin, count, rows);
    const auto finish = [&](int64_t first, int64_t end, Range vectors) __attribute__((noinline)) {
      then(Range{begin + first, begin + end}, vectors);
      part.watch.lap(Work::kCell);
    };
    // many rows of a panel are finished so many at a time; of fewer all, when there are vectors enough
    const int64_t at_once = divide_up(kFinished, w.width);
    Range waiting{};  // vectors
    w.for_panels(w.vectors_of(part.cut), {0, 1}, last_first, [&](Range p) __attribute__((always_inline)) {
      int64_t finished = 0;  // rows
      multiply_panel(w, part, count, columns, last_first, p, pointers, [&](Range tile) {
        if (count < at_once || (tile.end < finished + at_once && tile.end < count)) return;
        finish(finished, tile.end, p);
        finished = tile.end;
      });
      if (count >= at_once) return;
      waiting = waiting.size() ? Range{least(waiting.begin, p.begin), most(waiting.end, p.end)} : p;
      if (count * waiting.size() < kFinished) return;
      finish(0, count, waiting);
      waiting = {};
    });
    if (waiting.size()) finish(0, count, waiting);
  }
}

// The `then` of C = A . w, which products in parts know: what C begins with is not read
struct StoreSums {
  void operator()(Range, Range) const {}
};

// C += A . w over n rows and a slice of the units. rows(m, a, in, out) gives the pointers of row m, m = 0, 1,
// 2 and so on; then(rows, vectors) is called when their sums are whole, or then(rows, vectors, sums), where
// it can be, when those are made, but not added to C (kTakesSums). Every other step reads the panels last
// first: what it begins with is still in the nearer cache.
template <class E, class Rows, class Then>
RNNFAST_INLINE void product(const Packed<E>& w, const Part& part, int64_t n, Columns columns, bool last_first,
                            Rows rows, Then then) {
  if (n <= 0) return;
  static_assert(kInParts<E> || !std::is_same_v<Then, StoreSums>);
  if constexpr (kInParts<E>)
    product_by_parts(w, part, n, columns, last_first, rows, then);  // parts-product-inl.h
  else if constexpr (kMatrixUnit)
    product_by_bands(w, part, n, columns, last_first, rows, then);  // matrix-inl.h
  else
    product_by_tiles(w, part, n, columns, last_first, rows, then);
}
