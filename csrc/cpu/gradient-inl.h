// The products behind a recurrence: dx = da W and dW = da^T x, each over all rows of all time steps at once,
// by the recurrence's own tiles. The sum over k is cut into blocks, so that a block of A and a panel of B
// stay in the second cache. C is cut into rows and columns, a piece for each part, and parts never meet: each
// packs what it reads into its own cache, for a line that one member writes and another reads costs both more
// than packing it twice. Compiled once per instruction set, inside its namespace. No guard on purpose.

template <class E>
struct Gradient {
  typedef typename ComputeType<E>::type A;
  typedef typename WordOf<E>::type W;
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes, kNumbers = WordOf<E>::kNumbers;
  // Rows of a block of A; of parts twice as many where B leaves the second cache little room for the rest
  static constexpr int64_t kRows = kInParts<E> ? 64 : 48, kMostRows = kInParts<E> ? 2 * kRows : kRows;
  // Words of k of a block: the second cache holds two B of 256 columns. A matrix unit is done sooner with a
  // block than its C is read and written, so it takes longer ones; of parts, which are larger, it would not
  // hold them.
  static constexpr int64_t kDepth = kMatrixUnit && !kInParts<E> ? kBlock : kBlock / 2;

  // What one part has for itself
  struct Own {
    A* zeros;             // [widest columns]
    W* turned;            // [rows, depth]: a block of A with k contiguous
    Packed<E> packed[2];  // a block of each B
  };

  const GradientParams<E>& p;
  const Plan plan;
  const int64_t depth, rows;  // of a block, depth in words
  const int64_t row_pieces, column_pieces;
  Arena workspace;
  size_t bytes;  // of one part

  Gradient(const GradientParams<E>& params, Plan how, Arena& arena)
      : p(params),
        plan(how),
        depth(least(deepest(), divide_up(params.K, L * kNumbers) * L)),
        rows(bytes_of_b(depth) > second_cache() / 2 ? kMostRows : kRows),
        row_pieces(cut_rows()),
        column_pieces(plan.parts / row_pieces),
        workspace(arena) {
    Arena one{nullptr};
    own(one);
    bytes = one.used;
    arena.take<char>(plan.parts * bytes);
  }

  int64_t columns() const {
    int64_t n = 0;
    for (int i = 0; i < p.products; ++i) n += p.product[i].N;
    return n;
  }

  // as it is packed
  int64_t bytes_of_b(int64_t words) const {
    return columns() * words * (kInParts<E> ? kFloatParts * int64_t(sizeof(float)) / 2 : int64_t(sizeof(W)));
  }

  // Half of it where a second cache of the usual size, with a little else, holds that and not the whole. Of
  // the sizes alone: sums are the same whatever the plan and the machine.
  int64_t deepest() const {
    constexpr int64_t kCache = 2 << 20;
    const bool halves =
        kInParts<E> && bytes_of_b(kDepth) > kCache / 2 && bytes_of_b(kDepth / 2) <= kCache * 4 / 5;
    return halves ? kDepth / 2 : kDepth;
  }

  // Cut so that a part packs the least: its rows of A and its columns of B
  int64_t cut_rows() const {
    int64_t best = 1;
    const auto packs = [&](int64_t n) { return p.M / n + columns() * n / plan.parts; };
    for (int64_t n = 2; n <= plan.parts; ++n)
      if (plan.parts % n == 0 && packs(n) < packs(best)) best = n;
    return best;
  }

  // vectors of columns
  int64_t vectors(int i) const { return divide_up(p.product[i].N, L); }

  Own own(Arena& arena) const {
    Own to;
    int64_t most_columns = 0;
    to.turned = arena.take<W>(p.turned ? rows * depth : 0);
    for (int i = 0; i < p.products; ++i) {
      const int64_t own_columns = divide_up(vectors(i), column_pieces) * L;
      // 2: more than once, for a block is packed whole
      to.packed[i] = Packed<E>::make(arena, {nullptr, p.product[i].ldb, true}, depth * kNumbers, own_columns,
                                     1, rows, 2, Plan{Split::kSerial, 1});
      if constexpr (kInParts<E>)
        if (i > 0) to.packed[i].split_like(to.packed[0], rows);
      most_columns = most(most_columns, own_columns);
    }
    to.zeros = arena.take<A>(most_columns);
    for (int64_t i = 0; arena.base && i < most_columns; ++i) to.zeros[i] = 0;
    return to;
  }

