// The recurrent layer's ops on the CPU. The recurrence is a kernel of csrc/cpu, and so are the big products
// that make the gradients.
#include "ops/cpu_layer.h"

#include <ATen/ops/zeros.h>

#include <cstring>

#include "ops/cpu_tensors.h"
#include "ops/gradients.h"
#include "ops/rows.h"

namespace rnnfast::cpu {
namespace {

template <class E>
using TorchType = std::conditional_t<std::is_same_v<E, Bfloat16>, at::BFloat16, E>;

template <class E>
const E* in(const Tensor& t, int64_t offset = 0) {
  return t.defined() ? reinterpret_cast<const E*>(t.const_data_ptr<TorchType<E>>()) + offset : nullptr;
}

template <class E>
E* out(const Tensor& t, int64_t offset = 0) {
  return t.defined() && t.numel() ? reinterpret_cast<E*>(t.mutable_data_ptr<TorchType<E>>()) + offset
                                  : nullptr;
}

// The input product's gradients are launches of their own.
Shape shape_of(const LayerSizes& s, const Walk& walk, const Kernels& k, bool wide, bool backward) {
  return {walk.steps,
          s.B,
          walk.total,
          backward ? 0 : s.I,
          s.H,
          s.P,
          s.gates,
          s.P == s.H ? 1 : 2,
          k.vector_bytes / (wide ? 8 : 4),
          backward};
}

// What forward saves of each direction, see layout_of: of an RNN nothing, if y is what it would be
int64_t gate_numbers(const LayerSizes& s, const Tensor& x) {
  const bool in_y = s.slots == 1 && x.scalar_type() == accumulation_type(x);
  return in_y ? 0 : gate_rows(s.N) * s.slots * padded(s.H);
}
int64_t cell_numbers(const LayerSizes& s) { return s.N * padded(s.H); }

Tensor saved_empty(const LayerSizes& s, const Kernels& k, int64_t numbers, at::TensorOptions options) {
  const Tensor saved = kept_empty({numbers}, options);
  return k.fills_padding(s.H, saved.element_size()) ? saved : saved.zero_();
}

// zeros in the rows of t, of all steps, that come after their sequence's end
void clear_beyond(const Tensor& t, const Walk& walk, const LayerSizes& s) {
  if (t.numel() == 0) return;
  const int64_t bytes = t.size(-1) * t.element_size(), step = s.batch_first ? 1 : s.B;
  char* const data = static_cast<char*>(t.mutable_data_ptr());
  for (int64_t n = 0; n < s.T; ++n)
    for (int64_t b = n < walk.steps ? walk.sizes[n] : 0; b < s.B; ++b)
      std::memset(data + (n * step + walk.sequence(b) * walk.row_stride) * bytes, 0, bytes);
}

// zeros after what the rows that take part have of each direction's part of what is saved
void clear_rest(const Tensor& saved, int64_t D, int64_t taken) {
  if (saved.numel() == 0) return;
  const int64_t each = saved.numel() / D, bytes = saved.element_size();
  char* const data = static_cast<char*>(saved.mutable_data_ptr());
  for (int64_t d = 0; d < D; ++d) std::memset(data + (d * each + taken) * bytes, 0, (each - taken) * bytes);
}

// the last state of sequences without a step is the first one
void hand_through(const Tensor& last, const Tensor& first, const Walk& walk) {
  if (!first.defined()) return;
  for (int64_t b = walk.steps > 0 ? walk.sizes[0] : 0; b < walk.batch; ++b)
    last.select(1, walk.sequence(b)).copy_(first.select(1, walk.sequence(b)));
}

template <class E>
void run_forward_as(const char* op, const Kernels& k, const LayerMemory& m) {
  typedef typename ComputeType<E>::type A;
  const LayerSizes& s = m.s;
  Shape shape = shape_of(s, m.walk, k, sizeof(A) == 8, /*backward=*/false);
  if (sizeof(E) < sizeof(A)) {
    shape.inputs = (s.I + 1) / 2, shape.reads = (s.P + 1) / 2;  // pairs
    shape.matrix_unit = k.matrix_unit;
    shape.rounds = m.weights[0].w_hh.stored != Stored::kAsRead;
  }
  shape.products = std::is_same_v<E, float> ? k.products : 0;
  shape.directions = static_cast<int>(s.D);
  shape.frozen = m.frozen[0] && m.frozen[s.D - 1];
  const auto in = [](const void* p, auto number, int64_t offset = 0) {
    return p ? static_cast<const decltype(number)*>(p) + offset : nullptr;
  };
  const auto out = [](void* p, auto number, int64_t offset) {
    return p ? static_cast<decltype(number)*>(p) + offset : nullptr;
  };
  constexpr E e{};
  constexpr A a{};
  std::array<ForwardParams<E>, 2> directions{};
  for (int64_t d = 0; d < s.D; ++d) {
    const WeightMemory& w = m.weights[d];
    const int64_t state = (m.first + d) * s.B;  // row of h0, c0, hn and cn
    ForwardParams<E>& p = directions[d];
    p.walk = reversed(m.walk, d == 1);
    p.I = s.I, p.H = s.H, p.P = s.P;
    p.x = in(m.x, e);
    p.w_ih = w.w_ih, p.w_hh = w.w_hh, p.w_hr = w.w_hr;
    p.b_ih = in(w.b_ih, a), p.b_hh = in(w.b_hh, a);
    p.frozen = m.frozen[d];
    p.h0 = in(m.h0, a, state * s.P);
    p.c0 = in(m.c0, a, state * s.H);
    p.resets = {m.resets, in(m.reset_h, a, state * s.P), in(m.reset_c, a, state * s.H)};
    p.y = out(m.y, e, d * s.P);
    p.ldy = s.D * s.P;
    p.cs = out(m.cs, e, d * s.H);
    p.ldc = s.D * s.H;
    p.hn = out(m.hn, a, state * s.P);
    p.cn = out(m.cn, a, state * s.H);
    p.gates = out(m.gates, a, d * m.gate_numbers), p.cells = out(m.cells, a, d * m.cell_numbers);
  }
  launch(op, shape, sizeof(A) == 4, [&](int d, Plan plan, void* workspace, Team::Member* member) {
    return k.layer(E()).forward(s.mode, &directions[d], plan, workspace, member);
  });
}

// da and the like, whose rows products read: whole lines
template <class E>
Tensor gradient_rows(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  const Tensor whole = kept_empty({rows, whole_lines<E>(columns)}, options);
  if (whole.size(1) == columns) return whole;
  clear_columns(whole, columns, whole.size(1));
  return whole.narrow(1, 0, columns);
}

class Backward : public LayerBackward {
 public:
  Backward(const LayerSizes& sizes, const RecurrentBackwardArguments& a)
      : LayerBackward(sizes, a, walk_of(sizes, a.layer.batch_sizes, a.episodes.lengths)),
        N(walk.walk.total),
        k(kernels_for(s.B, s.P, s.T, input.scalar_type())),
        type(accumulation_type(input)),
        element(element_type(k, input.scalar_type())) {
    const auto& l = a.layer;
    weights = converted(
        l.weights, [&](const auto& w) { return dense(w, element); },
        [&](const auto& b) { return dense(b, type); });
    x = dense(input, element).view({s.N, s.I}), y = dense(a.y, element), dy = dense(a.dy, element);
    dcs = dense(a.dcs, element);
    h0 = dense(l.h0, type), c0 = dense(l.c0, type);
    h0_rows = cast(h0, element);
    if (episodes.resets.defined()) {
      resets = episodes.resets.contiguous();
      reset_h = of_each_row(dense(episodes.reset_h, type), s.B);
      reset_c = of_each_row(dense(episodes.reset_c, type), s.B);
      reset_rows = reset_h.defined() ? cast(reset_h, element) : at::zeros({s.P}, h0_rows.options());
      dreset_h = at::zeros({s.D, s.B, s.P}, h0.options());
      if (s.has_cell) dreset_c = at::zeros({s.D, s.B, s.H}, h0.options());
    }
    dhn = dense(a.dhn, type), dcn = dense(a.dcn, type);
    gates = a.gates.contiguous(), cells = a.cells.contiguous();
    dh0 = empty({s.D, s.B, s.P}, type);
    if (s.has_cell) dc0 = empty({s.D, s.B, s.H}, type);

    Shape shape = shape_of(s, walk.walk, k, type == at::kDouble, /*backward=*/true);
    shape.matrix_unit = element == at::kBFloat16 && k.matrix_unit;
    shape.products = products = element == at::kFloat ? k.products : 0;
    // side by side both have their da and dx, which is memory that one after the other does not take; with
    // more than a few rows it would buy 0 to 4 % of time
    constexpr int64_t kFewRows = 4, kLittleBytes = 4 << 20;
    const int64_t numbers = N * s.gates * s.H * (s.slots > s.gates ? 2 : 1);
    if (s.B <= kFewRows || numbers * y.element_size() <= kLittleBytes)
      shape.directions = static_cast<int>(s.D);
    plan = choose_plan(shape);
  }

