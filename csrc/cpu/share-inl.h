// How a call is cut into parts: rows, or vectors of hidden units, or everything.
// Compiled once per instruction set, inside its namespace. No guard on purpose.

struct Part {
  int index, parts;
  Range rows;  // of the batch
  Cut cut;     // of the units

  // the rows of ours that time step t still has
  Range active(const Walk& walk, int64_t t) const {
    return {rows.begin, most(rows.begin, least(rows.end, walk.sizes[t]))};
  }
};

struct Share {
  Plan plan;
  int64_t batch;
  Team::Member& member;

  // f(part) for every part, by whoever does it; then all are done
  template <class F>
  RNNFAST_INLINE void phase(const F& f) const {
    member.phase([&](int i) {
      f(plan.split == Split::kUnits  ? Part{i, plan.parts, {0, batch}, {plan.parts, i}}
        : plan.split == Split::kRows ? Part{i, plan.parts, share(batch, plan.parts, i), {1, 0}}
                                     : Part{i, plan.parts, {0, batch}, {1, 0}});
    });
  }

  // f(part, k) for k = 0 .. n - 1 in turn. Where units are shared one part reads what others wrote, so all of
  // k is done before k + 1 begins; rows never meet.
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
  template <class E>
  void pack(const Packed<E>& w, const Part& part) const {
    if (w.once) return;
    if (plan.split == Split::kUnits)
      w.pack(w.vectors_of(part.cut), {0, 1});
    else
      w.pack({0, w.vectors()}, {part.index, part.parts});
  }

  // what a part does of work that is shared by rows in any case
  Range rows_of(const Part& part) const { return share(batch, part.parts, part.index); }
};

// from [rows, n] to [rows, np], the rest zero; a null source counts as zero
template <class E, class A>
void copy_padded(E* to, int64_t np, const A* from, int64_t n, Range rows) {
  constexpr int L = Vec<A>::kLanes;
  for (int64_t b = rows.begin; b < rows.end; ++b)
    for (int64_t i = 0; i < np; i += L)
      store(to + b * np + i, from ? load_part(from + b * n + i, n - i) : typename Vec<A>::type{});
}

// Steps whose input products are made at once: enough rows for full tiles, few enough to stay in the cache.
template <class A>
int64_t chunk_steps(const Walk& walk, int64_t row_size, int64_t members) {
  constexpr int64_t kRows = 24, kBytes = 192 * 1024;
  const int64_t rows = most(kRows, members * kBytes / (row_size * int64_t(sizeof(A))));
  return least(walk.steps, most<int64_t>(1, rows / most<int64_t>(1, walk.batch)));
}
