// Each step of a kernel against the reference. The reference goes on from what the kernel itself stored of
// the step before (y, or dL/d(pre-activations)), rounded as the kernel rounds what its product reads. So a
// number that falls to the other side of a tie is one rounding apart and no more: nothing feeds back, and the
// limits hold for 500 steps as for one. What a cell carries outside of the product (c, the h that a GRU
// blends, dL/dc) the reference carries in double from the first step on.
#include "compare.h"

#include <cstdio>

namespace rnnfast::device_check {

std::string Comparison::said() const {
  if (right()) return "";
  char text[240];
  if (worst_.b < 0)
    std::snprintf(text, sizeof text, "%s: row %lld, column %lld is not there, not finite, or outside",
                  worst_.what, static_cast<long long>(worst_.step), static_cast<long long>(worst_.k));
  else
    std::snprintf(text, sizeof text, "%s: row %lld of step %lld, number %lld is %.9g, expected %.9g",
                  worst_.what, static_cast<long long>(worst_.b), static_cast<long long>(worst_.step),
                  static_cast<long long>(worst_.k), worst_.found, worst_.expected);
  return text + std::string("; so far off are ") + std::to_string(wrong_) + " of " + std::to_string(count_);
}

std::vector<int64_t> compared_rows(const Setup& s) {
  constexpr double kMost = 2e9;  // products of the reference: a second at the most
  const double each = static_cast<double>(s.walk.T) * facts_of(s.mode).gates * static_cast<double>(s.H * s.H);
  std::vector<int64_t> rows;
  if (each * static_cast<double>(s.walk.B) < kMost / 4)
    for (int64_t b = 0; b < s.walk.B; ++b) rows.push_back(b);
  else
    for (const int64_t b : {int64_t{0}, s.walk.B - 1, s.walk.B / 2})
      if (rows.empty() || each * static_cast<double>(rows.size() + 1) < kMost) rows.push_back(b);
  return rows;
}

template <class E>
void compare_forward(const Forward<E>& layer, const std::vector<int64_t>& rows, Comparison& comparison) {
  const Setup& s = layer.s;
  const Walk& walk = s.walk;
  const int64_t H = s.H, G = layer.G, S = layer.S, Hp = layer.Hp;
  const std::vector<E> y = layer.y.read();
  const std::vector<float> h = layer.h.read(), c = layer.c.read();
  const std::vector<float> gates = layer.gates.read(), cells = layer.cells.read();
  compare_memory("y", y, layer.ldy, layer.column, H, false, comparison);
  compare_memory("gates", gates, Hp, 0, H, true, comparison);
  compare_memory("cells", cells, Hp, 0, H, true, comparison);
  compare_memory("h_n", h, Hp, 0, H, true, comparison);
  compare_memory("c_n", c, Hp, 0, H, true, comparison);

  std::vector<float> read;  // [steps of the rows, H]: what their products read of h
  int64_t steps = 0;
  for (const int64_t b : rows)
    for (int64_t s0 = walk.first_step(b), i = 0; i < walk.length(b); ++i, ++steps) {
      const int64_t before = i ? walk.row(s0 + i - 1, b) * layer.ldy + layer.column : 0;
      for (int64_t k = 0; k < H; ++k)
        read.push_back(operand_of(i ? y[before + k] : stored<E>(layer.h0[b * H + k])));
    }
  const std::vector<double> products = multiply(read, operands(layer.w), true, steps, H, G * H);

  std::vector<double> bias, input(G * H), state(S * H);
  for (const E e : layer.b_hh) bias.push_back(value_of(e));
  const double* product = products.data();
  for (const int64_t b : rows) {
    std::vector<double> h_now(layer.h0.begin() + b * H, layer.h0.begin() + (b + 1) * H), c_now;
    if (facts_of(s.mode).has_cell) c_now.assign(layer.c0.begin() + b * H, layer.c0.begin() + (b + 1) * H);
    const int64_t s0 = walk.first_step(b);
    for (int64_t i = 0; i < walk.length(b); ++i, product += G * H) {
      const int64_t t = walk.time(s0 + i), at = walk.row(s0 + i, b);
      const int64_t from = (walk.packed ? at : t * walk.B + b) * G * H;
      for (int64_t k = 0; k < G * H; ++k) input[k] = double{layer.input[from + k]} + value_of(layer.b_ih[k]);
      forward(s.mode, H, {product, input.data(), bias.data(), h_now.data(), c_now.data(), state.data()});
      for (int64_t k = 0; k < H; ++k) {
        comparison.add("y", b, s0 + i, k, value_of(y[at * layer.ldy + layer.column + k]), h_now[k],
                       limit_of<E>(h_now[k]));
        for (int64_t j = 0; j < S && !gates.empty(); ++j)
          comparison.add("gates", b, s0 + i, j * H + k, gates[(at * S + j) * Hp + k], state[j * H + k],
                         limit_of_float(state[j * H + k]));
        if (!cells.empty())
          comparison.add("cells", b, s0 + i, k, cells[at * Hp + k], c_now[k], limit_of_float(c_now[k]));
      }
    }
    const int64_t last = s0 + walk.length(b) - 1;
    for (int64_t k = 0; k < H; ++k) {
      comparison.add("h_n", b, last, k, h[b * Hp + k], h_now[k], limit_of_float(h_now[k]));
      if (!c.empty()) comparison.add("c_n", b, last, k, c[b * Hp + k], c_now[k], limit_of_float(c_now[k]));
    }
  }
}

template <class E>
void save_states(Backward<E>& layer, const std::vector<int64_t>& rows) {
  const Setup& s = layer.s;
  const Walk& walk = s.walk;
  const int64_t H = s.H, G = layer.G, S = layer.S, Hp = layer.Hp;
  const Repeated<float> pre_activations(10, 2);
  std::vector<float> gates(layer.gates.size()), cells(layer.cells.size());
  std::vector<E> y(layer.y.size());
  const std::vector<double> none(G * H);
  std::vector<double> input(G * H), state(S * H);
  for (const int64_t b : rows) {
    std::vector<double> h(layer.h0.begin() + b * H, layer.h0.begin() + (b + 1) * H), c;
    if (facts_of(s.mode).has_cell) c.assign(layer.c0.begin() + b * H, layer.c0.begin() + (b + 1) * H);
    for (int64_t s0 = walk.first_step(b), i = 0; i < walk.length(b); ++i) {
      const int64_t at = walk.row(s0 + i, b);
      for (int64_t k = 0; k < G * H; ++k) input[k] = pre_activations[at * G * H + k];
      forward(s.mode, H, {none.data(), input.data(), none.data(), h.data(), c.data(), state.data()});
      for (int64_t k = 0; k < H; ++k) {
        store(static_cast<float>(h[k]), y[at * layer.ldy + layer.column + k]);
        for (int64_t j = 0; j < S; ++j) gates[(at * S + j) * Hp + k] = static_cast<float>(state[j * H + k]);
        if (!cells.empty()) cells[at * Hp + k] = static_cast<float>(c[k]);
      }
    }
  }
  for (int64_t b = 1; b < walk.B; ++b) {
    if (std::find(rows.begin(), rows.end(), b) != rows.end()) continue;
    for (int64_t step = 0; step < walk.T; ++step) {
      if (!walk.has(step, b)) continue;
      const int64_t from = walk.row(step, 0), to = walk.row(step, b);
      std::copy_n(gates.begin() + from * S * Hp, S * Hp, gates.begin() + to * S * Hp);
      if (!cells.empty()) std::copy_n(cells.begin() + from * Hp, Hp, cells.begin() + to * Hp);
      std::copy_n(y.begin() + from * layer.ldy, layer.ldy, y.begin() + to * layer.ldy);
    }
  }
  layer.gates.write(gates), layer.y.write(y);
  if (!cells.empty()) layer.cells.write(cells);
}

template <class E>
void compare_backward(const Backward<E>& layer, const std::vector<int64_t>& rows, Comparison& comparison) {
  const Setup& s = layer.s;
  const Walk& walk = s.walk;
  const int64_t H = s.H, G = layer.G, S = layer.S, Hp = layer.Hp, Kp = layer.Kp;
  const std::vector<E> da = layer.da.read(), dx = layer.dx.read(), y = layer.y.read();
  const std::vector<float> dh0 = layer.dh0.read(), dc0 = layer.dc0.read();
  const std::vector<float> gates = layer.gates.read(), cells = layer.cells.read();
  compare_memory("da", da, Kp, 0, G * H, true, comparison);
  compare_memory("dx", dx, Kp, 0, G * H, true, comparison);
  compare_memory("dh_0", dh0, H, 0, H, true, comparison);
  compare_memory("dc_0", dc0, H, 0, H, true, comparison);

  std::vector<float> read;  // [steps of the rows, G H]: what the products of the steps before them read
  int64_t steps = 0;
  for (const int64_t b : rows)
    for (int64_t s0 = walk.first_step(b), i = 0; i < walk.length(b); ++i, ++steps)
      for (int64_t k = 0; k < G * H; ++k) read.push_back(operand_of(da[walk.row(s0 + i, b) * Kp + k]));
  const std::vector<double> products = multiply(read, operands(layer.w), false, steps, G * H, H);

  std::vector<double> state(S * H), before(H), c_before(H), c(H), da_now(G * H), dx_now(G * H);
  int64_t first = 0;  // of a row's products
  for (const int64_t b : rows) {
    const int64_t s0 = walk.first_step(b), length = walk.length(b);
    std::vector<double> dh(layer.dhn.begin() + b * H, layer.dhn.begin() + (b + 1) * H), dc;
    if (facts_of(s.mode).has_cell) dc.assign(layer.dcn.begin() + b * H, layer.dcn.begin() + (b + 1) * H);
    for (int64_t i = length - 1; i >= 0; --i) {
      const int64_t at = walk.row(s0 + i, b), previous = i ? walk.row(s0 + i - 1, b) : 0;
      for (int64_t k = 0; k < H; ++k) {
        for (int64_t j = 0; j < S; ++j) state[j * H + k] = gates[(at * S + j) * Hp + k];
        before[k] = i ? value_of(y[previous * layer.ldy + layer.column + k]) : layer.h0[b * H + k];
        if (facts_of(s.mode).has_cell) {
          c[k] = cells[at * Hp + k];
          c_before[k] = i ? cells[previous * Hp + k] : layer.c0[b * H + k];
        }
        if (i + 1 < length) dh[k] += products[(first + i + 1) * H + k];
        dh[k] += value_of(layer.dy_numbers[at * layer.ldy + layer.column + k]);
      }
      backward(s.mode, H,
               {state.data(), before.data(), c_before.data(), c.data(), dh.data(), dc.data(), da_now.data(),
                dx_now.data()});
      for (int64_t k = 0; k < G * H; ++k) {
        comparison.add("da", b, s0 + i, k, value_of(da[at * Kp + k]), da_now[k], limit_of<E>(da_now[k]));
        if (!dx.empty())
          comparison.add("dx", b, s0 + i, k, value_of(dx[at * Kp + k]), dx_now[k], limit_of<E>(dx_now[k]));
      }
    }
    for (int64_t k = 0; k < H; ++k) {
      const double expected = dh[k] + products[first * H + k];
      comparison.add("dh_0", b, s0, k, dh0[b * H + k], expected, limit_of_float(expected));
      if (!dc0.empty()) comparison.add("dc_0", b, s0, k, dc0[b * H + k], dc[k], limit_of_float(dc[k]));
    }
    first += length;
  }
}

#define RNNFAST_COMPARE(E)                                                                    \
  template void compare_forward(const Forward<E>&, const std::vector<int64_t>&, Comparison&); \
  template void save_states(Backward<E>&, const std::vector<int64_t>&);                       \
  template void compare_backward(const Backward<E>&, const std::vector<int64_t>&, Comparison&);
RNNFAST_COMPARE(Bfloat16)
RNNFAST_COMPARE(Half)
RNNFAST_COMPARE(float)

}  // namespace rnnfast::device_check
