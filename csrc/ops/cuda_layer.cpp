// The recurrent layer's ops on a GPU. The recurrence is a kernel of csrc/cuda; the products over all time
// steps at once are torch's. Compiles beside a CPU build of torch, because it names no device: the tests run
// it on CPU tensors, with the kernels emulated.
#include <ATen/Context.h>
#include <ATen/ops/constant_pad_nd.h>

#include <limits>

#include "cuda/plan.h"
#include "ops/cuda_episodes.h"
#include "ops/cuda_single.h"
#include "ops/layer.h"

namespace rnnfast::cuda {
namespace {

constexpr const char *kForward = "rnnfast::recurrent", *kBackward = "rnnfast::recurrent_backward";

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
};

// the rows of x of the steps begin .. end - 1, one step after the other
Tensor rows_of(const LayerSizes& s, const Walk& walk, const Tensor& x, int64_t begin, int64_t end) {
  if (s.packed) {
    const int64_t first = walk.offsets[begin];
    return x.narrow(0, first, walk.offsets[end - 1] + walk.sizes[end - 1] - first);
  }
  const Tensor steps =
      s.batch_first ? x.narrow(1, begin, end - begin).transpose(0, 1) : x.narrow(0, begin, end - begin);
  return steps.reshape({(end - begin) * s.B, s.I});
}

// x W_ih^T of direction d for some steps of its walk at a time: use(first step, one after the last, the
// smallest time of them, product)
template <class F>
void for_input_chunks(const LayerForward& f, int64_t d, const F& use) {
  const LayerSizes& s = f.s;
  const Walk walk = f.direction(d);
  const at::ScalarType type = accumulation_type(f.x);
  const int64_t chunk = input_chunk(s.B * s.gates * s.H * c10::elementSize(type));
  for (int64_t begin = 0; begin < s.T; begin += chunk) {
    const int64_t end = std::min(begin + chunk, s.T);
    const int64_t first = std::min(walk.time(begin), walk.time(end - 1));
    const Tensor rows = rows_of(s, walk, f.x, first, first + end - begin);
    use(begin, end, first, input_product(rows, f.weights[d].w_ih, type, tf32_allowed()));
  }
}

// The walk for a resident kernel; `sizes` has to live until it is launched.
Rows rows_of(const LayerSizes& s, const Walk& walk, const DeviceEpisodes& episodes, const Tensor& like,
             Tensor& sizes) {
  Rows rows{};
  rows.batch = s.B, rows.steps = s.T, rows.reverse = walk.reverse;
  rows.lengths = in<int64_t>(episodes.lengths);
  if (!s.packed) {
    rows.first = walk.offsets[walk.time(0)], rows.stride = walk.row_stride;
    rows.step = (walk.reverse ? -1 : 1) * (s.batch_first ? 1 : s.B);
    return rows;
  }
  const Tensor both = at::empty({2, s.T}, at::kLong);
  std::copy_n(walk.offsets, s.T, both.mutable_data_ptr<int64_t>());
  std::copy_n(walk.sizes, s.T, both.mutable_data_ptr<int64_t>() + s.T);
  // from pinned memory: the host does not wait
  sizes = like.is_cuda() ? both.pin_memory().to(like.device(), /*non_blocking=*/true) : both;
  rows.offsets = sizes.const_data_ptr<int64_t>(), rows.sizes = rows.offsets + s.T, rows.stride = 1;
  return rows;
}

Shape shape_of(const LayerSizes& s, const Tensor& x, const EpisodeArguments& episodes, bool backward) {
  const int bytes = static_cast<int>(x.element_size());
  const Device device = planned_device(current_device());
  return {s.mode,      bytes,    tf32_allowed(), s.H, s.B,
          s.projected, backward, device,         s.T, episodes.lengths.defined()};
}

// A graph would replay the copy of a PackedSequence's sizes from memory that is long gone; the stepwise
// kernel has them as arguments. A resident kernel counts rows in 32 bits.
ResidentPlan plan_of(const LayerSizes& s, const Tensor& x, const EpisodeArguments& episodes, bool backward) {
  TORCH_CHECK(!take_failure(),
              "rnnfast: an earlier CUDA kernel waited in vain for blocks that never ran; its output is NaN");
  const bool countable = s.N <= std::numeric_limits<int32_t>::max();
  const bool resident = countable && !(s.packed && capturing(current_stream(x.device())));
  const ResidentPlan plan = resident ? choose_plan(shape_of(s, x, episodes, backward)) : kOneLaunchAStep;
  set_last_run(backward ? "recurrent_backward" : "recurrent", plan);
  return plan;
}

// What ties the blocks of a resident kernel's teams, where a row of the batch takes so many packets; `places`
// has to live until it is launched.
Links links_of(const ResidentPlan& plan, int64_t batch, int64_t numbers, const Tensor& like, Tensor& places) {
  Links links{};
  links.blocks = plan.blocks, links.split = plan.split, links.batches = plan.batches, links.held = plan.held;
  if (plan.team == Team::kBlock) return links;
  links.patience = current_device().patience;
  links.failed = failure_word();
  TORCH_CHECK(links.failed, "rnnfast: no memory that the host and the GPU share");
  if (plan.team == Team::kCluster) return links;
  const int64_t team = kBatch * plan.batches, rows = (batch + team - 1) / team * team;
  places = at::zeros({rows * numbers}, like.options().dtype(at::kLong));
  links.places = static_cast<uint64_t*>(places.mutable_data_ptr());
  return links;
}

// One direction; h [B, padded P] holds h0, c [B, padded H] c0, and then h_n (in hn) and c_n.
template <class E>
void forward_stepwise(const LayerForward& f, int64_t d, const Tensor& h, const Tensor& c) {
  typedef typename ComputeType<E>::type A;
  const LayerSizes& s = f.s;
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
  for_input_chunks(f, d, [&](int64_t begin, int64_t end, int64_t first, const Tensor& input) {
    for (int64_t step = begin; step < end; ++step) {
      const int64_t t = walk.time(step);
      const int64_t row = s.packed ? walk.offsets[t] - walk.offsets[first] : (t - first) * s.B;
      const ForwardStep now{walk.offsets[t],     walk.row_stride,           walk.sizes[t], walk.ends(t), t,
                            walk.time(step + 1), static_cast<int>(step & 1)};
      check_launch(forward_step<E>(s.mode, p, now, in<A>(input, row * s.gates * s.H), stream));
    }
  });
}

template <class E>
void forward_resident(const LayerForward& f, int64_t d, const ResidentPlan& plan, const Tensor& h,
                      const Tensor& c) {
  typedef typename ComputeType<E>::type A;
  const LayerSizes& s = f.s;
  const Walk walk = f.direction(d);
  const Weights& w = f.weights[d];
  const Tensor w_hh = padded_rows(w.w_hh, kTile<E> * (plan.tiles + plan.held) * plan.split);
  Tensor places;
  ResidentForward<E> p{};
  p.H = s.H, p.Hp = padded(s.H), p.Hw = travelling(s.H, s.gates, false), p.batch = s.B;
  p.links = links_of(plan, s.B, p.Hw * 2 / kWord<E>, h, places);
  p.w_hh = in<E>(w_hh), p.ldw = w_hh.size(1), p.b_ih = in<E>(w.b_ih), p.b_hh = in<E>(w.b_hh);
  p.h = out<A>(h), p.c = out<A>(c);
  p.resets = f.episodes.of_direction<A>(s, d);
  Tensor sizes;
  p.rows = p.input_rows = rows_of(s, walk, f.episodes, f.y, sizes);
  if (!s.packed) p.input_rows.step = walk.reverse ? -s.B : s.B, p.input_rows.stride = 1;
  p.y = out<E>(f.y, d * s.H), p.ldy = s.D * s.H;
  p.cs = out<E>(f.cs, d * s.H), p.ldc = s.D * s.H;
  p.gates = out<A>(f.gates, d * s.N * s.slots * p.Hp);
  p.cells = out<A>(f.cells, d * s.N * p.Hp);
  for_input_chunks(f, d, [&](int64_t begin, int64_t end, int64_t first, const Tensor& input) {
    p.steps = end - begin, p.links.first_step = begin;
    p.input = in<A>(input), p.inputs = input.size(0);
    const Tensor before = plan.team == Team::kGrid ? h.clone() : h;
    p.h_before = in<A>(before);
    p.input_rows.first =
        s.packed ? -walk.offsets[first] : (walk.time(begin) - first) * s.B - begin * p.input_rows.step;
    check_launch(resident_forward<E>(s.mode, p, plan, current_stream(f.x.device())));
  });
  f.hn.select(0, d).copy_(h.narrow(1, 0, s.H));
}

template <class E>
void forward_direction(const LayerForward& f, int64_t d, const ResidentPlan& plan) {
  const Tensor h = padded_state(f.h0[d], f.hn.options());
  const Tensor c = f.s.has_cell ? padded_state(f.c0[d], f.hn.options()) : Tensor();
  if constexpr (sizeof(E) <= 4) {
    if (plan.tiles) forward_resident<E>(f, d, plan, h, c);
  }
  if (!plan.tiles) forward_stepwise<E>(f, d, h, c);
  if (f.s.has_cell) f.cn.select(0, d).copy_(c.narrow(1, 0, f.s.H));
}

class Backward : public LayerBackward {
 public:
  Backward(const LayerSizes& sizes, const RecurrentBackwardArguments& a)
      : LayerBackward(sizes, a, walk_of(sizes, a.layer.batch_sizes)),
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
  const bool tf32;
  const at::ScalarType type;
  const DeviceEpisodes device_episodes;

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

