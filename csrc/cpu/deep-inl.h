// The time loop of the deep-transition RNN, forward and backward: a step is a multi-layer perceptron over [x,
// h], so it is `depth` products, one after the other, with a meeting of the members after each. Compiled once
// per instruction set, inside its namespace. No guard on purpose.

template <class A>
struct DeepForward {
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes;

  const DeepParams<A>& p;
  const Plan plan;
  const int64_t Hp, B;
  const int last;
  int64_t chunk;
  Packed<A> w_x, w[kMaxDepth];  // layer 0 is cut in its x and its h columns: w_x and w[0]
  A* bias[kMaxDepth];           // [padded(width)]
  A* h[2];                      // [B, Hp]: read one, write the other
  A* inner[kMaxDepth];          // [B, padded(width)] of the layers under the last, when they are not saved
  A* buffer;        // the x part of layer 0, [chunk, B, padded(width[0])]: one for each part of the
  int64_t of_part;  // units, so far apart

  DeepForward(const DeepParams<A>& params, Plan how, Arena& arena)
      : p(params), plan(how), Hp(padded(params.H)), B(params.walk.batch), last(params.depth - 1) {
    const int64_t W0 = padded(p.width[0]);
    const int64_t rows = plan.split == Split::kRows ? divide_up(B, plan.parts) : B;
    chunk = chunk_steps<A>(p.walk, W0, p.I, plan.parts);
    const int64_t steps = p.walk.steps, ld = p.I + p.H;
    w_x = Packed<A>::make(arena, {p.w[0], ld, false}, p.I, p.width[0], 1, chunk * rows,
                          divide_up(steps, chunk), plan);
    for (int l = 0; l <= last; ++l) {
      const Source<A> source =
          l ? Source<A>{p.w[l], p.width[l - 1], false} : Source<A>{p.w[0] + p.I, ld, false};
      w[l] = Packed<A>::make(arena, source, l ? p.width[l - 1] : p.H, p.width[l], 1, rows, steps, plan);
      bias[l] = arena.take<A>(padded(p.width[l]));
    }
    for (int l = 0; l < last; ++l) inner[l] = take_apart<A>(arena, p.acts[l] ? 0 : B * padded(p.width[l]));
    for (A*& state : h) state = take_apart<A>(arena, B * Hp);
    of_part = chunk * B * W0 + kApart / int64_t(sizeof(A));
    buffer = arena.take<A>(plan.split == Split::kUnits ? plan.parts * of_part : of_part);
  }

  void run(Team::Member& member) const {
    const Share share{plan, B, &p.walk, member};
    share.phase([&](const Part& part) { prepare(share, part); });
    share.phases(p.walk.steps * p.depth, [&](const Part& part, int64_t k) {
      const int64_t t = k / p.depth, local = t % chunk;
      const int l = static_cast<int>(k % p.depth);
      if (l == 0 && local == 0) input_product(part, t, least(t + chunk, p.walk.steps));
      layer(part, l, t, local);
    });
  }

  void prepare(const Share& share, const Part& part) const {
    share.pack(w_x, part);
    for (int l = 0; l <= last; ++l) share.pack(w[l], part);
    for (A* state : {h[0], h[1]}) copy_padded(state, Hp, p.h0, p.H, p.walk, share.rows_of(part));
    if (part.index == 0)
      for (int l = 0; l <= last; ++l)
        copy_padded(bias[l], padded(p.width[l]), p.b[l], p.width[l], p.walk, {0, 1});
  }

  // what layer l leaves for (t, b), [padded(width[l])]
  A* output(int l, int64_t t, int64_t b) const {
    if (l == last) return h[(t + 1) & 1] + b * Hp;
    const int64_t W = padded(p.width[l]);
    return p.acts[l] ? p.acts[l] + p.walk.row(t, b) * W : inner[l] + b * W;
  }

  A* x_part(const Part& part, int64_t b, int64_t local) const {
    return buffer + part.cut.piece * of_part + (local * B + b) * padded(p.width[0]);
  }

  // the x part of layer 0 for the steps of a chunk
  void input_product(const Part& part, int64_t begin, int64_t end) const {
    const int64_t rows = part.rows.size();
    product(
        w_x, part, rows * (end - begin), kDense, false,
        [&](int64_t i, const A*& a, const A*& in, A*& out) {
          const int64_t local = i / rows, b = part.rows.begin + i % rows;
          a = p.x + p.walk.row(begin + local, b) * p.I;
          in = bias[0];
          out = x_part(part, b, local);
        },
        [](Range, Range) {});
  }

  // what layer l reads
  const A* below(int l, int64_t t, int64_t b) const { return l ? output(l - 1, t, b) : h[t & 1] + b * Hp; }

  // as in Forward: rows of y that several parts make
  bool copies_y(int64_t t) const { return plan.split == Split::kUnits && t + 1 < p.walk.steps; }

