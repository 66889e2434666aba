// How one member of the team finds its slices of a call: rows, or vectors of hidden units, or everything.
// Compiled once per instruction set, inside its namespace. No guard on purpose.

struct Part {
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

  template <class F>
  RNNFAST_INLINE void for_parts(F f) const {
    const Range mine = share(plan.parts, member.size, member.rank);
    for (int64_t i = mine.begin; i < mine.end; ++i)
      f(plan.split == Split::kUnits  ? Part{{0, batch}, {plan.parts, i}}
        : plan.split == Split::kRows ? Part{share(batch, plan.parts, i), {1, 0}}
                                     : Part{{0, batch}, {1, 0}});
  }

  // Who shares units packs his own, so that they lie in his cache; else all take turns.
  template <class W>
  void pack(const Packed<W>& w) const {
    if (w.once) return;
    if (plan.split == Split::kUnits)
      for_parts([&](const Part& part) { w.pack(w.vectors_of(part.cut), {0, 1}); });
    else
      w.pack({0, w.vectors()}, {member.rank, member.size});
  }

  // Between two phases in which one reads what another wrote. Rows never meet.
  void meet() const {
    if (plan.split == Split::kUnits) member.barrier();
  }

  Range batch_share() const { return share(batch, member.size, member.rank); }
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