 private:
  const int64_t N;  // rows that take part
  const Kernels& k;
  const at::ScalarType type, element;
  Tensor h0_rows;                   // for dW_hh, beside those of y
  Tensor resets, reset_h, reset_c;  // as EpisodeArguments, but states of all B rows; or None
  Tensor reset_rows;                // [D, B, P], or zeros for all: for dW_hh, too
  Plan plan;
  int products;
  std::array<DirectionGradients, 2> made;  // of a direction and, side by side, of the next

  DirectionGradients through_time(int64_t d) override {
    const int i = static_cast<int>(d) % plan.directions();
    if (i == 0) with_element(element, [&](auto e) { run_from<decltype(e)>(d); });
    return std::move(made[i]);
  }

  // as many directions as the plan has, from `first` on
  template <class E>
  void run_from(int64_t first) {
    typedef typename ComputeType<E>::type A;
    const int64_t GH = s.gates * s.H;
    const at::TensorOptions options = y.options();
    std::array<BackwardParams<E>, 2> directions{};
    for (int i = 0; i < plan.directions(); ++i) {
      const int64_t d = first + i;
      const WeightsOf<Tensor>& w = weights[d];
      DirectionGradients& r = made[i];
      r.da = gradient_rows<E>(N, GH, options);
      r.dx = s.slots > s.gates ? gradient_rows<E>(N, GH, options) : r.da;
      if (s.projected) r.dprojected = gradient_rows<E>(N, s.P, options);
      if (wants(d, kWhr)) r.hidden = kept_empty({N, s.H}, options);
      BackwardParams<E>& p = directions[i];
      p.walk = direction(d);
      p.H = s.H, p.P = s.P;
      p.w_hh = in<E>(w.w_hh), p.w_hr = in<E>(w.w_hr);
      p.h0 = in<A>(h0, d * s.B * s.P), p.c0 = in<A>(c0, d * s.B * s.H);
      p.y = in<E>(y, d * s.P), p.dy = in<E>(dy, d * s.P);
      p.ldy = s.D * s.P;
      p.resets.at = resets.defined() ? resets.const_data_ptr<bool>() : nullptr;
      p.resets.h = in<A>(reset_h, d * s.B * s.P), p.resets.c = in<A>(reset_c, d * s.B * s.H);
      p.resets.dh = out<A>(dreset_h, d * s.B * s.P), p.resets.dc = out<A>(dreset_c, d * s.B * s.H);
      p.dcs = in<E>(dcs, d * s.H), p.ldc = s.D * s.H;
      p.dhn = in<A>(dhn, d * s.B * s.P), p.dcn = in<A>(dcn, d * s.B * s.H);
      p.gates = gates.numel() ? in<A>(gates, d * gates.numel() / s.D) : nullptr;
      p.cells = s.has_cell ? in<A>(cells, d * cells.numel() / s.D) : nullptr;
      p.da = out<E>(r.da);
      p.dx = r.dx.is_same(r.da) ? nullptr : out<E>(r.dx);
      p.dprojected = out<E>(r.dprojected);
      p.hidden = out<E>(r.hidden);
      p.dh0 = out<A>(dh0, d * s.B * s.P), p.dc0 = out<A>(dc0, d * s.B * s.H);
    }
    launch_with(
        "recurrent_backward", plan, sizeof(A) == 4,
        [&](Plan how, void* workspace, Team::Member* member) {
          return k.layer(E()).backward(s.mode, directions.data(), how, workspace, member);
        },
        products);
  }