  template <class E>
  void resident(DirectionGradients& r, int64_t d, const ResidentPlan& plan) const {
    const Walk walk = direction(d);
    ResidentBackward<E> p{};
    fill(p, r, d);
    Tensor places, sizes;
    p.steps = s.T, p.batch = s.B, p.N = s.N, p.Hw = travelling(s.H, s.gates, true);
    p.links = links_of(plan, s.B, s.gates * p.Hw * 2 / kWord<E>, y, places);
    const Tensor gates_apart =
        at::constant_pad_nd(weights[d].w_hh.view({s.gates, s.H, s.H}), {0, 0, 0, p.Hw - s.H});
    const Tensor w_hh = padded_rows(gates_apart.view({s.gates * p.Hw, s.H}).t());
    p.w_hh_t = in<E>(w_hh), p.ldw = w_hh.size(1);
    p.rows = rows_of(s, walk, device_episodes, y, sizes);
    check_launch(resident_backward<E>(s.mode, p, plan, current_stream(y.device())));
    if (wants(d, kWhh)) r.h_previous = previous_states(s, walk, device_episodes, y, h0[d], d);
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
    const ResidentPlan plan = plan_of(s, input, episodes, /*backward=*/true);
    const int64_t GH = s.gates * s.H;
    DirectionGradients r;
    r.da = rows_to_fill(GH, y.options());
    r.dx = s.slots > s.gates ? rows_to_fill(GH, y.options()) : r.da;
    with_element(y.scalar_type(), [&](auto e) {
      typedef decltype(e) E;
      if constexpr (sizeof(E) <= 4) {
        if (plan.tiles) resident<E>(r, d, plan);
      }
      if (!plan.tiles) stepwise<E>(r, d);
    });
    r.da = r.da.narrow(1, 0, GH);
    r.dx = r.dx.narrow(1, 0, GH);
    if (s.projected) r.dprojected = r.dprojected.narrow(1, 0, s.P);
    return r;
  }