  void layer(const Part& part, int l, int64_t t, int64_t local) const {
    const int64_t first = part.rows.begin;
    if (plan.split == Split::kUnits) {
      for (int64_t b = 0; b < B; ++b) fetch(below(l, t, b), {0, l ? p.width[l - 1] : p.H});
      if (l == 0 && t > 0)
        for (int64_t b = 0; b < B; ++b) {
          A* const y = p.y + p.walk.row(t - 1, b) * p.H;
          if (copies(part, y)) copy_row(y, h[t & 1] + b * Hp, p.H);
        }
    }
    product(
        w[l], part, part.rows.size(), kDense, t & 1,
        [&](int64_t i, const A*& a, const A*& in, A*& out) {
          const int64_t b = first + i;
          a = below(l, t, b);
          out = output(l, t, b);
          in = l ? bias[l] : x_part(part, b, local);
        },
        [&](Range tile, Range vectors) {
          for (int64_t b = first + tile.begin; b < first + tile.end; ++b) {
            A* const value = output(l, t, b);
            for (int64_t v = vectors.begin; v < vectors.end; ++v) {
              const V sum = load(value + v * L);
              if (l < last) {
                store(value + v * L, leaky_relu(sum, p.slope));
                continue;
              }
              if (!copies_y(t)) store_part(p.y + p.walk.row(t, b) * p.H + v * L, sum, p.H - v * L);
              if (t + 1 == p.walk.steps) store_part(p.hn + b * p.H + v * L, sum, p.H - v * L);
            }
          }
        });
  }
};

template <class A>
struct DeepBackward {
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes;

  const DeepParams<A>& p;
  const Plan plan;
  const int64_t Hp, B;
  const int last;
  int64_t widest;          // row of C, padded
  Packed<A> w[kMaxDepth];  // what layer l's gradient passes on its way to layer l - 1, or to h
  A* zeros;                // [widest]
  Owned<A> dh;
  Owned<A> scratch;  // of the widest layer: parts of rows are not at the same one

  DeepBackward(const DeepParams<A>& params, Plan how, Arena& arena)
      : p(params), plan(how), Hp(padded(params.H)), B(params.walk.batch), last(params.depth - 1), widest(Hp) {
    for (int l = 0; l < last; ++l) widest = most(widest, padded(p.width[l]));
    const int64_t rows = plan.split == Split::kRows ? divide_up(B, plan.parts) : B;
    for (int l = 0; l <= last; ++l) {
      const Source<A> source =
          l ? Source<A>{p.w[l], p.width[l - 1], true} : Source<A>{p.w[0] + p.I, p.I + p.H, true};
      w[l] =
          Packed<A>::make(arena, source, p.width[l], l ? p.width[l - 1] : p.H, 1, rows, p.walk.steps, plan);
    }
    zeros = arena.take<A>(widest);
    dh = Owned<A>::take(arena, plan, B, p.H);
    scratch = Owned<A>::take(arena, plan, B, widest);
  }

  void run(Team::Member& member) const {
    const Share share{plan, B, &p.walk, member};
    share.phase([&](const Part& part) { prepare(share, part); });
    // layer 0 of a step and the collecting of the step before touch the same units: one phase
    share.phases(p.walk.steps * p.depth + 1, [&](const Part& part, int64_t k) {
      const int64_t t = p.walk.steps - 1 - k / p.depth;
      if (const int l = static_cast<int>(k % p.depth)) return layer(part, p.depth - l, t);
      if (k > 0) layer(part, 0, t + 1);
      if (t >= 0) collect(part, t);
    });
    share.phase([&](const Part& part) { dh.write(part, p.dh0, p.H, p.walk, w[0].vectors_of(part.cut)); });
  }

  void prepare(const Share& share, const Part& part) const {
    for (int l = 0; l <= last; ++l) share.pack(w[l], part);
    dh.read(part, p.dhn, p.H, p.walk, w[0].vectors_of(part.cut));
    if (part.index == 0)
      for (int64_t i = 0; i < widest; ++i) zeros[i] = 0;
  }

  // dL/dh of step t, which is dL/d(pre-activation) of the last layer
  void collect(const Part& part, int64_t t) const {
    const Range vectors = w[0].vectors_of(part.cut);
    for (int64_t b = part.rows.begin; b < part.rows.end; ++b) {
      const int64_t row = p.walk.row(t, b) * p.H;
      for (int64_t v = vectors.begin; v < vectors.end; ++v) {
        const int64_t left = p.H - v * L;
        V total = load(dh.row(part, b) + v * L);
        if (p.dy) total = total + load_part(p.dy + row + v * L, left);
        store_part(p.da[last] + row + v * L, total, left);
      }
    }
    part.watch.lap(Work::kCell);
  }

  // da of layer l passes w[l]: to dL/dh under layer 0, else through LeakyReLU to da of layer l - 1
  void layer(const Part& part, int l, int64_t t) const {
    const int64_t first = part.rows.begin;
    const Owned<A>& result = l ? scratch : dh;
    if (plan.split == Split::kUnits)
      for (int64_t b = 0; b < B; ++b) fetch(p.da[l] + p.walk.row(t, b) * p.width[l], {0, p.width[l]});
    product(
        w[l], part, part.rows.size(), kDense, t & 1,
        [&](int64_t i, const A*& a, const A*& in, A*& out) {
          a = p.da[l] + p.walk.row(t, first + i) * p.width[l];
          in = zeros;
          out = result.row(part, first + i);
        },
        [&](Range tile, Range vectors) {
          if (l == 0) return;
          const int64_t n = p.width[l - 1];
          for (int64_t b = first + tile.begin; b < first + tile.end; ++b) {
            const int64_t row = p.walk.row(t, b);
            for (int64_t v = vectors.begin; v < vectors.end; ++v) {
              const V act = load(p.acts[l - 1] + row * padded(n) + v * L);
              const V da = load(result.row(part, b) + v * L);
              store_part(p.da[l - 1] + row * n + v * L, leaky_relu_backward(act, da, p.slope), n - v * L);
            }
          }
        });
  }
};