  void run(Team::Member& member) const {
    Share{plan, p.M, nullptr, member}.phase([&](const Part& whole) {
      Arena arena{workspace.base, workspace.used + whole.index * bytes};
      const int64_t column = whole.index % column_pieces;
      Part part = whole;
      part.rows = share(p.M, row_pieces, whole.index / column_pieces), part.cut = {1, 0};
      part.index = 0;  // of one: what is packed and split is its own
      multiply(part, own(arena), column);
    });
  }

  // a part's piece of C
  void multiply(const Part& part, Own to, int64_t column) const {
    Range of_b[2];
    for (int i = 0; i < p.products; ++i) {
      const Range v = share(vectors(i), column_pieces, column);
      of_b[i] = {v.begin * L, least(v.end * L, p.product[i].N)};
      to.packed[i].units = of_b[i].size();
    }
    for (int64_t k = 0; k < p.K; k += depth * kNumbers) {
      for (int i = 0; i < p.products; ++i) {
        Packed<E>& b = to.packed[i];
        const auto& from = p.product[i];
        if (from.rows)
          b.source.rows = from.rows + k, b.source.column = of_b[i].begin;
        else
          b.source.weights = from.b + k * from.ldb + of_b[i].begin;
        b.set_numbers(least(depth * kNumbers, p.K - k));
        b.pack({0, b.vectors()}, {0, 1});
      }
      const bool first = k == 0 && !p.accumulate;
      for (int64_t m = part.rows.begin; m < part.rows.end; m += rows) {
        const int64_t n = least(rows, part.rows.end - m);
        if (p.turned) turn(to.turned, p.a + k * p.lda + m, to.packed[0].numbers, n);
        for (int i = 0; i < p.products; ++i) {
          const Packed<E>& b = to.packed[i];
          const auto& c = p.product[i];
          const A* known = i > 0 ? p.product[0].sums : nullptr;
          if (column == 0 && c.sums && known)
            for (int64_t j = m; j < m + n; ++j) c.sums[j] = known[j];
          else if (column == 0 && c.sums)
            add_sums(to.turned, divide_up(b.numbers, kNumbers), c.sums + m, n, k == 0);
          part.watch.lap(Work::kPack);
          product(
              b, part, n, kDense, false,
              [&](int64_t j, const W*& a, const A*& in, A*& out) {
                a = p.turned ? to.turned + j * depth : words(p.a + (m + j) * p.lda + k);
                out = c.c + (m + j) * c.ldc + of_b[i].begin;
                in = first ? to.zeros : out;
              },
              [](Range, Range) {});
        }
      }
    }
  }

  // to[m, k] = word (k, m) of so many rows of n numbers
  void turn(W* to, const E* from, int64_t numbers, int64_t n) const {
    for (int64_t k = 0; k * kNumbers < numbers; k += L)
      for (int64_t m = 0; m < n; m += L)
        turn_block(to + m * depth + k, depth, from + k * kNumbers * p.lda + m, p.lda, numbers - k * kNumbers,
                   n - m, n - m);
  }

  // sums[m] = or += the numbers in the K words of each of n turned rows, whose last vector is filled with
  // zeros
  void add_sums(const W* block, int64_t K, A* sums, int64_t n, bool first) const {
    for (int64_t m = 0; m < n; ++m) {
      V lanes{};
      for (int64_t k = 0; k < K; k += L) lanes = add_words(load(block + m * depth + k), lanes);
      A sum = first ? 0 : sums[m];
      for (int i = 0; i < L; ++i) sum += lanes[i];
      sums[m] = sum;
    }
  }
};
