// One layer's arrays on the device, laid out as csrc/ops/cuda_layer.cpp lays them out, and its kernel run on
// them.
#pragma once
#include <algorithm>
#include <cmath>

#include "device.h"
#include "numbers.h"
#include "reference.h"
#include "shapes.h"

namespace rnnfast::device_check {

inline int64_t padded(int64_t n, int64_t to = 16) { return (n + to - 1) / to * to; }

// [rows, n] with rows of `padded_n`, the rest zeros
template <class T>
std::vector<T> with_padding(const std::vector<T>& from, int64_t n, int64_t padded_n) {
  const int64_t rows = static_cast<int64_t>(from.size()) / n;
  std::vector<T> to(rows * padded_n);
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from.begin() + i * n, n, to.begin() + i * padded_n);
  return to;
}

// Arbitrary numbers that repeat after a prime number of them: long arrays need no memory of the host.
template <class E>
struct Repeated {
  static constexpr int64_t kPeriod = 1048573;
  std::vector<E> numbers;

  Repeated(uint32_t stream, float size) : numbers(draw<E>(stream, kPeriod, size)) {}
  E operator[](int64_t i) const { return numbers[i % kPeriod]; }
};

template <class E>
struct Common {
  typedef float A;
  Setup s;
  int64_t G, S, Hp, Hw, ldy, column;
  std::vector<E> w;       // [G H, H]
  std::vector<A> h0, c0;  // [B, H]

  Common(const Setup& setup, bool backward)
      : s(setup),
        G(facts_of(s.mode).gates),
        S(facts_of(s.mode).slots),
        Hp(padded(s.H)),
        Hw(s.plan.units ? s.plan.blocks * s.plan.units : cuda::travelling(s.H, G, backward)),
        // backwards as the second of two directions, whose numbers stand side by side
        ldy(s.walk.reverse ? 2 * s.H : s.H),
        column(s.walk.reverse ? s.H : 0),
        w(draw<E>(1, G * s.H * s.H, std::sqrt(3.0f / static_cast<float>(s.H)))),
        h0(rounded(2)),
        c0(facts_of(s.mode).has_cell ? rounded(3) : std::vector<A>()) {
    if (!s.walk.packed) return;
    offsets = Array<int64_t>(s.walk.offsets);
    sizes = Array<int64_t>(s.walk.sizes);
  }

  // [B, H]: states come as what a tensor stores, and are computed with
  std::vector<A> rounded(uint32_t stream) const {
    std::vector<A> numbers;
    for (const E e : draw<E>(stream, s.walk.B * s.H, 1)) numbers.push_back(value_of(e));
    return numbers;
  }

  cuda::Rows rows() const {
    cuda::Rows r{};
    r.batch = s.walk.B, r.steps = s.walk.T, r.reverse = s.walk.reverse;
    r.offsets = offsets.get(), r.sizes = sizes.get(), r.stride = 1;
    if (s.walk.packed) return r;
    r.first = s.walk.row(0, 0), r.stride = s.walk.stride();
    r.step = (s.walk.reverse ? -1 : 1) * (s.walk.batch_first ? 1 : s.walk.B);
    return r;
  }

  // numbers: of a row that travel
  cuda::Links links(int64_t numbers) {
    cuda::Links l{};
    l.blocks = s.plan.blocks, l.split = s.plan.split, l.batches = s.plan.batches, l.held = s.plan.held;
    if (s.plan.team == cuda::Team::kBlock) return l;
    l.patience = cuda::current_device().patience;
    l.failed = cuda::failure_word();
    if (s.plan.team == cuda::Team::kCluster) return l;
    const int64_t team = cuda::kBatch * s.plan.batches;
    places = Array<uint64_t>((s.walk.B + team - 1) / team * team * numbers * 2 / cuda::kWord<E>);
    l.places = places.get();
    return l;
  }

  Array<int64_t> offsets, sizes;
  Array<uint64_t> places;
};

template <class E>
struct Forward : Common<E> {
  using typename Common<E>::A;
  using Common<E>::s;
  std::vector<E> b_ih, b_hh;  // [G H]
  Repeated<A> input{6, 2};    // [N, G H], step after step whatever y's order
  Array<E> w_hh, bias_ih, bias_hh, y;
  Array<A> inputs, before, h, c, gates, cells;
  cuda::ResidentForward<E> p{};

  // saves: what backward needs
  Forward(const Setup& setup, bool saves)
      : Common<E>(setup, false),
        b_ih(draw<E>(4, this->G * s.H, 0.5f)),
        b_hh(draw<E>(5, this->G * s.H, 0.5f)) {
    const int64_t N = s.walk.rows, H = s.H, GH = this->G * H, Hp = this->Hp;
    const int64_t ldw = cuda::kTile<E> * (s.plan.tiles + s.plan.held) * s.plan.split;
    const auto states = [&](bool needed) { return needed ? Array<A>(s.walk.B * Hp) : Array<A>(); };
    w_hh = Array<E>(with_padding(this->w, H, ldw));
    bias_ih = Array<E>(b_ih), bias_hh = Array<E>(b_hh);
    inputs = Array<A>(N * GH), inputs.write_repeated(input.numbers);
    before = states(s.plan.team == cuda::Team::kGrid), h = states(true),
    c = states(facts_of(s.mode).has_cell);
    y = Array<E>(N * this->ldy);
    if (saves) gates = Array<A>(N * this->S * Hp);
    if (saves && facts_of(s.mode).has_cell) cells = Array<A>(N * Hp);
    p.H = H, p.Hp = Hp, p.Hw = this->Hw, p.batch = s.walk.B;
    p.links = this->links(p.Hw);
    p.rows = p.input_rows = this->rows();
    if (!s.walk.packed) p.input_rows.step = s.walk.reverse ? -s.walk.B : s.walk.B, p.input_rows.stride = 1;
    p.w_hh = w_hh.get(), p.ldw = ldw, p.b_ih = bias_ih.get(), p.b_hh = bias_hh.get();
    p.h = h.get(), p.c = c.get();
    p.y = y.get() + this->column, p.ldy = this->ldy;
    p.gates = gates.get(), p.cells = cells.get();
  }

