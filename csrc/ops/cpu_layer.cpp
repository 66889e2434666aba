// The recurrent layer's ops on the CPU. The recurrence is a kernel of csrc/cpu, and so are the big products
// that make the gradients.
#include "ops/cpu_layer.h"

#include "ops/cpu_tensors.h"
#include "ops/gradients.h"
#include "ops/launch.h"

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
Shape shape_of(const LayerSizes& s, const Kernels& k, bool wide, bool backward) {
  return {s.T,
          s.B,
          s.N,
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

template <class E>
void run_forward_as(const char* op, const Kernels& k, const LayerMemory& m) {
  typedef typename ComputeType<E>::type A;
  const LayerSizes& s = m.s;
  Shape shape = shape_of(s, k, sizeof(A) == 8, /*backward=*/false);
  if (sizeof(E) < sizeof(A)) {
    shape.inputs = (s.I + 1) / 2, shape.reads = (s.P + 1) / 2;  // pairs
    shape.matrix_unit = k.matrix_unit;
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
    const WeightsOf<const void*>& w = m.weights[d];
    const int64_t state = (m.first + d) * s.B;  // row of h0, c0, hn and cn
    ForwardParams<E>& p = directions[d];
    p.walk = reversed(m.walk, d == 1);
    p.I = s.I, p.H = s.H, p.P = s.P;
    p.x = in(m.x, e);
    p.w_ih = in(w.w_ih, e), p.w_hh = in(w.w_hh, e), p.w_hr = in(w.w_hr, e);
    p.b_ih = in(w.b_ih, a), p.b_hh = in(w.b_hh, a);
    p.frozen = m.frozen[d];
    p.h0 = in(m.h0, a, state * s.P);
    p.c0 = in(m.c0, a, state * s.H);
    p.y = out(m.y, e, d * s.P);
    p.ldy = s.D * s.P;
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
  whole.narrow(1, columns, whole.size(1) - columns).zero_();
  return whole.narrow(1, 0, columns);
}

class Backward : public LayerBackward {
 public:
  Backward(const LayerSizes& sizes, const RecurrentBackwardArguments& a)
      : LayerBackward(sizes, a),
        k(kernels_for(s.B, s.P, input.scalar_type())),
        type(accumulation_type(input)),
        element(element_type(k, input.scalar_type())) {
    const auto& l = a.layer;
    weights = converted(
        l.weights, [&](const auto& w) { return dense(w, element); },
        [&](const auto& b) { return dense(b, type); });
    x = dense(input, element).view({s.N, s.I}), y = dense(a.y, element), dy = dense(a.dy, element);
    h0 = dense(l.h0, type), c0 = dense(l.c0, type);
    h0_rows = cast(h0, element);
    dhn = dense(a.dhn, type), dcn = dense(a.dcn, type);
    gates = a.gates.contiguous(), cells = a.cells.contiguous();
    dh0 = empty({s.D, s.B, s.P}, type);
    if (s.has_cell) dc0 = empty({s.D, s.B, s.H}, type);

    Shape shape = shape_of(s, k, type == at::kDouble, /*backward=*/true);
    shape.matrix_unit = element == at::kBFloat16 && k.matrix_unit;
    shape.products = products = element == at::kFloat ? k.products : 0;
    // side by side both have their da and dx, which is memory that one after the other does not take; with
    // more than a few rows it would buy 0 to 4 % of time
    constexpr int64_t kFewRows = 4, kLittleBytes = 4 << 20;
    const int64_t numbers = s.N * s.gates * s.H * (s.slots > s.gates ? 2 : 1);
    if (s.B <= kFewRows || numbers * y.element_size() <= kLittleBytes)
      shape.directions = static_cast<int>(s.D);
    plan = choose_plan(shape);
  }

 private:
  const Kernels& k;
  const at::ScalarType type, element;
  Tensor h0_rows;  // for dW_hh, beside those of y
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
      r.da = gradient_rows<E>(s.N, GH, options);
      r.dx = s.slots > s.gates ? gradient_rows<E>(s.N, GH, options) : r.da;
      if (s.projected) r.dprojected = gradient_rows<E>(s.N, s.P, options);
      if (wants(d, kWhr)) r.hidden = kept_empty({s.N, s.H}, options);
      BackwardParams<E>& p = directions[i];
      p.walk = direction(d);
      p.H = s.H, p.P = s.P;
      p.w_hh = in<E>(w.w_hh), p.w_hr = in<E>(w.w_hr);
      p.h0 = in<A>(h0, d * s.B * s.P), p.c0 = in<A>(c0, d * s.B * s.H);
      p.y = in<E>(y, d * s.P), p.dy = in<E>(dy, d * s.P);
      p.ldy = s.D * s.P;
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
    if (d == 0) dx = gradient_buffer(s.N, s.I, y.options().dtype(type));
    multiply(k, dx, r.dx, weights[d].w_ih, /*accumulate=*/d > 0);
  }

  void weight_gradients(Tensor* to, const DirectionGradients& r, int64_t d) override {
    // db comes along with dW, or alone
    c10::SmallVector<WeightGradient, 2> pair;
    std::vector<const void*> previous;
    if (wants(d, kWih)) pair.push_back({r.dx, x, &to[kWih], wants(d, kBih) ? &to[kBih] : nullptr});
    if (wants(d, kWhh)) {
      previous = previous_states(direction(d), h0_rows, d * s.B * s.P, y, d * s.P);
      pair.push_back({r.da, h0_rows, &to[kWhh], wants(d, kBhh) ? &to[kBhh] : nullptr, previous.data()});
    }
    rnnfast::weight_gradients(k, pair);
    if (wants(d, kBih) && !to[kBih].defined()) to[kBih] = r.dx.sum(0, false, type);
    if (wants(d, kBhh) && !to[kBhh].defined()) to[kBhh] = r.da.sum(0, false, type);
    if (wants(d, kWhr)) rnnfast::weight_gradients(k, {{r.dprojected, r.hidden, &to[kWhr], nullptr}});
  }

  Tensor finished(const Tensor& dx) override { return gradient_of(dx, s.I); }
  Tensor empty(at::IntArrayRef size, at::ScalarType dtype) const override {
    return kept_empty(size, at::TensorOptions(dtype));
  }
};

}  // namespace

void run_forward(const char* op, const Kernels& k, const LayerMemory& m, at::ScalarType element) {
  with_element(element, [&](auto e) { run_forward_as<decltype(e)>(op, k, m); });
}

RecurrentResult recurrent(const RecurrentArguments& a) {
  constexpr const char* op = "rnnfast::recurrent";
  const LayerArguments& l = a.layer;
  refuse_reserved(op, a);
  const LayerSizes s = check_layer(op, l);
  const Kernels& k = kernels_for(s.B, s.P, l.x.scalar_type());
  Operands o(k, l.x.scalar_type());
  const at::TensorOptions given = l.x.options().memory_format(at::MemoryFormat::Contiguous);
  const at::TensorOptions sums = given.dtype(o.sums);
  const Tensor y = kept_empty(output_shape(s), given);
  const Tensor hn = kept_empty({s.D, s.B, s.P}, given);
  const Tensor cn = s.has_cell ? kept_empty({s.D, s.B, s.H}, given) : kept_empty({0}, given);
  const auto saved = [&](bool is, int64_t numbers) {
    return is ? saved_empty(s, k, s.D * numbers, sums) : kept_empty({0}, sums);
  };
  const int64_t gate = gate_numbers(s, l.x), cell = cell_numbers(s);
  const Tensor gates = saved(a.save, gate), cells = saved(a.save && s.has_cell, cell);
  if (s.N > 0) {
    const auto direction = [&](const Weights& w) -> WeightsOf<const void*> {
      return {o.matrix(w.w_ih), o.matrix(w.w_hh), o.values(w.b_ih), o.values(w.b_hh), o.matrix(w.w_hr)};
    };
    const auto place = [](const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
    const WalkStorage storage = walk_of(s, l.batch_sizes);
    const LayerMemory m{s,
                        storage.walk,
                        o.matrix(l.x),
                        o.values(l.h0),
                        o.values(l.c0),
                        {direction(l.weights[0]), direction(l.weights[1])},
                        {},
                        o.room(y, o.element),
                        o.room(hn, o.sums),
                        s.has_cell ? o.room(cn, o.sums) : nullptr,
                        /*first=*/0,
                        place(gates),
                        place(cells),
                        gate,
                        cell};
    run_forward("recurrent", k, m, o.element);
    o.write_back(m.y, o.element, y);
    o.write_back(m.hn, o.sums, hn);
    if (s.has_cell) o.write_back(m.cn, o.sums, cn);
  } else {
    gates.zero_();  // the biases' row
  }
  return {y, hn, cn, gates, cells};
}

RecurrentGradients recurrent_backward(const RecurrentBackwardArguments& a) {
  constexpr const char* op = "rnnfast::recurrent_backward";
  const LayerSizes s = check_layer(op, a.layer);
  check_layer_backward(op, s, a, {s.D * gate_numbers(s, a.layer.x)}, {s.D * cell_numbers(s)});
  return Backward(s, a).run();
}

}  // namespace rnnfast::cpu
