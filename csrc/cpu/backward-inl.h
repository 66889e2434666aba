// The time loop of a layer, as in forward-inl.h, backward: the cell gives dL/d(pre-activations) of its units,
// the members meet, and each adds da W_hh to its dL/dh. Compiled once per instruction set, inside its
// namespace. No guard on purpose.

template <class Cell, class E>
struct Backward {
  typedef typename ComputeType<E>::type A;
  typedef typename WordOf<E>::type W;
  typedef typename Vec<A>::type V;
  static constexpr int L = Vec<A>::kLanes, G = Cell::kGates, S = Cell::kSlots;

  const BackwardParams<E>& p;
  const Plan plan;
  const bool projected;
  const int64_t stages;  // of a step: phases of a call that shares units
  const int64_t Hp, Pp, B;
  const int64_t lda, ldp;  // of da and dx, and of dprojected: whole lines
  Packed<E> w_hh, w_hr;
  A* zeros;     // [Hp]
  Owned<A> dh;  // dL/dh that comes from the step after
  Owned<A> dc;
  Owned<A> dm;  // dL/d(o tanh(c)), with a projection

  Backward(const BackwardParams<E>& params, Plan how, Arena& arena)
      : p(params),
        plan(how),
        projected(params.w_hr),
        stages(projected ? 2 : 1),
        Hp(padded(params.H)),
        Pp(padded(params.P)),
        B(params.walk.batch),
        lda(whole_lines<E>(G * params.H)),
        ldp(whole_lines<E>(params.P)) {
    const int64_t rows = plan.split == Split::kRows ? divide_up(B, plan.parts) : B;
    const int64_t steps = p.walk.steps;
    w_hh = Packed<E>::make(arena, {p.w_hh, p.P, true}, G * p.H, p.P, 1, rows, steps, plan);
    if (projected) w_hr = Packed<E>::make(arena, {p.w_hr, p.H, true}, p.P, p.H, 1, rows, steps, plan);
    zeros = arena.take<A>(Hp);
    dh = Owned<A>::take(arena, plan, B, p.P);
    dc = Owned<A>::take(arena, plan, B, Cell::kHasCell ? p.H : 0);
    dm = Owned<A>::take(arena, plan, B, projected ? p.H : 0);
  }

  // the vectors of h, and those of c and the gates, that a part of the units owns
  Range vectors_of_h(const Part& part) const { return w_hh.vectors_of(part.cut); }
  Range vectors_of_c(const Part& part) const { return (projected ? w_hr : w_hh).vectors_of(part.cut); }

  static void run(const Backward* directions, Plan plan, Team::Member& member) {
    const auto of = [&](const Part& part) -> const Backward& { return directions[part.direction]; };
    const Share share{plan, directions->B, &directions->p.walk, member};
    share.phase([&](const Part& part) { of(part).prepare(share, part); });
    share.phases(directions->p.walk.steps * directions->stages + 1,
                 [&](const Part& part, int64_t k) { of(part).go_on(part, k); });
    share.phase([&](const Part& part) { of(part).finish(part); });
  }

  void go_on(const Part& part, int64_t k) const {
    const int64_t steps = p.walk.steps, t = p.walk.time(steps - 1 - k / stages);  // of this step
    if (k % stages == 0 && k > 0) carry(part, p.walk.time(steps - k / stages));
    if (k == steps * stages) return;
    if (projected && k % stages == 0) return collect(part, t);
    if (projected) unproject(part, t);
    cell(part, t);
  }

  void finish(const Part& part) const {
    dh.write(part, p.dh0, p.P, p.walk, vectors_of_h(part));
    if (Cell::kHasCell) dc.write(part, p.dc0, p.H, p.walk, vectors_of_c(part));
  }

  void prepare(const Share& share, const Part& part) const {
    share.pack(w_hh, part);
    if (projected) share.pack(w_hr, part);
    dh.read(part, p.dhn, p.P, p.walk, vectors_of_h(part));
    if (Cell::kHasCell) dc.read(part, p.dcn, p.H, p.walk, vectors_of_c(part));
    if (part.index == 0)
      for (int64_t i = 0; i < Hp; ++i) zeros[i] = 0;
  }

  // The gradient of a state goes to the step before or, past a reset, to what the row began from.
  static RNNFAST_INLINE void pass_back(A* before, A* anew, int64_t at, V gradient, int64_t left) {
    if (anew) store_part(anew + at, load_part(anew + at, left) + gradient, left);
    store(before + at, anew ? V{} : gradient);
  }

  // dL/dh of this step: what it gave to y, and what the step after has carried to the row of dh
  RNNFAST_INLINE V output_gradient(const A* carried, int64_t row, int64_t v) const {
    const V after = load(carried + v * L);
    return p.dy ? after + load_part(p.dy + row * p.ldy + v * L, p.P - v * L) : after;
  }