  void add_input_gradient(Tensor& dx, const DirectionGradients& r, int64_t d) override {
    if (d == 0) dx = gradient_buffer(N, s.I, y.options().dtype(type));
    multiply(k, dx, r.dx, weights[d].w_ih, /*accumulate=*/d > 0);
  }

  void weight_gradients(Tensor* to, const DirectionGradients& r, int64_t d) override {
    // db comes along with dW, or alone
    c10::SmallVector<WeightGradient, 2> pair;
    std::vector<const void*> inputs, previous;
    if (wants(d, kWih)) {
      if (episodes.lengths.defined())
        for (const int64_t row : kept_rows(walk.walk)) inputs.push_back(bytes_of(x).row(row));
      const void* const* const rows = inputs.empty() ? nullptr : inputs.data();
      pair.push_back({r.dx, x, &to[kWih], wants(d, kBih) ? &to[kBih] : nullptr, rows});
    }
    if (wants(d, kWhh)) {
      const auto states = [&](const Tensor& t) { return bytes_of(t, d * s.B * s.P); };
      const bool* const at = resets.defined() ? resets.const_data_ptr<bool>() : nullptr;
      const RowsOfBytes anew = reset_h.defined() ? states(reset_rows)
                               : at              ? RowsOfBytes{bytes_of(reset_rows).first, 0}
                                                 : RowsOfBytes{};
      previous = previous_states(direction(d), states(h0_rows), bytes_of(y, d * s.P), at, anew);
      pair.push_back({r.da, h0_rows, &to[kWhh], wants(d, kBhh) ? &to[kBhh] : nullptr, previous.data()});
    }
    rnnfast::weight_gradients(k, pair);
    if (wants(d, kBih) && !to[kBih].defined()) to[kBih] = r.dx.sum(0, false, type);
    if (wants(d, kBhh) && !to[kBhh].defined()) to[kBhh] = r.da.sum(0, false, type);
    if (wants(d, kWhr)) rnnfast::weight_gradients(k, {{r.dprojected, r.hidden, &to[kWhr], nullptr}});
  }

