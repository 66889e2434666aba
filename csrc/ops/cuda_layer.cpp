// The recurrent layer's ops on a GPU. The recurrence is a kernel of csrc/cuda; the products over all time
// steps at once are torch's. Compiles beside a CPU build of torch, because it names no device: the tests run
// it on CPU tensors, with the kernels emulated.
#include <ATen/Context.h>
#include <ATen/ops/constant_pad_nd.h>

#include <limits>

#include "cuda/plan.h"
#include "ops/cuda_forward.h"
#include "ops/cuda_single.h"
#include "ops/overlap_backward.h"

namespace rnnfast::cuda {
namespace {

constexpr const char *kForward = "rnnfast::recurrent", *kBackward = "rnnfast::recurrent_backward";

Shape shape_of(const LayerSizes& s, const Tensor& x, const EpisodeArguments& episodes, bool backward) {
  const int bytes = static_cast<int>(x.element_size());
  const Device device = planned_device(current_device());
  return {s.mode,
          bytes,
          tf32_allowed(),
          s.H,
          s.B,
          s.projected,
          backward,
          device,
          static_cast<int>(s.D),
          s.T,
          episodes.lengths.defined(),
          s.I,
          episodes.resets.defined()};
}

// A graph would replay the copy of a PackedSequence's sizes from memory that is long gone; the stepwise
// kernel has them as arguments. A resident kernel counts rows in 32 bits.
ResidentPlan plan_of(const LayerSizes& s, const Tensor& x, const EpisodeArguments& episodes, bool backward) {
  if (s.N == 0) return kOneLaunchAStep;  // and no launch
  check_waited();
  const bool countable = s.N <= std::numeric_limits<int32_t>::max();
  const bool resident = countable && !(s.packed && capturing(current_stream(x.device())));
  const Shape shape = shape_of(s, x, episodes, backward);
  const ResidentPlan plan = resident ? choose_plan(shape) : stepwise_plan(shape);
  set_last_run(backward ? "recurrent_backward" : "recurrent", plan);
  return plan;
}

class Backward : public LayerBackward {
 public:
  Backward(const LayerSizes& sizes, const RecurrentBackwardArguments& a, const ResidentPlan& planned,
           BackwardLane& on)
      : LayerBackward(sizes, a, walk_of(sizes, a.layer.batch_sizes)),
        plan(planned),
        lane(on),
        tf32(tf32_allowed()),
        type(accumulation_type(input)),
        device_episodes(kBackward, sizes, a.episodes, input) {
    const LayerArguments& l = a.layer;
    const auto dense = [](const Tensor& t) { return cuda::dense(t); };
    weights = converted(l.weights, dense, dense);
    x = input.contiguous().view({s.N, s.I}), y = a.y.contiguous();
    dy = cuda::dense(a.dy), dcs = cuda::dense(a.dcs);
    h0 = cuda::dense(l.h0, type), c0 = cuda::dense(l.c0, type);
    dhn = cuda::dense(a.dhn, type), dcn = cuda::dense(a.dcn, type);
    gates = a.gates.contiguous(), cells = a.cells.contiguous();
    const at::TensorOptions options = y.options().dtype(type);
    const auto zeros = [&](int64_t units) { return at::zeros({s.D, s.B, units}, options); };
    dh0 = zeros(s.P);
    if (s.has_cell) dc0 = zeros(s.H);
    if (episodes.lengths.defined()) {  // of sequences without a step
      if (dhn.defined()) dh0.copy_(dhn);
      if (dcn.defined()) dc0.copy_(dcn);
    }
    if (episodes.resets.defined()) {
      dreset_h = zeros(s.P);
      if (s.has_cell) dreset_c = zeros(s.H);
    }
  }

 private:
  const ResidentPlan plan;
  BackwardLane& lane;
  const bool tf32;
  const at::ScalarType type;
  const DeviceEpisodes device_episodes;
  std::array<DirectionGradients, 2> made;  // of a direction and, side by side, of the next
  Tensor dx_of_lane;                       // [N, I], made where the lane is

  // [N, n], padded, of which a kernel fills the rows that take part
  Tensor rows_to_fill(int64_t n, const at::TensorOptions& options) const {
    return episodes.lengths.defined() ? padded_zeros(s.N, n, options) : padded_empty(s.N, n, options);
  }

