// The time loop of one direction of a layer, or of two side by side, forward, over any gated cell. The input
// products of a chunk of steps go to the rows that hold the gates; then each step adds W_hh h to them, tile
// by tile (in parts, in the cell's registers), and the cell finishes sums while they are in the nearest
// cache. With shared units the members meet once a step (twice with a projection), because each reads all of
// h; with shared rows never. Compiled once per instruction set, inside its namespace. No guard on purpose.

// W_ih and W_hh as ForwardParams::frozen has them
template <class E>
struct FrozenWeights {
  Packed<E> w_ih, w_hh;

  FrozenWeights(const ForwardParams<E>& p, int gates, Arena arena)
      : w_ih(Packed<E>::freeze(arena, Source<E>::of(p.w_ih, p.I), p.I, p.H, gates)),
        w_hh(Packed<E>::freeze(arena, Source<E>::of(p.w_hh, p.P), p.P, p.H, gates)),
        bytes(arena.used) {}

  size_t bytes;
};

template <class E>
size_t freeze(int gates, const ForwardParams<E>& p, void* to) {
  const FrozenWeights<E> w(p, gates, {static_cast<char*>(to)});
  if (to)
    for (const Packed<E>* matrix : {&w.w_ih, &w.w_hh}) matrix->pack({0, matrix->vectors()}, {0, 1});
  return w.bytes;
}

// The states that rows begin anew from where they are reset, as those of a step lie: one for each row of the
// batch, or zeros for all.
template <class E>
struct Anew {
  typedef typename ComputeType<E>::type A;
  int64_t rows, numbers, blended, cells;  // of a row: of h, of h that is not rounded, of c; or 0
  E* h;
  A *exact, *c;

  static Anew take(Arena& arena, const Resets<A>& resets, int64_t batch, int64_t numbers, int64_t blended,
                   int64_t cells) {
    const int64_t rows = !resets.at ? 0 : resets.h ? batch : 1;
    return {rows,
            numbers,
            padded(blended),
            padded(cells),
            arena.take<E>(rows * numbers),
            arena.take<A>(rows * padded(blended)),
            arena.take<A>(rows * padded(cells))};
  }

  int64_t of(int64_t b) const { return rows == 1 ? 0 : b; }
  RNNFAST_INLINE const E* h_row(int64_t b) const { return h + of(b) * numbers; }
  RNNFAST_INLINE const A* exact_row(int64_t b) const { return exact + of(b) * blended; }
  RNNFAST_INLINE const A* c_row(int64_t b) const { return c + of(b) * cells; }

  // those of some rows of the batch
  void read(const ForwardParams<E>& p, Range some) const {
    copy_padded(h, numbers, p.resets.h, p.P, p.walk, some);
    if (blended) copy_padded(exact, blended, p.resets.h, p.P, p.walk, some);
    if (cells) copy_padded(c, cells, p.resets.c, p.H, p.walk, some);
  }
};

template <class Cell, class E>
struct Forward {
  typedef typename ComputeType<E>::type A;
  typedef typename WordOf<E>::type W;
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes, G = Cell::kGates, S = Cell::kSlots;
  static constexpr int kNumbers = WordOf<E>::kNumbers;
  // products read a rounded h, which must not be what the cell goes on from
  static constexpr bool kRounds = kNumbers > 1 && Cell::kBlends;

  const ForwardParams<E>& p;
  const Plan plan;
  const bool projected;
  // Whether gates are W_ih x alone, and b and W_hh h meet them in registers. (Gates that are saved lie
  // farther away, and come sooner by a loop that only adds.)
  const bool cells_add;
  const int64_t stages;  // of a step: phases of a call that shares units
  const int64_t Hp, Pp, B;
  const int64_t ldh, ldm;  // of h and m: whole lines
  int64_t chunk;
  Packed<E> w_ih, w_hh, w_hr;
  A* zeros;        // [Pp]
  E* h[2];         // [B, ldh]: read one, write the other
  Anew<E> anew;    // what a row begins from where it is reset
  Owned<A> exact;  // h before rounding
  Owned<A> c;
  E* m;           // [B, ldm]: what the projection multiplies, and
  A* r;           // [B, Pp]: what it gives
  A* gates;       // of all rows, when they are saved, or of a chunk of steps; then the biases
  Layout layout;  // of gates, and
  Layout of_cells;
  A* biases;  // a row of them
  int64_t slot_x[G], slot_h[G];