  void add_input_gradient(Tensor& dx, const DirectionGradients& r, int64_t d) override {
    const Tensor of_direction = product(r.dx, weights[d].w_ih, tf32);
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
  const ResidentPlan plan = s.N > 0 ? plan_of(s, l.x, a.episodes, /*backward=*/false) : kOneLaunchAStep;
  const auto empty = [&](bool needed, std::vector<int64_t> sizes, const at::TensorOptions& of) {
    return at::empty(needed ? at::IntArrayRef(sizes) : at::IntArrayRef({0}), of);
  };
  // what the kernels leave out is zero
  const auto of_steps = [&](std::vector<int64_t> sizes) {
    return a.episodes.lengths.defined() ? at::zeros(sizes, element) : at::empty(sizes, element);
  };
  const Tensor y = of_steps(output_shape(s));
  const Tensor cs = of_steps(a.all_states && s.has_cell ? cells_shape(s) : std::vector<int64_t>{0});
  const at::TensorOptions& states = plan.single ? element : options;
  const Tensor hn = empty(true, {s.D, s.B, s.P}, states), cn = empty(s.has_cell, {s.D, s.B, s.H}, states);
  const Tensor gates = empty(a.save, {s.D, s.N, s.slots, padded(s.H)}, options);
  const Tensor cells = empty(a.save && s.has_cell, {s.D, s.N, padded(s.H)}, options);
  // nothing is computed for what pads a row
  for (const Tensor& saved : {gates, cells})
    if (saved.dim() > 1) saved.narrow(-1, s.H, padded(s.H) - s.H).zero_();
  if (plan.single) {
    with_element(l.x.scalar_type(),
                 [&](auto e) { run_single<decltype(e)>(s, a, {y, hn, cn, gates, cells, cs}); });
  } else if (s.N > 0) {
    const auto dense = [](const Tensor& t) { return cuda::dense(t); };
    const auto w = converted(l.weights, dense, dense);
    const WalkStorage storage = walk_of(s, l.batch_sizes);
    const DeviceEpisodes episodes(kForward, s, a.episodes, l.x);
    const LayerForward f{s,  storage.walk, l.x, l.h0,  l.c0, {as_read(w[0]), as_read(w[1])}, episodes, y,
                         hn, cn,           cs,  gates, cells};
    for (int64_t d = 0; d < s.D; ++d)
      with_element(l.x.scalar_type(), [&](auto e) { forward_direction<decltype(e)>(f, d, plan); });
  }
  return {y, hn.to(l.x.scalar_type()), cn.to(l.x.scalar_type()), gates, cells, cs};
}

RecurrentGradients recurrent_backward(const RecurrentBackwardArguments& a) {
  const LayerSizes s = check_layer(kBackward, a.layer);
  check_episodes(kBackward, s, a.layer.x, a.episodes);
  check_layer_backward(kBackward, s, a, {s.D, s.N, s.slots, padded(s.H)}, {s.D, s.N, padded(s.H)});
  const c10::OptionalDeviceGuard guard(a.layer.x.device());
  return Backward(s, a).run();
}

}  // namespace rnnfast::cuda