  // What both kinds of kernels have in common
  template <class Params>
  void fill(Params& p, const DirectionGradients& r, int64_t d) const {
    typedef typename Params::A A;
    typedef typename Params::Element E;
    p.H = s.H, p.Hp = padded(s.H), p.Kp = padded(s.gates * s.H);
    p.h0 = in<A>(h0, d * s.B * s.P), p.c0 = in<A>(c0, d * s.B * s.H);
    p.resets = device_episodes.of_direction<A>(s, d);
    p.resets.dh = out<A>(dreset_h, d * s.B * s.P), p.resets.dc = out<A>(dreset_c, d * s.B * s.H);
    p.y = in<E>(y, d * s.P), p.dy = in<E>(dy, d * s.P), p.ldy = s.D * s.P;
    p.dcs = in<E>(dcs, d * s.H), p.ldc = s.D * s.H;
    p.dhn = in<A>(dhn, d * s.B * s.P), p.dcn = in<A>(dcn, d * s.B * s.H);
    p.gates = in<A>(gates, d * s.N * s.slots * p.Hp);
    p.cells = s.has_cell ? in<A>(cells, d * s.N * p.Hp) : nullptr;
    p.da = out<E>(r.da), p.dx = r.dx.is_same(r.da) ? nullptr : out<E>(r.dx);
    p.dh0 = out<A>(dh0, d * s.B * s.P), p.dc0 = out<A>(dc0, d * s.B * s.H);
  }

