// The recurrent layer's forward on a GPU: the product over the inputs of many steps, and the kernels of the
// steps.
#pragma once
#include "ops/cuda_folded.h"
#include "ops/cuda_resident.h"
#include "ops/layer.h"
#include "ops/overlap.h"

namespace rnnfast::cuda {

// Forward: dense tensors, in the dtypes that the kernel reads; x, h0 and c0 as they came
struct LayerForward {
  const LayerSizes& s;
  const Walk& walk;  // of the direction that begins with the first step
  const Tensor& x;   // [N, I] in the walk's order
  const Tensor& h0;  // [D, B, P], or None: zeros
  const Tensor& c0;  // [D, B, H], or None
  const std::array<Weights, 2> weights;
  const DeviceEpisodes& episodes;
  const Tensor& y;      // output_shape(s)
  const Tensor& hn;     // [D, B, P]
  const Tensor& cn;     // [D, B, H] or None
  const Tensor& cs;     // cells_shape(s) or empty
  const Tensor& gates;  // what is saved for backward, or empty
  const Tensor& cells;

  Walk direction(int64_t d) const { return reversed(walk, d == 1); }

  // what a kernel goes on from, [B, padded P] and [B, padded H]: h0 and c0 of a direction
  Tensor hidden(int64_t d) const { return padded_state(h0[d], hn.options()); }
  Tensor cell(int64_t d) const { return s.has_cell ? padded_state(c0[d], hn.options()) : Tensor(); }
};

// the rows of x, or of what has such rows, of the steps begin .. end - 1, one step after the other
inline Tensor rows_of(const LayerSizes& s, const Walk& walk, const Tensor& x, int64_t begin, int64_t end) {
  if (s.packed) {
    const int64_t first = walk.offsets[begin];
    return x.narrow(0, first, walk.offsets[end - 1] + walk.sizes[end - 1] - first);
  }
  const Tensor steps =
      s.batch_first ? x.narrow(1, begin, end - begin).transpose(0, 1) : x.narrow(0, begin, end - begin);
  return steps.reshape({(end - begin) * s.B, x.size(-1)});
}

// so many steps' x W_ih^T are made at once, of so many directions
inline int64_t input_chunk(const LayerForward& f, int directions) {
  return input_chunk(directions * f.s.B * f.s.gates * f.s.H *
                     static_cast<int64_t>(c10::elementSize(accumulation_type(f.x))));
}

// x W_ih^T of direction d for the steps begin .. end - 1 of its walk, in the order of x: row 0 is of time
// `first`
struct InputOfSteps {
  int64_t first;
  Tensor product;
};
inline InputOfSteps input_of(const LayerForward& f, int64_t d, int64_t begin, int64_t end) {
  const Walk walk = f.direction(d);
  const int64_t first = std::min(walk.time(begin), walk.time(end - 1));
  const Tensor rows = rows_of(f.s, walk, f.x, first, first + end - begin);
  return {first, input_product(rows, f.weights[d].w_ih, accumulation_type(f.x), tf32_allowed())};
}

// h_n and c_n of a direction, of padded states; h is undefined where the kernel has written h_n
inline void keep_last(const LayerForward& f, int64_t d, const Tensor& h, const Tensor& c) {
  if (h.defined()) f.hn.select(0, d).copy_(h.narrow(1, 0, f.s.H));
  if (f.s.has_cell) f.cn.select(0, d).copy_(c.narrow(1, 0, f.s.H));
}

// A direction, a launch a step
template <class E>
void forward_stepwise(const LayerForward& f, int64_t d) {
  typedef typename ComputeType<E>::type A;
  const LayerSizes& s = f.s;
  const Tensor h = f.hidden(d), c = f.cell(d);
  const Walk walk = f.direction(d);
  const Weights& w = f.weights[d];
  const Tensor w_hh = padded_rows(w.w_hh), w_hr = s.projected ? padded_rows(w.w_hr) : Tensor();
  const Tensor read = h.to(f.y.scalar_type()).repeat({2, 1, 1});
  const Tensor m = s.projected ? padded_zeros(s.B, s.H, f.y.options()) : Tensor();
  const Tensor anew =
      f.episodes.resets.defined() ? padded_state(f.episodes.reset_h[d], f.y.options()) : Tensor();
  if (f.episodes.lengths.defined()) f.hn.select(0, d).copy_(f.h0[d]);
  ForwardLayer<E> p{};
  p.H = s.H, p.P = s.P, p.Hp = padded(s.H), p.Pp = padded(s.P);
  p.w_hh = in<E>(w_hh), p.w_hr = in<E>(w_hr), p.b_ih = in<E>(w.b_ih), p.b_hh = in<E>(w.b_hh);
  p.tf32 = tf32_allowed();
  p.lengths = in<int64_t>(f.episodes.lengths);
  p.resets = f.episodes.of_direction<A>(s, d), p.anew = in<E>(anew);
  p.h[0] = out<E>(read), p.h[1] = out<E>(read, s.B * p.Pp), p.m = out<E>(m);
  p.state = out<A>(h), p.c = out<A>(c);
  p.hn = out<A>(f.hn, d * s.B * s.P);
  p.y = out<E>(f.y, d * s.P), p.ldy = s.D * s.P;
  p.cs = out<E>(f.cs, d * s.H), p.ldc = s.D * s.H;
  p.gates = out<A>(f.gates, d * s.N * s.slots * p.Hp);
  p.cells = out<A>(f.cells, d * s.N * p.Hp);
  void* const stream = current_stream(f.x.device());
  const int64_t chunk = input_chunk(f, 1);
  for (int64_t begin = 0; begin < s.T; begin += chunk) {
    const int64_t end = std::min(begin + chunk, s.T);
    const InputOfSteps input = input_of(f, d, begin, end);
    for (int64_t step = begin; step < end; ++step) {
      const int64_t t = walk.time(step);
      const int64_t row = s.packed ? walk.offsets[t] - walk.offsets[input.first] : (t - input.first) * s.B;
      const ForwardStep now{walk.offsets[t],
                            walk.row_stride,
                            walk.sizes[t],
                            walk.ends(t),
                            t,
                            walk.time(step + 1),
                            static_cast<int>(step & 1),
                            step > begin};
      check_launch(forward_step<E>(s.mode, p, now, in<A>(input.product, row * s.gates * s.H), stream));
    }
  }
  keep_last(f, d, Tensor(), c);
}

// A direction for the resident kernel, and what it reads and writes
template <class E>
class ResidentDirection {
 public:
  ResidentDirection(const LayerForward& forward, int64_t direction, const ResidentPlan& plan)
      : f(forward),
        d(direction),
        walk(f.direction(d)),
        team(plan.team),
        h(f.s.projected ? padded_zeros(f.s.B, f.s.H, f.hn.options()) : f.hidden(d)),
        c(f.cell(d)),
        w_hh(padded_rows(recurrent_weight(f.weights[d].w_hh, f.weights[d].w_hr, tf32_allowed()),
                         kTile<E> * (plan.tiles + plan.held) * plan.split)) {
    const LayerSizes& s = f.s;
    const Weights& w = f.weights[d];
    if (s.projected) {
      of_h0 = product_in(accumulation_type(f.x), f.h0[d].to(f.x.scalar_type()), w.w_hh.t(), tf32_allowed());
      m = at::empty({s.N, s.H}, f.y.options());
    }
    p.H = s.H, p.Hp = padded(s.H), p.Hw = travelling(s.H, s.gates, false), p.batch = s.B;
    p.links = links_of(plan, s.B, p.Hw * 2 / kWord<E>, h, places);
    p.w_hh = in<E>(w_hh), p.ldw = w_hh.size(1), p.b_ih = in<E>(w.b_ih), p.b_hh = in<E>(w.b_hh);
    p.h = out<A>(h), p.c = out<A>(c);
    p.resets = f.episodes.of_direction<A>(s, d);
    p.rows = p.input_rows = rows_of(s, walk, f.episodes, f.y, sizes);
    if (!s.packed) p.input_rows.step = walk.reverse ? -s.B : s.B, p.input_rows.stride = 1;
    p.y = s.projected ? out<E>(m) : out<E>(f.y, d * s.H), p.ldy = s.projected ? s.H : s.D * s.H;
    p.cs = out<E>(f.cs, d * s.H), p.ldc = s.D * s.H;
    p.gates = out<A>(f.gates, d * s.N * s.slots * p.Hp);
    p.cells = out<A>(f.cells, d * s.N * p.Hp);
  }

