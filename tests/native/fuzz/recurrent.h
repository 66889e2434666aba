// A random layer of any cell, beside a plain scalar computation in double; and its gradients.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../cells_in_double.h"
#include "products.h"
#include "rows.h"

namespace {

enum { kX, kH0, kC0, kWIh, kWHh, kBIh, kBHh, kWHr, kResetH, kResetC, kInputs };

struct Sizes {
  Mode mode;
  int64_t G, S, I, H, P;
  bool projected;
};

// y, h_n, c_n, c of every step; resets: of the rows of x, or null
Numbers reference(const Sizes& s, const Rows& rows, const bool* resets, const Numbers& in) {
  const Walk& walk = rows.walk;
  Numbers out{std::vector<double>(rows.places * s.P), in[kH0], in[kC0],
              std::vector<double>(in[kC0].empty() ? 0 : rows.places * s.H)};
  std::vector<double> ax(s.G * s.H), ah(s.G * s.H), m(s.H);
  for (int64_t step = 0; step < walk.steps; ++step) {
    const int64_t t = walk.time(step);
    for (int64_t b = 0; b < walk.sizes[t]; ++b) {
      const int64_t sequence = walk.sequence(b), row = walk.row(t, b);
      double* const h = &out[1][sequence * s.P];
      double* const c = in[kC0].empty() ? nullptr : &out[2][sequence * s.H];
      if (resets && resets[row]) {
        const auto anew = [&](double* to, int64_t n, const std::vector<double>& from) {
          for (int64_t i = 0; to && i < n; ++i) to[i] = from.empty() ? 0 : from[sequence * n + i];
        };
        anew(h, s.P, in[kResetH]);
        anew(c, s.H, in[kResetC]);
      }
      for (int64_t j = 0; j < s.G * s.H; ++j) {
        ax[j] = in[kBIh].empty() ? 0 : in[kBIh][j];
        ah[j] = in[kBHh].empty() ? 0 : in[kBHh][j];
        for (int64_t i = 0; i < s.I; ++i) ax[j] += in[kWIh][j * s.I + i] * in[kX][row * s.I + i];
        for (int64_t i = 0; i < s.P; ++i) ah[j] += in[kWHh][j * s.P + i] * h[i];
      }
      in_double::with_cell(s.mode, [&](auto cell) {
        typedef decltype(cell) Cell;
        for (int64_t u = 0; u < s.H; ++u) {
          double slot[Cell::kSlots] = {}, none = 0;
          for (int g = 0; g < Cell::kGates; ++g) {
            slot[g] += ax[g * s.H + u];
            slot[Cell::kHiddenSlot[g]] += ah[g * s.H + u];
          }
          m[u] = Cell::forward(slot, Cell::kHasCell ? c[u] : none, s.projected ? 0 : h[u]);
          if (Cell::kHasCell) out[3][row * s.H + u] = c[u];
        }
      });
      for (int64_t i = 0; i < s.P; ++i) {
        h[i] = s.projected ? 0 : m[i];
        if (s.projected)
          for (int64_t u = 0; u < s.H; ++u) h[i] += in[kWHr][i * s.H + u] * m[u];
        out[0][row * s.P + i] = h[i];
      }
    }
  }
  return out;
}

template <class E>
void recurrent_backward(const Kernels& k, const Sizes& s, const Rows& rows, const Numbers& in,
                        const BackwardParams<E>& saved, int64_t side, const E* x, const E* w_ih,
                        double near) {
  typedef typename ComputeType<E>::type A;
  const Walk& walk = saved.walk;
  const int64_t N = walk.total, R = rows.places, B = walk.batch, GH = s.G * s.H, ldy = saved.ldy;
  const int64_t lda = whole_lines<E>(GH), ldp = whole_lines<E>(s.P), ldx = whole_lines<E>(s.I);
  // dL/dy, dL/dh_n, dL/dc_n, dL/dc of every step, and dL/dy as it stands in memory
  Numbers d{rng.reals(R * s.P), rng.reals(B * s.P), rng.reals(saved.c0 ? B * s.H : 0),
            rng.reals(saved.c0 && rng.one_in(2) ? R * s.H : 0)};
  std::vector<double> sides(side + (R - 1) * ldy + s.P, std::numeric_limits<double>::quiet_NaN());
  rows.each([&](int64_t row, int64_t) {
    for (int64_t i = 0; i < s.P; ++i) sides[side + row * ldy + i] = d[0][row * s.P + i];
  });
  const Input<E> dy(sides), dcs(d[3]);
  const Input<A> dhn(d[1]), dcn(d[2]);
  for (int64_t i = 0; i < R * s.P; ++i) d[0][i] = 0;
  rows.each([&](int64_t row, int64_t) {
    for (int64_t i = 0; i < s.P; ++i) d[0][row * s.P + i] = sides[side + row * ldy + i];
  });

  BackwardParams<E> p = saved;
  p.dcs = dcs.get(), p.ldc = s.H;
  p.dy = dy.get() + side, p.dhn = dhn.get(), p.dcn = dcn.get();
  if (rng.one_in(8)) p.dy = nullptr, d[0].clear();
  if (rng.one_in(8)) p.dhn = nullptr, d[1].clear();
  if (rng.one_in(8)) p.dcn = nullptr, d[2].clear();
  const bool needs_hr = s.projected && !rng.one_in(8);
  const auto takes = [&](BackwardParams<E>& q, Outputs& o) {
    q.da = o.take_lines<E>("da", N, GH);
    q.dx = s.S > s.G ? o.take_lines<E>("dx", N, GH) : nullptr;
    q.dprojected = s.projected ? o.take_lines<E>("dprojected", N, s.P) : nullptr;
    q.hidden = needs_hr ? o.take<E>("hidden", N, s.H) : nullptr;
    q.dh0 = o.take<A>("dh0", B, s.P);
    q.dc0 = q.c0 ? o.take<A>("dc0", B, s.H) : nullptr;
    const auto sums = [&](const char* name, int64_t n) {
      A* const to = o.take<A>(name, B, n);
      std::fill_n(to, B * n, A(0));
      return to;
    };
    if (q.resets.at) q.resets.dh = sums("dreset_h", s.P);
    if (q.resets.at && q.c0) q.resets.dc = sums("dreset_c", s.H);
  };
  const BackwardParams<E> other = reversed(p);
  const Outputs kept =
      run_both("backward", p, &other, true, sizeof(A) == 4, takes,
               [&](const BackwardParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
                 return k.layer(E()).backward(s.mode, q, plan, workspace, member);
               });

  const E* const dx = p.dx ? p.dx : p.da;
  Numbers g(kInputs);
  const auto of_x = multiplied(k, N, s.I, GH, dx, lda, false, w_ih, ldx);
  g[kX].resize(R * s.I);
  std::vector<const void*> inputs(N);
  rows.each([&](int64_t row, int64_t kept) {
    std::copy_n(of_x.begin() + kept * s.I, s.I, g[kX].begin() + row * s.I);
    inputs[kept] = x + row * ldx;
  });
  g[kH0] = doubles(p.dh0, B, s.P, s.P);
  if (p.dc0) g[kC0] = doubles(p.dc0, B, s.H, s.H);
  g[kWIh] = multiplied(k, GH, s.I, N, dx, lda, true, x, ldx, walk.order ? inputs.data() : nullptr);
  std::vector<double> initial = in[kH0];
  const Input<E> h0(initial);
  if (p.resets.h) g[kResetH] = doubles(p.resets.dh, B, s.P, s.P);
  if (p.resets.c) g[kResetC] = doubles(p.resets.dc, B, s.H, s.H);
  std::vector<double> anew = in[kResetH];
  if (anew.empty()) anew.resize(s.P);
  const Input<E> reset_h(anew);
  std::vector<const void*> previous(N);
  previous_states(walk, bytes_of(h0.get(), s.P), bytes_of(p.y, ldy), p.resets.at,
                  bytes_of(reset_h.get(), p.resets.h ? s.P : 0), previous.data());
  g[kWHh] = multiplied<E>(k, GH, s.P, N, p.da, lda, true, nullptr, 0, previous.data());
  if (!in[kBIh].empty()) g[kBIh] = column_sums(doubles(dx, N, GH, lda), GH);
  if (!in[kBHh].empty()) g[kBHh] = column_sums(doubles(p.da, N, GH, lda), GH);
  if (needs_hr) g[kWHr] = multiplied<E>(k, s.P, s.H, N, p.dprojected, ldp, true, p.hidden, s.H);
  check_gradients(in, g, near, [&](const Numbers& at) {
    const Numbers out = reference(s, rows, p.resets.at, at);
    return dot(d[0], out[0]) + dot(d[1], out[1]) + dot(d[2], out[2]) + dot(d[3], out[3]);
  });
}

template <class E>
void recurrent(const Kernels& k, const Kernels& k_backward) {
  using A = typename ComputeType<E>::type;
  Sizes s{};
  const CellFacts& facts = kCells[rng.in(0, std::size(kCells) - 1)];
  s.mode = facts.mode, s.G = facts.gates, s.S = facts.slots;
  s.I = rng.one_in(50) ? 0 : rng.in(1, 40);
  s.H = rng.in(1, 40);
  if (rng.one_in(100)) s.I = rng.in(1000, 2200), s.H = rng.in(1, 5);  // sums that are cut in blocks
  s.projected = facts.has_cell && rng.one_in(3);
  s.P = s.projected ? rng.in(1, 40) : s.H;
  const bool cell = rng.one_in(10);         // one step, as a cell module calls it: h0 and c0 may be absent
  const bool lone = cell && rng.one_in(2);  // of one row, and whole vectors of units
  if (lone) s.H = 16 * rng.in(1, 3), s.P = s.projected ? s.P : s.H;
  const bool stateless = cell && rng.one_in(2), save = !cell && !rng.one_in(4);
  const bool biases[] = {!rng.one_in(4), !rng.one_in(4)};
  const Rows rows(cell, cell ? 1 : 0, lone ? 1 : 9);
  const Walk& walk = rows.walk;
  const int64_t N = walk.total, R = rows.places, B = walk.batch, GH = s.G * s.H;
  const bool has_cell = facts.has_cell, both = !cell && rng.one_in(2);
  const int64_t ldy = both ? 2 * s.P : s.P, side = both && walk.reverse ? s.P : 0;
  const bool resets = rng.one_in(3), anew = resets && rng.one_in(2), all_states = has_cell && rng.one_in(3);
  describe("%s of %zu bytes, %s%s, T %ld, B %ld, N %ld, I %ld, H %ld, P %ld%s%s%s%s%s%s%s%s", facts.name,
           sizeof(E), rows.name, walk.reverse ? " reversed" : "", long(walk.steps), long(B), long(N),
           long(s.I), long(s.H), long(s.P), biases[0] ? ", b_ih" : "", biases[1] ? ", b_hh" : "",
           save ? ", save" : "", stateless ? ", no state" : "", both ? ", ldy 2 P" : "",
           resets ? ", resets" : "", anew ? " to a state" : "", all_states ? ", all states" : "");

  const double scale = 1.5 / std::sqrt(static_cast<double>(s.P + 1)), state = stateless ? 0 : 1;
  Numbers in(kInputs);
  in[kX] = rng.reals(R * s.I);
  in[kH0] = rng.reals(B * s.P, state);
  in[kC0] = rng.reals(has_cell ? B * s.H : 0, state);
  in[kWIh] = rng.reals(GH * s.I, 1.5 / std::sqrt(s.I + 1.0));
  in[kWHh] = rng.reals(GH * s.P, scale);
  in[kBIh] = rng.reals(biases[0] ? GH : 0);
  in[kBHh] = rng.reals(biases[1] ? GH : 0);
  in[kWHr] = rng.reals(s.projected ? s.P * s.H : 0, scale);
  const Input<E> x(in[kX], s.I);
  const auto stored = [&](int64_t columns) {
    if (sizeof(E) == 8 || rng.one_in(2)) return Stored::kAsRead;
    if (sizeof(E) == 2) return columns % 2 ? Stored::kAsRead : Stored::kFloatForBfloat16;
    return k.products ? Stored::kAsRead
                      : static_cast<Stored>(rng.in(1, static_cast<int>(Stored::kFloatForHalf)));
  };
  const StoredWeight<E> w_ih(in[kWIh], s.I, stored(s.I)), w_hh(in[kWHh], s.P, stored(s.P)),
      w_hr(in[kWHr], s.H, stored(s.H));
  in[kResetH] = rng.reals(anew ? B * s.P : 0);
  in[kResetC] = rng.reals(anew && has_cell ? B * s.H : 0);
  const Input<A> h0(in[kH0]), c0(in[kC0]), b_ih(in[kBIh]), b_hh(in[kBHh]);
  const Input<A> reset_h(in[kResetH]), reset_c(in[kResetC]);
  const std::unique_ptr<bool[]> at(resets ? new bool[R] : nullptr);
  for (int64_t i = 0; resets && i < R; ++i) at[i] = rng.one_in(3);

  ForwardParams<E> p{};
  p.walk = walk;
  p.I = s.I, p.H = s.H, p.P = s.P, p.ldy = ldy;
  p.x = x.get(), p.w_ih = w_ih.get(), p.w_hh = w_hh.get(), p.w_hr = w_hr.get();
  p.b_ih = b_ih.get(), p.b_hh = b_hh.get();
  if (!stateless) p.h0 = h0.get(), p.c0 = c0.get();
  p.resets.at = at.get(), p.resets.h = reset_h.get(), p.resets.c = reset_c.get();
  p.ldc = s.H;
  std::unique_ptr<char[]> frozen;
  if (!s.projected && rng.one_in(3)) {
    frozen.reset(new char[k.layer(E()).freeze(s.G, p, nullptr)]);
    k.layer(E()).freeze(s.G, p, frozen.get());
    p.frozen = frozen.get();
    describe(" frozen");
  }
  const auto takes = [&](ForwardParams<E>& q, Outputs& o) {
    // what narrow vectors leave unwritten whoever reads it wants zero
    const unsigned char padding = k.fills_padding(s.H, sizeof(A)) ? o.fill : 0;
    q.y = o.take_side<E>("y", R, s.P, ldy, side);
    rows.clear_rest(q.y, s.P, ldy);
    if (all_states) {
      q.cs = o.take<E>("cs", R, s.H);
      rows.clear_rest(q.cs, s.H, s.H);
    }
    if constexpr (sizeof(E) == sizeof(A)) q.hn = cell ? q.y : nullptr;
    if (!cell || sizeof(E) < sizeof(A)) q.hn = o.take<A>("hn", B, s.P);
    q.cn = has_cell ? o.take<A>("cn", B, s.H) : nullptr;
    if (!cell) rows.hand_through(q.hn, p.h0, s.P);
    if (q.cn) rows.hand_through(q.cn, p.c0, s.H);
    const bool in_y = s.S == 1 && sizeof(E) == sizeof(A);
    q.gates = save && !in_y ? o.take_saved<A>("gates", B, gate_rows(N) * s.S, s.H, padding) : nullptr;
    q.cells = save && has_cell ? o.take_saved<A>("cells", B, N, s.H, padding) : nullptr;
  };
  const ForwardParams<E> other = reversed(p);
  const Outputs kept =
      run_both("forward", p, &other, true, sizeof(A) == 4, takes,
               [&](const ForwardParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
                 return k.layer(E()).forward(s.mode, q, plan, workspace, member);
               });

  if (fault == "wrong") in[kWHh][0] += 1;
  const Numbers expected = reference(s, rows, at.get(), in);
  const double near = tolerance<E>(k, 1e-9, 1e-4, 0.1);
  check_near("y", doubles(p.y, R, s.P, ldy), expected[0], near);
  if (all_states) check_near("cs", doubles(p.cs, R, s.H, s.H), expected[3], near);
  check_near("hn", doubles(p.hn, B, s.P, s.P), expected[1], near);
  if (has_cell) check_near("cn", doubles(p.cn, B, s.H, s.H), expected[2], near);
  if (!save) return;
  const Input<E> dense_ih(in[kWIh], s.I), dense_hh(in[kWHh]), dense_hr(in[kWHr]);
  BackwardParams<E> q{};
  q.walk = walk;
  q.H = s.H, q.P = s.P, q.ldy = ldy;
  q.w_hh = dense_hh.get(), q.w_hr = dense_hr.get(), q.h0 = p.h0, q.c0 = p.c0;
  q.y = p.y, q.gates = p.gates, q.cells = p.cells, q.resets = p.resets;
  const Kernels& other_k = sizeof(E) == 2 && !k_backward.bf16 ? k : k_backward;
  recurrent_backward<E>(other_k, s, rows, in, q, side, p.x, dense_ih.get(),
                        std::max(gradient_tolerance<E>(k), gradient_tolerance<E>(other_k)));
}

}  // namespace