  // as many directions as the plan has, from `first` on
  template <class E>
  void resident(int64_t first) {
    ResidentBackward<E> of[2];
    std::array<std::vector<Tensor>, 2> kept;
    for (int i = 0; i < plan.directions; ++i) of[i] = resident_direction<E>(made[i], first + i, kept[i]);
    const auto launch = [&] {
      check_launch(resident_backward<E>(s.mode, of, plan, current_stream(y.device())));
    };
    if (!lane.is_open()) return launch();
    const ResidentBackward<E> whole = of[0];
    if (wanted[kDx]) dx_of_lane = at::empty({s.N, s.I}, y.options());
    for (int64_t end = s.T; end > 0;) {
      const int64_t begin = std::max<int64_t>(end - lane.chunk(s.T), 0);
      lane.wait_for(begin);
      std::array<Tensor, 2> before;
      of[0] = part_of(whole, begin, end, before);
      launch();
      if (wanted[kDx]) make_input_gradient(begin, end);
      lane.done(begin);
      end = begin;
    }
  }
  // The steps begin .. end - 1 of a plain walk as a walk of their own: the state before them was saved, and
  // its gradient from the steps after them is where those have left it. `before` has to live until the
  // launch.
  template <class E>
  ResidentBackward<E> part_of(ResidentBackward<E> p, int64_t begin, int64_t end,
                              std::array<Tensor, 2>& before) const {
    typedef typename ComputeType<E>::type A;
    if (end < s.T) p.dhn = p.dh0, p.dcn = p.dc0;
    if (begin > 0) {
      const int64_t at = p.rows.first + (begin - 1) * p.rows.step;
      const auto rows = [&](const Tensor& of, int64_t ld) {
        return of.as_strided({s.B, s.H}, {p.rows.stride * ld, 1}, of.storage_offset() + at * ld)
            .to(type)
            .contiguous();
      };
      before = {blends() ? rows(y, p.ldy) : Tensor(), s.has_cell ? rows(cells, p.Hp) : Tensor()};
      p.h0 = in<A>(before[0]), p.c0 = in<A>(before[1]);
    }
    p.steps = p.rows.steps = end - begin;
    p.rows.first += begin * p.rows.step;
    return p;
  }
  bool blends() const { return s.slots > s.gates; }
  // dx of these steps
  void make_input_gradient(int64_t begin, int64_t end) {
    const int64_t n = end - begin, time = s.batch_first ? 1 : 0;
    const auto steps = [&](const Tensor& rows) {
      return rows.view({s.batch_first ? s.B : s.T, s.batch_first ? s.T : s.B, rows.size(1)})
          .narrow(time, begin, n);
    };
    const Tensor to = steps(dx_of_lane), from = steps(made[0].dx).narrow(2, 0, s.gates * s.H);
    to.copy_(product(from.reshape({n * s.B, from.size(2)}), weights[0].w_ih, tf32).view(to.sizes()));
  }
  // `kept` has to live until the launch
  template <class E>
  ResidentBackward<E> resident_direction(const DirectionGradients& r, int64_t d,
                                         std::vector<Tensor>& kept) const {
    Tensor places, sizes;
    ResidentBackward<E> p{};
    fill(p, r, d);
    if (s.projected) fold(p, d, kept);
    p.steps = s.T, p.batch = s.B, p.N = s.N;
    p.Hw = plan.units ? plan.blocks * plan.units : travelling(s.H, s.gates, true);
    p.links = links_of(plan, s.B, s.gates * p.Hw * 2 / kWord<E>, y, places);
    const Tensor w = recurrent_weight(weights[d].w_hh, weights[d].w_hr, tf32);
    const Tensor gates_apart = at::constant_pad_nd(w.view({s.gates, s.H, s.H}), {0, 0, 0, p.Hw - s.H});
    const Tensor w_hh = padded_rows(gates_apart.view({s.gates * p.Hw, s.H}).t());
    p.w_hh_t = in<E>(w_hh), p.ldw = w_hh.size(1);
    p.rows = rows_of(s, direction(d), device_episodes, y, sizes);
    kept.insert(kept.end(), {places, sizes, w_hh});
    return p;
  }
  // With a projection the kernel goes from the gradients of m = o tanh(c) to those of the gates; see
  // cuda_folded.h. No cell that has one reads h or y.
  template <class E>
  void fold(ResidentBackward<E>& p, int64_t d, std::vector<Tensor>& kept) const {
    typedef typename ComputeType<E>::type A;
    const Tensor& w_hr = weights[d].w_hr;
    const auto of_m = [&](const Tensor& dh) { return product(dh, w_hr.to(dh.scalar_type()), tf32); };
    const Tensor dm = dy.defined() ? of_m(of_direction(dy, d)) : Tensor();
    const Tensor dmn = dhn.defined() ? of_m(dhn[d]) : Tensor(), dm0 = at::empty({s.B, s.H}, dh0.options());
    p.dy = in<E>(dm), p.dhn = in<A>(dmn), p.dh0 = out<A>(dm0), p.ldy = s.H;
    kept.insert(kept.end(), {dm, dmn, dm0});
  }
  // And after it: what the products of the weights' gradients are made of, and dh0.
  void unfold(DirectionGradients& r, int64_t d) const {
    const Walk walk = direction(d);
    // dL/dh, from the da of the step after
    const auto carried = [&](const Tensor& da) { return product_in(type, da, weights[d].w_hh, tf32); };
    if (wanted[kDh0]) dh0.select(0, d).copy_(carried(of_sequences(s, walk, r.da, /*last=*/false)));
    if (!wants(d, kWhr)) return;
    const Tensor last = dhn.defined() ? dhn[d] : at::zeros({s.B, s.P}, dh0.options());
    const Tensor dh = rows_after(s, walk, carried(r.da), last);
    r.dprojected = (dy.defined() ? dh.add(of_direction(dy, d)) : dh).to(y.scalar_type());
    const auto of_units = [&](const Tensor& saved) { return saved.narrow(-1, 0, s.H); };
    const Tensor output_gate = of_units(gates[d].select(1, s.gates - 1));  // as Lstm::output has it
    r.hidden = output_gate.mul(of_units(cells[d]).tanh()).to(y.scalar_type());
  }
  // rows [N, P] of what is as y
  Tensor of_direction(const Tensor& t, int64_t d) const {
    return t.view({s.N, s.D * s.P}).narrow(1, d * s.P, s.P);
  }