  // With a projection: dL/dh of step t as rows that the product can read
  void collect(const Part& part, int64_t t) const {
    const Range rows = part.active(p.walk, t), vectors = vectors_of_h(part);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = p.walk.row(t, b), kept = p.walk.kept_row(t, b);
      A* const carried = dh.row(part, b);
      for (int64_t v = vectors.begin; v < vectors.end; ++v) {
        store_part(p.dprojected + kept * ldp + v * L, output_gradient(carried, row, v), p.P - v * L);
        store(carried + v * L, V{});
      }
    }
  }

  // dL/d(o tanh(c)) = dh W_hr
  void unproject(const Part& part, int64_t t) const {
    const Range rows = part.active(p.walk, t);
    product(
        w_hr, part, rows.size(), kDense, t & 1,
        [&](int64_t i, const W*& a, const A*& in, A*& out) {
          a = words(p.dprojected + p.walk.kept_row(t, rows.begin + i) * ldp);
          in = zeros;
          out = dm.row(part, rows.begin + i);
        },
        [](Range, Range) {});
  }

  void cell(const Part& part, int64_t t) const {
    const int64_t begins = p.walk.begins(t), N = p.walk.total, H = p.H;
    const Range rows = part.active(p.walk, t), vectors = vectors_of_c(part);
    const Layout of_gates = layout_of(B, gate_rows(N), S, H), of_cells = layout_of(B, N, 1, H);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = p.walk.row(t, b), kept = p.walk.kept_row(t, b), sequence = p.walk.sequence(b);
      const bool reset = has(p.resets, p.walk, t, b);
      const A* const gates = p.gates + kept * of_gates.row;
      // what it began from, where that is no row of y or of what is saved
      const A* const first_h = reset ? p.resets.h : b >= begins ? p.h0 : nullptr;
      const A* const first_c = reset ? p.resets.c : b >= begins ? p.c0 : nullptr;
      const bool first = reset || b >= begins;
      A* const anew_dc = reset && Cell::kHasCell ? p.resets.dc + sequence * H : nullptr;
      A *const dh_row = dh.row(part, b), *const dc_row = dc.row(part, b);
      for (int64_t v = vectors.begin; v < vectors.end; ++v) {
        const int64_t left = H - v * L, at = v * L;
        V state[S], da[G], dx[G], c{}, c_before{}, dcell{}, before{}, dvalue;
        if (S == 1 && !p.gates)
          state[0] = load_part(p.y + row * p.ldy + at, left);
        else
          for (int j = 0; j < S; ++j)
            state[j] = load(gates + vector_at<L>(v, of_gates.block) + j * of_gates.value);
        if constexpr (Cell::kHasCell) {
          const A* const cells = p.cells + vector_at<L>(v, of_cells.block);
          c = load(cells + kept * of_cells.row);
          if (!first)
            c_before = load(cells + p.walk.kept_row(p.walk.before(t), b) * of_cells.row);
          else if (first_c)
            c_before = load_part(first_c + sequence * H + at, left);
          dcell = load(dc_row + at);
          if (p.dcs) dcell = dcell + load_part(p.dcs + row * p.ldc + at, left);
        }
        if (projected) {
          dvalue = load(dm.row(part, b) + at);
          if (p.hidden) store_part(p.hidden + kept * H + at, Cell::output(state, c), left);
        } else {
          dvalue = output_gradient(dh_row, row, v);
          if constexpr (Cell::kBlends) {
            if (!first)
              before = load_part(p.y + p.walk.row(p.walk.before(t), b) * p.ldy + at, left);
            else if (first_h)
              before = load_part(first_h + sequence * H + at, left);
          }
        }
        const V direct = Cell::backward(state, before, c_before, c, dvalue, dcell, da, dx);
        if constexpr (Cell::kHasCell) pass_back(dc_row, anew_dc, at, dcell, left);
        if (!projected) store(dh_row + at, direct);
        for (int g = 0; g < G; ++g) store_part(p.da + kept * lda + g * H + at, da[g], left);
        if constexpr (S > G)
          for (int g = 0; g < G; ++g) store_part(p.dx + kept * lda + g * H + at, dx[g], left);
      }
    }
    part.watch.lap(Work::kCell);
  }

  // dL/dh of the step before += da W_hh
  void carry(const Part& part, int64_t t) const {
    const Range rows = part.active(p.walk, t);
    if (plan.split == Split::kUnits)
      for (int64_t b = rows.begin; b < rows.end; ++b) fetch(p.da + p.walk.kept_row(t, b) * lda, {0, G * p.H});
    product(
        w_hh, part, rows.size(), kDense, t & 1,
        [&](int64_t i, const W*& a, const A*& in, A*& out) {
          a = words(p.da + p.walk.kept_row(t, rows.begin + i) * lda);
          in = out = dh.row(part, rows.begin + i);
        },
        [](Range, Range) {});
    if (p.resets.at) give_back(part, t, rows);
  }

  // dL/dh of the rows that were reset before step t
  void give_back(const Part& part, int64_t t, Range rows) const {
    const Range vectors = vectors_of_h(part);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (!has(p.resets, p.walk, t, b)) continue;
      A *const carried = dh.row(part, b), *const anew = p.resets.dh + p.walk.sequence(b) * p.P;
      for (int64_t i = vectors.begin * L; i < vectors.end * L; i += L)
        pass_back(carried, anew, i, load(carried + i), p.P - i);
    }
  }
};
