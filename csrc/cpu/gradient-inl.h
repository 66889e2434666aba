// The products behind a recurrence: dx = da W and dW = da^T x, each over all rows of all time steps at once,
// by the recurrence's own tiles. The sum over k is cut into blocks, so that a block of A and a panel of B
// stay in the second cache; members pack a block of B together, then share the rows of C. Compiled once per
// instruction set, inside its namespace. No guard on purpose.

template <class E>
struct Gradient {
  typedef typename ComputeType<E>::type A;
  typedef typename WordOf<E>::type W;
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes, kNumbers = WordOf<E>::kNumbers;
  static constexpr int64_t kRows = 48;  // of a block of A
  // Words of k of a block: the second cache holds two B of 256 columns. A matrix unit is done sooner with a
  // block than its C is read and written, so it takes longer ones.
  static constexpr int64_t kDepth = kMatrixUnit ? kBlock : kBlock / 2;

  const GradientParams<E>& p;
  const Plan plan;
  const int64_t depth;  // in words
  A* zeros;             // [padded(N)] of the wider C
  W* turned;            // [parts, kRows, depth]: a block of A with k contiguous
  Packed<E> packed[2];  // a block of each B

  Gradient(const GradientParams<E>& params, Plan how, Arena& arena)
      : p(params), plan(how), depth(least(kDepth, divide_up(params.K, L * kNumbers) * L)) {
    zeros = arena.take<A>(widest());
    turned = arena.take<W>(p.turned ? plan.parts * kRows * depth : 0);
    for (int i = 0; i < p.products; ++i)
      packed[i] = Packed<E>::make(arena, {p.product[i].b, p.product[i].ldb, true}, depth * kNumbers,
                                  p.product[i].N, 1, kRows, 1, {Split::kRows, 1});
  }

  int64_t widest() const {
    int64_t n = 0;
    for (int i = 0; i < p.products; ++i) n = most(n, padded(p.product[i].N));
    return n;
  }

  void run(Team::Member& member) const {
    const Share share{plan, p.M, nullptr, member};
    share.phase([&](const Part& part) {
      for (int64_t i = part.index; i < widest(); i += part.parts) zeros[i] = 0;
    });
    for (int64_t k = 0; k < p.K; k += depth * kNumbers) {
      Packed<E> b[2];
      for (int i = 0; i < p.products; ++i) {
        b[i] = packed[i];
        b[i].source.weights += k * p.product[i].ldb;
        b[i].set_numbers(least(depth * kNumbers, p.K - k));
      }
      share.phase([&](const Part& part) {
        for (int i = 0; i < p.products; ++i) share.pack(b[i], part);
      });
      share.phase([&](const Part& part) { multiply(part, b, k); });
    }
  }

  // the rows of C of one part, for one block of k
  void multiply(const Part& part, const Packed<E>* b, int64_t k) const {
    const int64_t slot = 0;
    W* block = turned + part.index * kRows * depth;
    const bool first = k == 0 && !p.accumulate;
    for (int64_t m = part.rows.begin; m < part.rows.end; m += kRows) {
      const int64_t n = least(kRows, part.rows.end - m);
      if (p.turned) turn(block, p.a + k * p.lda + m, b->numbers, n);
      for (int i = 0; i < p.products; ++i) {
        const auto& to = p.product[i];
        const A* known = i > 0 ? p.product[0].sums : nullptr;
        if (to.sums && known)
          for (int64_t j = m; j < m + n; ++j) to.sums[j] = known[j];
        else if (to.sums)
          add_sums(block, b->K, to.sums + m, n, k == 0);
        part.watch.lap(Work::kPack);
        product(
            b[i], part, n, &slot, false,
            [&](int64_t j, const W*& a, const A*& in, A*& out) {
              a = p.turned ? block + j * depth : words(p.a + (m + j) * p.lda + k);
              out = to.c + (m + j) * to.ldc;
              in = first ? zeros : out;
            },
            [](Range, Range) {});
      }
    }
  }

  // to[m, k] = word (k, m) of `rows` rows of n numbers
  void turn(W* to, const E* from, int64_t rows, int64_t n) const {
    for (int64_t k = 0; k * kNumbers < rows; k += L)
      for (int64_t m = 0; m < n; m += L)
        turn_block(to + m * depth + k, depth, from + k * kNumbers * p.lda + m, p.lda, rows - k * kNumbers,
                   n - m);
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