  template <class E>
  void stepwise(DirectionGradients& r, int64_t d) const {
    typedef typename ComputeType<E>::type A;
    const Walk walk = direction(d);
    const WeightsOf<Tensor>& w = weights[d];
    const at::TensorOptions element = y.options(), options = dh0.options();
    const auto rows = [&](int64_t n) {
      return episodes.lengths.defined() ? at::zeros({s.N, n}, element) : at::empty({s.N, n}, element);
    };
    if (wants(d, kWhh)) r.h_previous = rows(s.P);
    if (s.projected) r.dprojected = rows_to_fill(s.P, element);
    if (wants(d, kWhr)) r.hidden = rows(s.H);
    const Tensor w_hh = padded_rows(w.w_hh.t()), w_hr = s.projected ? padded_rows(w.w_hr.t()) : Tensor();
    const Tensor direct = padded_zeros(s.B, s.P, options);
    const Tensor dc = s.has_cell ? padded_zeros(s.B, s.H, options) : Tensor();
    BackwardLayer<E> p{};
    fill(p, r, d);
    p.P = s.P, p.Pp = padded(s.P), p.tf32 = tf32;
    p.lengths = in<int64_t>(device_episodes.lengths);
    p.w_hh_t = in<E>(w_hh), p.w_hr_t = in<E>(w_hr);
    p.direct = out<A>(direct), p.dc = out<A>(dc);
    p.h_previous = out<E>(r.h_previous), p.dprojected = out<E>(r.dprojected), p.hidden = out<E>(r.hidden);
    void* const stream = current_stream(y.device());
    for (int64_t step = s.T; step >= 0; --step) {
      BackwardStep b{};
      b.stride = walk.row_stride;
      b.follows = step < s.T;
      if (step > 0) {
        const int64_t t = walk.time(step - 1);
        b.row = walk.offsets[t], b.n = walk.sizes[t], b.begins = walk.begins(t);
        b.t = t, b.before_t = walk.before(t);
        b.previous = b.begins > 0 ? walk.row(walk.before(t), 0) : 0;
      }
      if (step < s.T) {
        b.later_t = walk.time(step);
        b.later = walk.offsets[b.later_t], b.later_n = walk.sizes[b.later_t];
      }
      check_launch(backward_step<E>(s.mode, p, b, stream));
    }
  }

  DirectionGradients through_time(int64_t d) override {
    const int i = static_cast<int>(d) % plan.directions;
    if (i == 0) run_from(d);
    lane.join({x, y, h0, dh0, dc0, made[0].da, made[0].dx, dx_of_lane});
    if (is_resident(plan) && s.projected) unfold(made[i], d);
    if (is_resident(plan) && wants(d, kWhh))
      made[i].h_previous = previous_states(s, direction(d), device_episodes, y, h0[d], d);
    return std::move(made[i]);
  }

  void run_from(int64_t first) {
    const int64_t GH = s.gates * s.H;
    for (int i = 0; i < plan.directions; ++i) {
      made[i].da = rows_to_fill(GH, y.options());
      made[i].dx = s.slots > s.gates ? rows_to_fill(GH, y.options()) : made[i].da;
    }
    run_planned(
        y.scalar_type(), plan, [&](auto e) { resident<decltype(e)>(first); },
        [&](auto e) { stepwise<decltype(e)>(made[0], first); });
    for (int i = 0; i < plan.directions; ++i) {
      DirectionGradients& r = made[i];
      r.da = r.da.narrow(1, 0, GH);
      r.dx = r.dx.narrow(1, 0, GH);
      if (r.dprojected.defined()) r.dprojected = r.dprojected.narrow(1, 0, s.P);
    }
  }

  void add_input_gradient(Tensor& dx, const DirectionGradients& r, int64_t d) override {
    const Tensor of_direction = dx_of_lane.defined() ? dx_of_lane : product(r.dx, weights[d].w_ih, tf32);
    dx = d ? dx.add_(of_direction) : of_direction;
  }

  void weight_gradients(Tensor* to, const DirectionGradients& r, int64_t d) override {
    // whose zeros do not take NaN from x
    if (wants(d, kWih)) to[kWih] = product(r.dx.t(), device_episodes.without_beyond(s, x), tf32);
    if (wants(d, kWhh)) to[kWhh] = product(r.da.t(), r.h_previous, tf32);
    if (wants(d, kBih)) to[kBih] = r.dx.sum(0, false, type);
    if (wants(d, kBhh)) to[kBhh] = r.da.sum(0, false, type);
    if (wants(d, kWhr)) to[kWhr] = product(r.dprojected.t(), r.hidden, tf32);
  }

