// The products behind a recurrence: dx = da W and dW = da^T x, each over all rows of all time steps at once,
// by the recurrence's own tiles. The sum over k is cut into blocks, so that a block of A and a panel of B
// stay in the second cache; members share the rows of C and never meet. Compiled once per instruction set,
// inside its namespace. No guard on purpose.

template <class A>
struct Gradient {
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes;
  static constexpr int64_t kRows = 48;  // of a block of A, kBlock deep

  const GradientParams<A>& p;
  const Plan plan;
  const int64_t depth;
  A* zeros;          // [padded(N)]
  A* turned;         // [parts, kRows, depth]: a block of A with k contiguous
  Packed<A> blocks;  // [parts] blocks of B one after the other
  int64_t block_size;

  Gradient(const GradientParams<A>& params, Plan how, Arena& arena)
      : p(params), plan(how), depth(least(kBlock, divide_up(params.K, L) * L)) {
    zeros = arena.take<A>(padded(p.N));
    turned = arena.take<A>(p.turned ? plan.parts * kRows * depth : 0);
    const Plan whole{Split::kRows, 1};
    block_size = divide_up(p.N, L) * L * depth;
    blocks = Packed<A>::make(arena, {p.b, p.ldb, true}, depth, p.N, 1, kRows, 1, whole);
    for (int i = 1; i < plan.parts; ++i) arena.take<A>(block_size);
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
    A* block = turned + part.index * kRows * depth;
    Packed<A> b = blocks;
    b.data += part.index * block_size;
    for (int64_t k = 0; k < p.K; k += depth) {
      b.source.weights = p.b + k * p.ldb;
      b.K = least(depth, p.K - k);
      b.pack({0, b.vectors()}, {0, 1});
      const bool first = k == 0 && !p.accumulate;
      for (int64_t m = part.rows.begin; m < part.rows.end; m += kRows) {
        const int64_t n = least(kRows, part.rows.end - m);
        if (p.turned) turn(block, p.a + k * p.lda + m, b.K, n);
        product(
            b, {1, 0}, n, &slot, false,
            [&](int64_t i, const A*& a, const A*& in, A*& out) {
              a = p.turned ? block + i * depth : p.a + (m + i) * p.lda + k;
              out = p.c + (m + i) * p.ldc;
              in = first ? zeros : out;
            },
            [](int64_t, Range) {});
      }
    }
  }

  // to[m, k] = from[k, m] for K rows of n numbers
  void turn(A* to, const A* from, int64_t K, int64_t n) const {
    for (int64_t k = 0; k < K; k += L)
      for (int64_t m = 0; m < n; m += L)
        turn_block(to + m * depth + k, depth, from + k * p.lda + m, p.lda, K - k, n - m);
  }
};
