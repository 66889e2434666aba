// How a call is cut into parts: directions, rows, vectors of hidden units, or everything; and how far apart
// stands what parts write. Compiled once per instruction set, inside its namespace. No guard on purpose.

// Which slice of every weight matrix: its unit vectors are cut in so many pieces, and this one is meant.
struct Cut {
  int64_t pieces, piece;
};

struct Part {
  int direction;     // among those that the call makes
  int index, parts;  // of this direction
  Range rows;        // of the batch
  Cut cut;           // of the units
  Stopwatch& watch;
  int& tiles;  // see Team::Member

  // the rows of ours that time step t still has
  Range active(const Walk& walk, int64_t t) const {
    return {rows.begin, most(rows.begin, least(rows.end, walk.sizes[t]))};
  }
};

struct Share {
  Plan plan;
  int64_t batch;
  const Walk* walk;  // of the batch, or null: all rows are as long
  Team::Member& member;

  // f(part) for every part, by whoever does it; then all are done
  template <class F>
  RNNFAST_INLINE void phase(const F& f) const {
    member.phase([&](int i) {
      const bool whole = plan.split == Split::kDirections;
      const Range rows = plan.split == Split::kRows ? part_of_rows(i) : Range{0, batch};
      const Cut cut = plan.split == Split::kUnits ? Cut{plan.parts, i} : Cut{1, 0};
      f(Part{whole ? i : 0, whole ? 0 : i, whole ? 1 : plan.parts, rows, cut, member.watch, member.tiles});
    });
  }

  // f(part, k) for k = 0 .. n - 1 in turn. Where units are shared one part reads what others wrote, so all of
  // k is done before k + 1 begins; rows and directions never meet.
  template <class F>
  RNNFAST_INLINE void phases(int64_t n, const F& f) const {
    if (plan.split == Split::kUnits)
      for (int64_t k = 0; k < n; ++k) phase([&](const Part& part) { f(part, k); });
    else
      phase([&](const Part& part) {
        for (int64_t k = 0; k < n; ++k) f(part, k);
      });
  }

  // Who shares units packs his own, so that they lie in his cache; else all take turns.
  template <class Matrix>
  void pack(const Matrix& w, const Part& part) const {
    if (w.once || w.frozen) return;
    if (plan.split == Split::kUnits)
      w.pack(w.vectors_of(part.cut), {0, 1});
    else
      w.pack({0, w.vectors()}, {part.index, part.parts});
    part.watch.lap(Work::kPack);
  }

  // Rows that end at different times are cut where all parts have as much to do over all steps.
  Range part_of_rows(int i) const {
    if (!walk || walk->total == walk->steps * batch) return share(batch, plan.parts, i);
    const Range n = share(walk->total, plan.parts, i);
    // sequences without a step are the last part's
    return {walk->sequences_with(n.begin), i + 1 < plan.parts ? walk->sequences_with(n.end) : batch};
  }

  // what a part does of work that is shared by rows in any case
  Range rows_of(const Part& part) const { return share(batch, part.parts, part.index); }
};

// Row b of [rows, np] from the walk's sequence of [rows, n], the rest zero; a null source counts as zero
template <class E, class A>
void copy_padded(E* to, int64_t np, const A* from, int64_t n, const Walk& walk, Range rows) {
  constexpr int L = Vec<A>::kLanes;
  for (int64_t b = rows.begin; b < rows.end; ++b)
    for (int64_t i = 0; i < np; i += L)
      store(to + b * np + i,
            from ? load_part(from + walk.sequence(b) * n + i, n - i) : typename Vec<A>::type{});
}

// Prefetchers fetch lines beside those that are read or written, within a page: where another member writes
// those, each waits for the other. So what is written at the same time stands so many bytes apart.
constexpr int64_t kApart = 4096;

template <class A>
A* take_apart(Arena& arena, int64_t n) {
  A* const data = arena.take<A>(n);
  arena.take<char>(kApart);
  return data;
}

// A value of each unit and row of the batch, [B, padded(units)], that nobody but who has the unit reads or
// writes. The units of a lone row stand apart.
template <class A>
struct Owned {
  A* data = nullptr;
  int64_t ld = 0, gap = 0;  // between the pieces

  static constexpr int L = Vec<A>::kLanes;

  static Owned take(Arena& arena, Plan plan, int64_t batch, int64_t units) {
    const int64_t gap = batch == 1 && units && plan.split == Split::kUnits ? kApart / sizeof(A) : 0;
    return {arena.take<A>(batch * padded(units) + plan.parts * gap), padded(units), gap};
  }
  RNNFAST_INLINE A* row(const Part& part, int64_t b) const { return data + part.cut.piece * gap + b * ld; }

  // some vectors of a part's rows from [B, n], the rest zero; a null source counts as zero
  void read(const Part& part, const A* from, int64_t n, const Walk& walk, Range vectors) const {
    for (int64_t b = part.rows.begin; b < part.rows.end; ++b)
      for (int64_t v = vectors.begin; v < vectors.end; ++v)
        store(row(part, b) + v * L,
              from ? load_part(from + walk.sequence(b) * n + v * L, n - v * L) : typename Vec<A>::type{});
  }
  void write(const Part& part, A* to, int64_t n, const Walk& walk, Range vectors) const {
    for (int64_t b = part.rows.begin; b < part.rows.end; ++b)
      for (int64_t v = vectors.begin; v < vectors.end; ++v)
        store_part(to + walk.sequence(b) * n + v * L, load(row(part, b) + v * L), n - v * L);
  }
};

// Members that share a row of y would each write a part of it, beside those of another. So a row is copied by
// one of them when it is whole, and neighbouring rows by the same one.
template <class E>
RNNFAST_INLINE bool copies(const Part& part, const E* y) {
  return int64_t(reinterpret_cast<uintptr_t>(y) / kApart % part.parts) == part.index;
}
template <class E>
RNNFAST_INLINE void copy_row(E* to, const E* from, int64_t n) {
  constexpr int64_t L = Vec<typename ComputeType<E>::type>::kLanes;
  for (int64_t i = 0; i < n; i += L) store_part(to + i, load(from + i), n - i);
}

// A row that others wrote lies in their caches: its lines are asked for all at once, not one by one as a
// product meets them. And so are those that this part will write, when others have read them.
template <class E>
RNNFAST_INLINE void fetch(const E* row, Range numbers) {
  for (int64_t i = numbers.begin; i < numbers.end; i += 64 / sizeof(E)) __builtin_prefetch(row + i);
}
template <class E>
RNNFAST_INLINE void fetch_to_write(const E* row, Range numbers) {
  for (int64_t i = numbers.begin; i < numbers.end; i += 64 / sizeof(E)) __builtin_prefetch(row + i, 1);
}

// Steps whose input products are made at once: enough rows for full tiles, few enough to stay in the second
// cache, unless they are small beside the W_ih [row_size, inputs] that every chunk reads anew.
template <class A>
int64_t chunk_steps(const Walk& walk, int64_t row_size, int64_t inputs, int64_t members) {
  constexpr int64_t kRows = 24, kShare = 4;
  const int64_t bytes = second_cache() / 5;
  const int64_t rows = most(most(kRows, members * bytes / (row_size * int64_t(sizeof(A)))), inputs / kShare);
  return least(walk.steps, most<int64_t>(1, rows / most<int64_t>(1, walk.batch)));
}