  // of the steps begin .. end - 1, until the next call of this
  const ResidentForward<E>& steps(int64_t begin, int64_t end) {
    input = input_of(f, d, begin, end);
    if (f.s.projected) add_h0(begin, end);
    p.steps = end - begin, p.links.first_step = begin;
    p.input = in<A>(input.product), p.inputs = input.product.size(0);
    before = team == Team::kGrid ? h.clone() : h;
    p.h_before = in<A>(before);
    p.input_rows.first = f.s.packed ? -walk.offsets[input.first]
                                    : (walk.time(begin) - input.first) * f.s.B - begin * p.input_rows.step;
    return p;
  }

  // y of these steps, after their launch
  void project(int64_t begin, int64_t end) const {
    const LayerSizes& s = f.s;
    if (!s.projected) return;
    const int64_t first = std::min(walk.time(begin), walk.time(end - 1)), n = end - begin;
    const auto in_order_of_x = [&](const Tensor& rows) {
      if (s.packed) return rows;
      return rows.view({s.batch_first ? s.B : s.T, s.batch_first ? s.T : s.B, rows.size(-1)});
    };
    const Tensor from = rows_of(s, walk, in_order_of_x(m), first, first + n);
    const Tensor made = product(from, f.weights[d].w_hr.t(), tf32_allowed());
    if (s.packed) {
      f.y.narrow(0, walk.offsets[first], made.size(0)).narrow(1, d * s.P, s.P).copy_(made);
      return;
    }
    const Tensor to = f.y.narrow(2, d * s.P, s.P).narrow(s.batch_first ? 1 : 0, first, n);
    (s.batch_first ? to.transpose(0, 1) : to).copy_(made.view({n, s.B, s.P}));
  }

