// The products behind a recurrence: dx = da W and dW = da^T x, each over all rows of all time steps at once,
// by the recurrence's own tiles. The sum over k is cut into blocks, so that a block of A and a panel of B
// stay in the second cache; members share the rows of C and never meet. Compiled once per instruction set,
// inside its namespace. No guard on purpose.

template <class E>
struct Gradient {
  typedef typename ComputeType<E>::type A;
  typedef typename WordOf<E>::type W;
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes, kNumbers = WordOf<E>::kNumbers;
  static constexpr int64_t kRows = 48;  // of a block of A, kBlock deep

  const GradientParams<E>& p;
  const Plan plan;
  const int64_t depth;  // in words
  A* zeros;             // [padded(N)]
  W* turned;            // [parts, kRows, depth]: a block of A with k contiguous
  Packed<E> blocks;     // [parts] blocks of B one after the other
  int64_t block_size;

  Gradient(const GradientParams<E>& params, Plan how, Arena& arena)
      : p(params), plan(how), depth(least(kBlock, divide_up(params.K, L * kNumbers) * L)) {
    zeros = arena.take<A>(padded(p.N));
    turned = arena.take<W>(p.turned ? plan.parts * kRows * depth : 0);
    const Plan whole{Split::kRows, 1};
    block_size = divide_up(p.N, L) * L * depth;
    blocks = Packed<E>::make(arena, {p.b, p.ldb, true}, depth * kNumbers, p.N, 1, kRows, 1, whole);
    for (int i = 1; i < plan.parts; ++i) arena.take<W>(block_size);
  }

  void run(Team::Member& member) const {
    const Share share{plan, p.M, member};
    share.phase([&](const Part& part) {
      for (int64_t i = part.index; i < padded(p.N); i += part.parts) zeros[i] = 0;
    });
    share.phase([&](const Part& part) { multiply(part); });
  }

  // the rows of C of one part
  void multiply(const Part& part) const {
    const int64_t slot = 0;
    W* block = turned + part.index * kRows * depth;
    Packed<E> b = blocks;
    b.data += part.index * block_size;
    for (int64_t k = 0; k < p.K; k += depth * kNumbers) {
      b.source.weights = p.b + k * p.ldb;
      b.set_numbers(least(depth * kNumbers, p.K - k));
      b.pack({0, b.vectors()}, {0, 1});
      const bool first = k == 0 && !p.accumulate;
      for (int64_t m = part.rows.begin; m < part.rows.end; m += kRows) {
        const int64_t n = least(kRows, part.rows.end - m);
        if (p.turned) turn(block, p.a + k * p.lda + m, b.numbers, n);
        if (p.sums) add_sums(block, b.K, p.sums + m, n, k == 0);
        product(
            b, {1, 0}, n, &slot, false,
            [&](int64_t i, const W*& a, const A*& in, A*& out) {
              a = p.turned ? block + i * depth : words(p.a + (m + i) * p.lda + k);
              out = p.c + (m + i) * p.ldc;
              in = first ? zeros : out;
            },
            [](int64_t, Range) {});
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