  Tensor finished(const Tensor& dx) override { return dx; }
  Tensor empty(at::IntArrayRef size, at::ScalarType dtype) const override {
    return at::empty(size, input.options().dtype(dtype));
  }
};

}  // namespace

RecurrentResult recurrent(const RecurrentArguments& a) {
  const LayerArguments& l = a.layer;
  refuse_reserved(kForward, a);
  const LayerSizes s = check_layer(kForward, l);
  check_episodes(kForward, s, l.x, a.episodes);
  const c10::OptionalDeviceGuard guard(l.x.device());
  const at::TensorOptions element = l.x.options().memory_format(at::MemoryFormat::Contiguous);
  const at::TensorOptions options = element.dtype(accumulation_type(l.x));
  const ResidentPlan plan = plan_of(s, l.x, a.episodes, /*backward=*/false);
  const auto empty = [&](bool needed, std::vector<int64_t> sizes, const at::TensorOptions& of) {
    return at::empty(needed ? at::IntArrayRef(sizes) : at::IntArrayRef({0}), of);
  };
  // what the kernels leave out is zero
  const auto of_steps = [&](std::vector<int64_t> sizes) {
    return a.episodes.lengths.defined() ? at::zeros(sizes, element) : at::empty(sizes, element);
  };
  const Tensor y = of_steps(output_shape(s));
  const Tensor cs = of_steps(a.all_states && s.has_cell ? cells_shape(s) : std::vector<int64_t>{0});
  const auto states = [&](const at::TensorOptions& of) {
    return std::pair{empty(true, {s.D, s.B, s.P}, of), empty(s.has_cell, {s.D, s.B, s.H}, of)};
  };
  const auto [h, c] = states(element);
  const Tensor gates = empty(a.save, {s.D, s.N, s.slots, padded(s.H)}, options);
  const Tensor cells = empty(a.save && s.has_cell, {s.D, s.N, padded(s.H)}, options);
  // nothing is computed for what pads a row
  for (const Tensor& saved : {gates, cells})
    if (saved.dim() > 1) saved.narrow(-1, s.H, padded(s.H) - s.H).zero_();
  if (plan.single) {
    with_element(l.x.scalar_type(),
                 [&](auto e) { run_single<decltype(e)>(s, a, {y, h, c, gates, cells, cs}); });
    return {y, h, c, gates, cells, cs};
  }

  Lane lane(l.x, y, s.T, s.D == 1 && !s.packed && two_at_once(plan, s.B, planned_device(current_device())));
  const auto& [w_ih, w_hh, b_ih, b_hh, w_hr] = l.weights[0];
  const auto& [_, lengths, resets, reset_h, reset_c] = a.episodes;
  lane.keep({l.x, l.h0, l.c0, w_ih, w_hh, b_ih, b_hh, w_hr, lengths, resets, reset_h, reset_c});
  lane.keep({y, h, c, gates, cells, cs});
  const bool wide = element.dtype() != options.dtype();  // the kernels' states are floats
  const auto [hn, cn] = wide ? states(options) : std::pair{h, c};
  if (s.N > 0) {
    const auto dense = [](const Tensor& t) { return cuda::dense(t); };
    const auto w = converted(l.weights, dense, dense);
    const WalkStorage storage = walk_of(s, l.batch_sizes);
    const DeviceEpisodes episodes(kForward, s, a.episodes, l.x);
    const LayerForward f{s,  storage.walk, l.x, l.h0,  l.c0, {as_read(w[0]), as_read(w[1])}, episodes, y,
                         hn, cn,           cs,  gates, cells};
    forward(f, plan, lane);
  }
  if (wide) h.copy_(hn), c.copy_(cn);
  return {y, h, c, gates, cells, cs};
}

RecurrentGradients recurrent_backward(const RecurrentBackwardArguments& a) {
  const LayerSizes s = check_layer(kBackward, a.layer);
  check_episodes(kBackward, s, a.layer.x, a.episodes);
  check_layer_backward(kBackward, s, a, {s.D, s.N, s.slots, padded(s.H)}, {s.D, s.N, padded(s.H)});
  const c10::OptionalDeviceGuard guard(a.layer.x.device());
  const ResidentPlan plan = plan_of(s, a.layer.x, a.episodes, /*backward=*/true);
  if (plan.single)
    return with_element(a.layer.x.scalar_type(),
                        [&](auto e) { return run_single_backward<decltype(e)>(s, a); });
  const bool plain = !s.packed && !a.episodes.lengths.defined() && !a.episodes.resets.defined();
  const bool overlaps =
      plain && s.D == 1 && !s.projected && two_at_once(plan, s.B, planned_device(current_device()));
  BackwardLane lane({a.dy, a.dhn, a.dcn, a.dcs}, a.layer.x.device(), s.T, overlaps);
  const RecurrentGradients grads = Backward(s, a, plan, lane).run();
  if (a.needs[kDx]) lane.give(grads[kDx]);
  return grads;
}

}  // namespace rnnfast::cuda