  Forward(const ForwardParams<E>& params, Plan how, Arena& arena)
      : p(params),
        plan(how),
        projected(params.w_hr.numbers),
        cells_add(kInParts<E> && !params.gates),
        stages(projected ? 2 : 1),
        Hp(padded(params.H)),
        Pp(padded(params.P)),
        B(params.walk.batch),
        ldh(whole_lines<E>(Pp)),
        ldm(whole_lines<E>(Hp)) {
    chunk = chunk_steps<A>(p.walk, S * Hp, p.I, plan.parts);
    if (is_far())
      chunk = most(chunk, least(kLongest, chunk_steps<A>(p.walk, S * Hp, p.I, plan.parts * kLonger)));
    const int64_t rows = plan.split == Split::kRows ? divide_up(B, plan.parts) : B;
    const int64_t steps = p.walk.steps, chunks = divide_up(steps, chunk);
    const auto pack = [&](WeightMatrix w, int64_t numbers, int64_t units, int gates, int64_t n,
                          int64_t uses) {
      return Packed<E>::make(arena, Source<E>::of(w, numbers), numbers, units, gates, n, uses, plan);
    };
    if (p.frozen) {
      const FrozenWeights<E> packed(p, G, {static_cast<char*>(const_cast<void*>(p.frozen))});
      w_ih = packed.w_ih, w_hh = packed.w_hh;
      w_ih.take_split(arena, chunk * rows, plan.parts), w_hh.take_split(arena, rows, plan.parts);
    } else {
      w_ih = pack(p.w_ih, p.I, p.H, G, chunk * rows, chunks);
      w_hh = pack(p.w_hh, p.P, p.H, G, rows, steps);
    }
    if (projected) w_hr = pack(p.w_hr, p.H, p.P, 1, rows, steps);
    zeros = arena.take<A>(Pp);
    for (E*& state : h) state = take_apart<E>(arena, B * ldh);
    anew = Anew<E>::take(arena, p.resets, B, ldh, kRounds ? p.P : 0, Cell::kHasCell ? p.H : 0);
    exact = Owned<A>::take(arena, plan, B, kRounds ? p.P : 0);
    c = Owned<A>::take(arena, plan, B, Cell::kHasCell ? p.H : 0);
    m = arena.take<E>(projected ? B * ldm : 0);
    r = arena.take<A>(projected ? B * Pp : 0);
    const int64_t rows_kept = p.gates ? p.walk.total : chunk * B;
    layout = layout_of(B, gate_rows(rows_kept), S, p.H);
    of_cells = layout_of(B, p.walk.total, 1, p.H);
    if (!p.gates && B > 1) layout.row += L;  // rows 4 KiB apart share few places of a cache
    gates = p.gates ? p.gates : arena.take<A>(gate_rows(rows_kept) * (S * Hp + L));
    biases = gates + rows_kept * layout.row;
    for (int g = 0; g < G; ++g) slot_x[g] = g * layout.value, slot_h[g] = Cell::kHiddenSlot[g] * layout.value;
  }

  // Whether the second cache does not hold a member's W in parts. Each chunk then brings W_ih back from
  // beyond, and W_hh after it, which takes longer than to do that with the gates of a longer chunk.
  static constexpr int64_t kLonger = 8, kLongest = 24;
  bool is_far() const {
    if constexpr (!kInParts<E>) return false;
    const int64_t vectors = divide_up(p.H, L) * G, numbers = whole_lines<E>(p.I) + whole_lines<E>(p.P);
    return vectors * parts_size(numbers) * int64_t(sizeof(E)) >
           second_cache() * (plan.split == Split::kUnits ? plan.parts : 1);
  }