  // nothing is there yet but the state before
  void prepare() {
    this->places.zero();
    h.write(with_padding(this->h0, s.H, this->Hp));
    if (c.size()) c.write(with_padding(this->c0, s.H, this->Hp));
    for (Array<A>* of : {&gates, &cells})
      if (of->size()) of->poison();
    y.poison();
  }

  // in so many launches, each of which has the input of its own steps only
  void launch(int64_t launches = 1) {
    const Walk& walk = s.walk;
    const int64_t chunk = (walk.T + launches - 1) / launches;
    for (int64_t begin = 0; begin < walk.T; begin += chunk) {
      const int64_t end = std::min(begin + chunk, walk.T);
      const int64_t first = std::min(walk.time(begin), walk.time(end - 1));
      const int64_t row = walk.packed ? walk.offsets[first] : first * walk.B;
      p.steps = end - begin, p.links.first_step = begin;
      p.input = inputs.get() + row * this->G * s.H, p.inputs = s.walk.rows - row;
      p.input_rows.first = walk.packed ? -row : walk.time(begin) * walk.B - row - begin * p.input_rows.step;
      p.h_before = h.get();
      if (before.size()) {
        if (begin == 0)
          before.write(with_padding(this->h0, s.H, this->Hp));
        else
          finish(nullptr), before.write(h.read());
        p.h_before = before.get();
      }
      must(resident_forward(s.mode, &p, s.plan, nullptr));
    }
  }
};

// What forward saved is the caller's to fill in: gates, cells and y.
template <class E>
struct Backward : Common<E> {
  using typename Common<E>::A;
  using Common<E>::s;
  int64_t Kp;
  Repeated<E> dy_numbers{7, 1};  // [N, ldy]
  std::vector<A> dhn, dcn;       // [B, H]
  Array<E> w_hh, y, dy, da, dx;
  Array<A> h_begin, c_begin, dh_end, dc_end, gates, cells, dh0, dc0;
  cuda::ResidentBackward<E> p{};

  explicit Backward(const Setup& setup)
      : Common<E>(setup, true),
        Kp(padded(this->G * s.H)),
        dhn(this->rounded(8)),
        dcn(facts_of(s.mode).has_cell ? this->rounded(9) : std::vector<A>()) {
    const int64_t N = s.walk.rows, H = s.H, Hp = this->Hp, Hw = this->Hw, ldw = padded(this->G * Hw);
    std::vector<E> turned(H * ldw);
    for (int64_t g = 0; g < this->G; ++g)
      for (int64_t unit = 0; unit < H; ++unit)
        for (int64_t k = 0; k < H; ++k) turned[k * ldw + g * Hw + unit] = this->w[(g * H + unit) * H + k];
    w_hh = Array<E>(turned);
    h_begin = Array<A>(this->h0), dh_end = Array<A>(dhn);
    gates = Array<A>(N * this->S * Hp), y = Array<E>(N * this->ldy), dy = Array<E>(N * this->ldy);
    dy.write_repeated(dy_numbers.numbers);
    da = Array<E>(N * Kp), dh0 = Array<A>(s.walk.B * H);
    if (this->S > this->G) dx = Array<E>(N * Kp);
    if (facts_of(s.mode).has_cell) {
      c_begin = Array<A>(this->c0), dc_end = Array<A>(dcn);
      cells = Array<A>(N * Hp), dc0 = Array<A>(s.walk.B * H);
    }
    p.H = H, p.Hp = Hp, p.Hw = Hw, p.Kp = Kp, p.steps = s.walk.T, p.batch = s.walk.B, p.N = N;
    p.links = this->links(this->G * Hw);
    p.rows = this->rows();
    p.w_hh_t = w_hh.get(), p.ldw = ldw;
    p.h0 = h_begin.get(), p.c0 = c_begin.get();
    p.y = y.get() + this->column, p.dy = dy.get() + this->column, p.ldy = this->ldy;
    p.dhn = dh_end.get(), p.dcn = dc_end.get();
    p.gates = gates.get(), p.cells = cells.get();
    p.da = da.get(), p.dx = dx.get(), p.dh0 = dh0.get(), p.dc0 = dc0.get();
  }

  void prepare() {
    this->places.zero();
    for (Array<E>* of : {&da, &dx})
      if (of->size()) of->poison();
    for (Array<A>* of : {&dh0, &dc0})
      if (of->size()) of->poison();
  }
  void launch() { must(resident_backward(s.mode, &p, s.plan, nullptr)); }
};

}  // namespace rnnfast::device_check