  Tensor finished(const Tensor& dx) override {
    const Tensor rows = gradient_of(dx, s.I);
    if (!episodes.lengths.defined()) return rows;
    const std::vector<int64_t> index = kept_rows(walk.walk);
    return spread_rows(rows, index, s.N);
  }
  Tensor empty(at::IntArrayRef size, at::ScalarType dtype) const override {
    return kept_empty(size, at::TensorOptions(dtype));
  }
};

}  // namespace

Tensor of_each_row(const Tensor& state, int64_t B) {
  return !state.defined() || state.size(1) == B ? state : contiguous(state.expand({-1, B, -1}));
}

void run_forward(const char* op, const Kernels& k, const LayerMemory& m, at::ScalarType element) {
  with_element(element, [&](auto e) { run_forward_as<decltype(e)>(op, k, m); });
}

RecurrentResult recurrent(const RecurrentArguments& a) {
  constexpr const char* op = "rnnfast::recurrent";
  const LayerArguments& l = a.layer;
  refuse_reserved(op, a);
  const LayerSizes s = check_layer(op, l);
  const EpisodeArguments& episodes = a.episodes;
  check_episodes(op, s, l.x, episodes);
  const Kernels& k = kernels_for(s.B, s.P, s.T, l.x.scalar_type());
  Operands o(k, l.x.scalar_type());
  const at::TensorOptions given = l.x.options().memory_format(at::MemoryFormat::Contiguous);
  const at::TensorOptions sums = given.dtype(o.sums);
  const Tensor y = kept_empty(output_shape(s), given);
  const Tensor hn = kept_empty({s.D, s.B, s.P}, given);
  const Tensor cn = s.has_cell ? kept_empty({s.D, s.B, s.H}, given) : kept_empty({0}, given);
  const auto saved = [&](bool is, int64_t numbers) {
    return is ? saved_empty(s, k, s.D * numbers, sums) : kept_empty({0}, sums);
  };
  const Tensor cs = kept_empty(a.all_states && s.has_cell ? cells_shape(s) : std::vector<int64_t>{0}, given);
  const int64_t gate = gate_numbers(s, l.x), cell = cell_numbers(s);
  const Tensor gates = saved(a.save, gate), cells = saved(a.save && s.has_cell, cell);
  const WalkStorage storage = walk_of(s, l.batch_sizes, episodes.lengths);
  if (storage.walk.total > 0) {
    const auto direction = [&](const Weights& w) -> WeightMemory {
      return {o.weight(w.w_ih), o.weight(w.w_hh), o.values(w.b_ih), o.values(w.b_hh), o.weight(w.w_hr)};
    };
    const auto place = [](const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
    const Tensor resets = episodes.resets.defined() ? episodes.resets.contiguous() : Tensor();
    const Tensor reset_h = of_each_row(episodes.reset_h, s.B), reset_c = of_each_row(episodes.reset_c, s.B);
    LayerMemory m{s, storage.walk};
    m.x = o.matrix(l.x), m.h0 = o.values(l.h0), m.c0 = o.values(l.c0);
    m.weights = {direction(l.weights[0]), direction(l.weights[1])};
    m.y = o.room(y, o.element), m.hn = o.room(hn, o.sums);
    if (s.has_cell) m.cn = o.room(cn, o.sums);
    if (cs.numel()) m.cs = o.room(cs, o.element);
    if (resets.defined()) {
      m.resets = resets.const_data_ptr<bool>();
      m.reset_h = o.values(reset_h), m.reset_c = o.values(reset_c);
    }
    m.gates = place(gates), m.cells = place(cells), m.gate_numbers = gate, m.cell_numbers = cell;
    run_forward("recurrent", k, m, o.element);
    o.write_back(m.y, o.element, y);
    o.write_back(m.hn, o.sums, hn);
    if (s.has_cell) o.write_back(m.cn, o.sums, cn);
    if (cs.numel()) o.write_back(m.cs, o.element, cs);
  } else {
    gates.zero_();  // the biases' row
  }
  if (episodes.lengths.defined()) {
    const int64_t N = storage.walk.total;
    clear_rest(gates, s.D, gate_rows(N) * s.slots * padded(s.H));
    clear_rest(cells, s.D, N * padded(s.H));
    clear_beyond(y, storage.walk, s);
    clear_beyond(cs, storage.walk, s);
    hand_through(hn, l.h0, storage.walk);
    hand_through(cn, l.c0, storage.walk);
  }
  return {y, hn, cn, gates, cells, cs};
}

RecurrentGradients recurrent_backward(const RecurrentBackwardArguments& a) {
  constexpr const char* op = "rnnfast::recurrent_backward";
  const LayerSizes s = check_layer(op, a.layer);
  check_episodes(op, s, a.layer.x, a.episodes);
  check_layer_backward(op, s, a, {s.D * gate_numbers(s, a.layer.x)}, {s.D * cell_numbers(s)});
  return Backward(s, a).run();
}

}  // namespace rnnfast::cpu