  static void run(const Forward* directions, Plan plan, Team::Member& member) {
    const auto of = [&](const Part& part) -> const Forward& { return directions[part.direction]; };
    const Share share{plan, directions->B, &directions->p.walk, member};
    share.phase([&](const Part& part) { of(part).prepare(share, part); });
    share.phases(directions->p.walk.steps * directions->stages,
                 [&](const Part& part, int64_t k) { of(part).go_on(part, k); });
  }

  void go_on(const Part& part, int64_t k) const {
    const int64_t s = k / stages, local = s % chunk;
    if (k % stages == 1) return project(part, s);
    if (local == 0) input_product(part, s, least(s + chunk, p.walk.steps));
    step(part, s, local);
  }

  void prepare(const Share& share, const Part& part) const {
    share.pack(w_ih, part);
    share.pack(w_hh, part);
    if (projected) share.pack(w_hr, part);
    const Range rows = share.rows_of(part);
    for (E* state : {h[0], h[1]}) copy_padded(state, ldh, p.h0, p.P, p.walk, rows);
    if (p.resets.at) anew.read(p, p.resets.h ? rows : Range{0, part.index == 0 ? 1 : 0});
    if (projected) copy_padded<E, A>(m, ldm, nullptr, 0, p.walk, rows);
    const Range vectors = w_hh.vectors_of(part.cut);
    if (kRounds) exact.read(part, p.h0, p.P, p.walk, vectors);
    if (Cell::kHasCell) c.read(part, p.c0, p.H, p.walk, vectors);
    if (part.index == 0)
      for (int64_t i = 0; i < Pp; ++i) zeros[i] = 0;
    if (part.index != 0 && plan.split != Split::kUnits) return;
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      V sum[S] = {};
      for (int64_t g = 0; g < G; ++g) {
        sum[g] = sum[g] + bias(p.b_ih, g, v);
        V& with_h = sum[Cell::kHiddenSlot[g]];
        with_h = with_h + bias(p.b_hh, g, v);
      }
      for (int64_t j = 0; j < S; ++j)
        store(biases + vector_at<L>(v, layout.block) + j * layout.value, sum[j]);
    }
  }

  // vector v of gate g of a bias, or of none
  V bias(const A* of, int64_t g, int64_t v) const {
    return of ? load_part(of + g * p.H + v * L, p.H - v * L) : V{};
  }

  // the gates of (t, b); `local` counts the steps of this chunk
  A* gates_of(int64_t t, int64_t b, int64_t local) const {
    return gates + (p.gates ? p.walk.kept_row(t, b) : local * B + b) * layout.row;
  }

  // gates = b + W_ih x for the steps of a chunk, or W_ih x
  void input_product(const Part& part, int64_t begin, int64_t end) const {
    const Range vectors = w_ih.vectors_of(part.cut);
    const int64_t ldx = whole_lines<E>(p.I);
    int64_t n = 0;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t t = p.walk.time(s);
      const Range rows = part.active(p.walk, t);
      n += rows.size();
      if (S > G && !cells_add)  // a slot that only the hidden product adds to
        for (int64_t b = rows.begin; b < rows.end; ++b)
          for (int64_t v = vectors.begin; v < vectors.end; ++v)
            store(gates_of(t, b, s - begin) + slot_h[G - 1] + vector_at<L>(v, layout.block),
                  load(biases + slot_h[G - 1] + vector_at<L>(v, layout.block)));
    }
    int64_t s = 0, b = 0, t = 0;
    const auto multiply = [&](auto then) {
      product(
          w_ih, part, n, Columns{slot_x, layout.block}, false,
          [&](int64_t row, const W*& a, const A*& in, A*& out) {
            if (row == 0) s = begin, t = p.walk.time(s), b = part.rows.begin;
            while (b >= part.active(p.walk, t).end) t = p.walk.time(++s), b = part.rows.begin;
            a = words(p.x + p.walk.row(t, b) * ldx);
            in = biases;
            out = gates_of(t, b, s - begin);
            ++b;
          },
          then);
    };
    if constexpr (kInParts<E>)
      if (cells_add) return multiply(StoreSums());
    multiply([](Range, Range) {});
  }

  // Where row b of step t stands in what its cells read and write. Worked out once a row, for all that `p`
  // and `this` point to may be what a stored vector overwrote.
  struct Place {
    int64_t b;
    bool ends;
    A *gates, *c, *cells, *exact;  // cells: or null
    E *h, *y, *cs;                 // y, cs: or null
    // the state before, of which h is read as `products` do, or as it was before it was rounded
    const E* before;
    const A *exact_before, *c_before;
  };

  RNNFAST_INLINE Place place(const Part& part, int64_t s, int64_t t, int64_t b, int64_t local,
                             bool ends) const {
    const int64_t row = p.walk.row(t, b);
    A *const of_c = c.row(part, b), *const of_h = exact.row(part, b);
    const bool reset = has(p.resets, p.walk, t, b);
    return {p.walk.sequence(b),
            ends,
            gates_of(t, b, local),
            of_c,
            p.cells ? p.cells + p.walk.kept_row(t, b) * of_cells.row : nullptr,
            of_h,
            h[(s + 1) & 1] + b * ldh,
            copies_y(s) ? nullptr : p.y + row * p.ldy,
            p.cs ? p.cs + row * p.ldc : nullptr,
            reset ? anew.h_row(b) : h[s & 1] + b * ldh,
            reset ? anew.exact_row(b) : of_h,
            reset ? anew.c_row(b) : of_c};
  }

  // whether a row of y is copied from h a step later, see copies()
  bool copies_y(int64_t s) const { return plan.split == Split::kUnits && s + 1 < p.walk.steps; }

  void copy_y(const Part& part, int64_t s) const {
    const int64_t t = p.walk.time(s);
    const Range rows = part.active(p.walk, t);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      E* const y = p.y + p.walk.row(t, b) * p.ldy;
      if (copies(part, y)) copy_row(y, h[(s + 1) & 1] + b * ldh, p.P);
    }
  }

  // What a product reads, from lane i on, of which `left` count. Words may hold more numbers than that, and
  // those stay zero: what a lane beside the units has come to may be NaN.
  static RNNFAST_INLINE void store_operand(E* to, int64_t i, V value, int64_t left) {
    if constexpr (kNumbers > 1)
      store_part(to + i, value, left);
    else
      store(to + i, value);
  }

  // h of the lanes from i on, of which `left` count
  RNNFAST_INLINE void emit(const Place& to, int64_t i, V value, int64_t left) const {
    store_operand(to.h, i, value, left);
    if (kRounds) store(to.exact + i, value);
    if (to.y) store_part(to.y + i, value, left);
    if (to.ends) store_part(p.hn + to.b * p.P + i, value, left);
  }

  // gates += W_hh h, then the cell, which may be where they are added up
  void step(const Part& part, int64_t s, int64_t local) const {
    const int64_t t = p.walk.time(s), ends = p.walk.ends(t);
    const Range rows = part.active(p.walk, t);
    const E* before = h[s & 1];
    if (plan.split == Split::kUnits) {
      const Range vectors = w_hh.vectors_of(part.cut);
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        fetch(before + b * ldh, {0, p.P});
        fetch_to_write(h[(s + 1) & 1] + b * ldh, {vectors.begin * L, vectors.end * L});
      }
      if (s > 0) copy_y(part, s - 1);
    }
    const auto multiply = [&](auto then) {
      product(
          w_hh, part, rows.size(), Columns{slot_h, layout.block}, s & 1,
          [&](int64_t i, const W*& a, const A*& in, A*& out) {
            const int64_t b = rows.begin + i;
            a = words(has(p.resets, p.walk, t, b) ? anew.h_row(b) : before + b * ldh);
            in = out = gates_of(t, b, local);
          },
          then);
    };
    const auto finish = [&](Range tile, Range vectors, const auto&... sums) {
      int64_t i = 0;
      const auto some = [&](auto n) {
        cells<n.value>(part, s, t, rows.begin + tile.begin + i, vectors, local, ends, i, sums...);
        i += n.value;
      };
      while (i + 2 <= tile.size()) some(std::integral_constant<int, 2>());
      if (i < tile.size()) some(std::integral_constant<int, 1>());
    };
    if constexpr (kInParts<E>)
      if (cells_add) return multiply(finish);
    multiply([&](Range tile, Range vectors) { finish(tile, vectors); });
  }

  // The cells of n rows of step t from row b on. One row is a chain of dependent instructions; two at once
  // keep the processor busy. sums: of W_hh h, where cells add them, these rows from `first` on.
  template <int n, class... Sums>
  RNNFAST_INLINE void cells(const Part& part, int64_t s, int64_t t, int64_t b, Range vectors, int64_t local,
                            int64_t ends, int64_t first, const Sums&... sums) const {
    constexpr bool kAdds = sizeof...(sums) > 0;
    Place row[n];
    for (int i = 0; i < n; ++i) row[i] = place(part, s, t, b + i, local, b + i >= ends);
    const int64_t H = p.H, P = p.P;
    const int64_t slot = layout.value, gate_block = layout.block, cell_block = of_cells.block;
    const bool saves = p.gates, projects = projected;
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      const int64_t at = v * L;
      // two rows are of a batch, where units stand side by side
      const int64_t gate_at = n > 1 ? at : vector_at<L>(v, gate_block);
      V state[n][S], cell[n]{}, blended[n]{}, value[n];
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < S; ++j) {
          const int64_t in_row = gate_at + j * slot;
          if constexpr (!kAdds)
            state[i][j] = load(row[i].gates + in_row);
          else  // the last slot of S > G has no part of x
            state[i][j] = j < G ? load(row[i].gates + in_row) + load(biases + in_row) : load(biases + in_row);
        }
        const auto add = [&](const auto& of_h) {
          for (int g = 0; g < G; ++g) {
            V& a = state[i][Cell::kHiddenSlot[g]];
            a = of_h.of(g * vectors.size() + v - vectors.begin, first + i) + a;
          }
        };
        (add(sums), ...);
        if constexpr (Cell::kHasCell) cell[i] = load(row[i].c_before + at);
        if constexpr (Cell::kBlends)
          blended[i] = kRounds ? load(row[i].exact_before + at) : load(row[i].before + at);
      }
      for (int i = 0; i < n; ++i) value[i] = Cell::forward(state[i], cell[i], blended[i]);
      for (int i = 0; i < n; ++i) {
        if (saves)
          for (int j = 0; j < S; ++j) store(row[i].gates + gate_at + j * slot, state[i][j]);
        if constexpr (Cell::kHasCell) {
          store(row[i].c + at, cell[i]);
          if (row[i].cells) store(row[i].cells + (n > 1 ? at : vector_at<L>(v, cell_block)), cell[i]);
          if (row[i].cs) store_part(row[i].cs + at, cell[i], H - at);
          if (row[i].ends) store_part(p.cn + row[i].b * H + at, cell[i], H - at);
        }
        if (projects)
          store_operand(m + (b + i) * ldm, at, value[i], H - at);
        else
          emit(row[i], at, value[i], P - at);
      }
    }
  }

  // h' = W_hr (o tanh(c'))
  void project(const Part& part, int64_t s) const {
    const int64_t t = p.walk.time(s), ends = p.walk.ends(t);
    const Range rows = part.active(p.walk, t);
    product(
        w_hr, part, rows.size(), kDense, s & 1,
        [&](int64_t i, const W*& a, const A*& in, A*& out) {
          a = words(m + (rows.begin + i) * ldm);
          in = zeros;
          out = r + (rows.begin + i) * Pp;
        },
        [&](Range tile, Range vectors) {
          for (int64_t b = rows.begin + tile.begin; b < rows.begin + tile.end; ++b)
            for (int64_t i = vectors.begin * L; i < vectors.end * L; i += L)
              emit(place(part, s, t, b, 0, b >= ends), i, load(r + b * Pp + i), p.P - i);
        });
  }
};