  void finish() const {
    keep_last(f, d, f.s.projected ? Tensor() : h, c);
    if (!f.s.projected) return;
    const Tensor y = f.y.view({f.s.N, f.s.D * f.s.P}).narrow(1, d * f.s.P, f.s.P);
    f.hn.select(0, d).copy_(of_sequences(f.s, walk, y, /*last=*/true));
  }

 private:
  typedef typename ComputeType<E>::type A;

  // what h0 gives to the first step of each sequence, where that is one of these
  void add_h0(int64_t begin, int64_t end) {
    const LayerSizes& s = f.s;
    std::vector<int64_t> rows, sequences;
    each_beginning(walk, begin, end, [&](int64_t t, int64_t b, int64_t n) {
      const int64_t row = s.packed ? walk.offsets[t] - walk.offsets[input.first] : (t - input.first) * s.B;
      for (int64_t i = b; i < b + n; ++i) rows.push_back(row + i), sequences.push_back(i);
    });
    if (rows.empty()) return;
    if (!s.packed) {
      input.product.narrow(0, rows[0], s.B).add_(of_h0);
      return;
    }
    const Tensor to = index_on(of_h0, rows), from = index_on(of_h0, sequences);
    input.product.index_add_(0, to, of_h0.index_select(0, from));
  }

  const LayerForward& f;
  const int64_t d;
  const Walk walk;
  const Team team;
  const Tensor h, c, w_hh;
  Tensor of_h0, m;  // of a projection: W_hh h0, [B, G H]; o tanh(c), [N, H] in the order of y
  Tensor places, sizes, before;
  InputOfSteps input;
  ResidentForward<E> p{};
};

// as many directions as the plan has, from d on
template <class E>
void forward_resident(const LayerForward& f, int64_t d, const ResidentPlan& plan, Lane& lane) {
  c10::SmallVector<ResidentDirection<E>, 2> directions;
  for (int i = 0; i < plan.directions; ++i) directions.emplace_back(f, d + i, plan);
  const int64_t chunk = lane.chunk(input_chunk(f, plan.directions));
  for (int64_t begin = 0; begin < f.s.T; begin += chunk) {
    const int64_t end = std::min(begin + chunk, f.s.T);
    lane.wait_for(end);
    ResidentForward<E> of[2];
    for (int i = 0; i < plan.directions; ++i) of[i] = directions[i].steps(begin, end);
    check_launch(resident_forward<E>(f.s.mode, of, plan, current_stream(f.x.device())));
    for (const auto& direction : directions) direction.project(begin, end);
    lane.done(end);
  }
  for (const auto& direction : directions) direction.finish();
}

inline void forward(const LayerForward& f, const ResidentPlan& plan, Lane& lane) {
  for (int64_t d = 0; d < f.s.D; d += plan.directions)
    run_planned(
        f.x.scalar_type(), plan, [&](auto e) { forward_resident<decltype(e)>(f, d, plan, lane); },
        [&](auto e) { forward_stepwise<decltype(e)>(f, d); });
}

}  // namespace rnnfast::cuda
