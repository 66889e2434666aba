#include "ops/layers_call.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/zeros.h>

#include "ops/cpu_tensors.h"
#include "ops/launch.h"
#include "ops/overlap.h"

namespace rnnfast {

using c10::DispatchKey;
using c10::DispatchKeySet;

bool interposed() {
  static const DispatchKeySet usual{DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView};
  return !(c10::impl::tls_local_dispatch_key_set().included_ - usual).empty();
}

std::optional<at::ScalarType> autocast_type(at::DeviceType on) {
  if (!at::autocast::is_autocast_enabled(on)) return std::nullopt;
  return at::autocast::get_autocast_dtype(on);
}

bool LayersCall::is_plain(const Tensor& t, at::DeviceType on) {
  // taking AutogradCPU away takes autograd of any backend, and leaves the backend
  static const DispatchKeySet usual{DispatchKey::Dense, DispatchKey::AutogradCPU,
                                    DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU,
                                    DispatchKey::AutocastCUDA};
  static const DispatchKeySet cpu(c10::BackendComponent::CPUBit), gpu(c10::BackendComponent::CUDABit);
  return t.defined() && (t.key_set() - usual) == (on == at::kCPU ? cpu : gpu);
}

bool LayersCall::has_taken_type(const Tensor& t) const {
  const at::ScalarType own = t.scalar_type();
  return own == type || (casts && own != at::kDouble && has_kernel(own));
}

bool LayersCall::is_taken(const Tensor& t, at::IntArrayRef size) {
  if (!is_plain(t, device.type()) || t.device() != device || !has_taken_type(t) || t.sizes() != size ||
      t._fw_grad(/*level=*/0).defined())
    return false;
  straight &= t.is_contiguous();
  graph |= t.requires_grad() && at::GradMode::is_enabled();
  return true;
}

bool LayersCall::is_taken_or_none(const Tensor* t, at::IntArrayRef size) {
  return t && (!t->defined() || is_taken(*t, size));
}

bool LayersCall::take(const Tensor* input, const Tensor* hidden, const Tensor* cell,
                      at::IntArrayRef leading) {
  if (!s.packed) s.N = s.T * s.B;
  s.projected = s.P != s.H;
  straight &= !s.packed && !s.projected && dropout == 0;
  if (s.N == 0 || s.I == 0 || s.H == 0 || s.P == 0 || !input) return false;
  x = input, h = hidden, c = cell;
  kernels = &kernels_for(s.B, s.P, s.T, type);
  for (auto [size, last] : {std::pair{&state_size, s.P}, std::pair{&cell_size, s.H}}) {
    size->assign(leading.begin(), leading.end());
    size->push_back(last);
  }
  return is_taken(*x, x->sizes()) && is_taken_or_none(h, state_size) && is_taken_or_none(c, cell_size) &&
         (!s.has_cell || h->defined() == c->defined());
}

bool LayersCall::take(const Tensor* w_ih, const Tensor* w_hh, const Tensor* b_ih, const Tensor* b_hh,
                      const Tensor* w_hr) {
  const int64_t rows = s.gates * s.H;
  const int64_t inputs = static_cast<int64_t>(weights.size()) < s.D ? s.I : s.D * s.P;
  if (!w_ih || !w_hh || !is_taken(*w_ih, {rows, inputs}) || !is_taken(*w_hh, {rows, s.P}) ||
      !is_taken_or_none(b_ih, {rows}) || !is_taken_or_none(b_hh, {rows}) ||
      !is_taken_or_none(w_hr, {s.P, s.H}) || w_hr->defined() != s.projected)
    return false;
  weights.push_back({*w_ih, *w_hh, *b_ih, *b_hh, *w_hr});
  frozen.push_back(nullptr);
  const Weights& first = weights[0];
  return b_ih->defined() == first.b_ih.defined() && b_hh->defined() == first.b_hh.defined();
}

bool LayersCall::take_resets(const Tensor* at, const Tensor* reset_hidden, const Tensor* reset_cell,
                             at::IntArrayRef one_for_all) {
  resets = at;
  if (!at || !is_plain(*at, device.type()) || at->scalar_type() != at::kBool || s.packed || s.D != 1 ||
      at->sizes() != x->sizes().slice(0, x->dim() - 1) || !reset_hidden || !reset_cell ||
      (s.has_cell && reset_hidden->defined() != reset_cell->defined()))
    return false;
  straight &= at->is_contiguous();
  const auto take_state = [&](const Tensor& t, at::IntArrayRef of_rows, Tensor& to) {
    if (!t.defined()) return true;
    c10::SmallVector<int64_t, 3> shared(one_for_all.begin(), one_for_all.end());
    shared.push_back(of_rows.back());
    const bool is_shared = t.sizes() == at::IntArrayRef(shared);
    if (!is_taken(t, is_shared ? t.sizes() : of_rows)) return false;
    to = t.reshape({L, is_shared ? 1 : s.B, of_rows.back()});
    return true;
  };
  return take_state(*reset_hidden, state_size, reset_h) && take_state(*reset_cell, cell_size, reset_c);
}

void LayersCall::run(const Tensor& y, const Tensor& hn, const Tensor& cn) const {
  const Kernels& k = *kernels;
  const WalkStorage storage = WalkStorage::dense(s.T, s.B, s.batch_first);
  // layers write to y and to another in turn, the last one to y
  const Tensor other = L > 1 ? empty(y.sizes()) : Tensor(), *below = x;
  LayerSizes sizes = s;
  cpu::Operands states(k, type);
  const void *const h0 = states.values(*h), *const c0 = states.values(*c);
  const Tensor anew_h = cpu::of_each_row(reset_h, s.B), anew_c = cpu::of_each_row(reset_c, s.B);
  const void *const h_anew = states.values(anew_h), *const c_anew = states.values(anew_c);
  void *const h_out = states.room(hn, states.sums), *const c_out = states.room(cn, states.sums);
  for (int i = 0; i < L; ++i) {
    const Tensor* const above = (L - 1 - i) % 2 ? &other : &y;
    const int64_t first = i * s.D, last = first + s.D - 1;
    cpu::Operands o(k, type);
    const auto direction = [&](int64_t d) -> cpu::WeightMemory {
      const Weights& w = weights[d];
      const auto matrix = [&](const Tensor& t) { return frozen[d] ? WeightMatrix{} : o.weight(t); };
      return {matrix(w.w_ih), matrix(w.w_hh), o.values(w.b_ih), o.values(w.b_hh), {}};
    };
    cpu::LayerMemory m{sizes, storage.walk, o.matrix(*below), h0, c0, {direction(first)}};
    if (s.D > 1) m.weights[1] = direction(last);
    m.frozen = {frozen[first], frozen[last]};
    m.y = o.room(*above, o.element), m.hn = h_out, m.cn = c_out;
    m.first = first;
    if (resets->defined()) m.resets = resets->const_data_ptr<bool>();
    m.reset_h = h_anew, m.reset_c = c_anew;
    cpu::run_forward(frozen[first] && frozen[last] ? "frozen" : "direct", k, m, o.element);
    // one step of a cell has but one h
    if (!above->is_same(hn)) o.write_back(m.y, o.element, *above);
    below = above;
    sizes.I = s.D * s.H;
  }
  states.write_back(h_out, states.sums, hn);
  states.write_back(c_out, states.sums, cn);
}

std::array<Tensor, 3> LayersCall::run_by_op() const {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rnnfast::recurrent", "");
  const auto place_of = [](const char* name) { return op.schema().argumentIndexWithName(name).value(); };
  static const int mode = place_of("mode"), input = place_of("x"), h0 = place_of("h0"), c0 = place_of("c0");
  static const int of_direction[] = {place_of("w_ih"), place_of("w_ih_r")};
  static const int sizes = place_of("batch_sizes"), batch_first = place_of("batch_first");
  static const int begins = place_of("resets"), h_anew = place_of("reset_h"), c_anew = place_of("reset_c");
  static const int save = place_of("save"), all_states = place_of("all_states");
  static const std::vector<c10::IValue> modes = [] {
    std::vector<c10::IValue> names;
    for (const CellFacts& cell : kCells) names.emplace_back(cell.name);
    return names;
  }();
  // a view is recorded too, even one of the same size
  const auto view = [](const Tensor& t, at::IntArrayRef size) {
    return t.sizes() == size ? t : t.reshape(size);
  };
  const auto of_layer = [&](const Tensor& all, int k) {
    return L == 1 || !all.defined() ? all : all.narrow(0, k * s.D, s.D);
  };
  const auto state = [&](const Tensor& t, int64_t units, int k) {
    if (!t.defined()) return at::zeros({s.D, s.B, units}, x->options());
    return of_layer(view(t, {L * s.D, s.B, units}), k);
  };
  Stack stack;
  const auto put = [&](int place, const Tensor& t) {
    if (t.defined()) stack[place] = t;
  };
  const Tensor rows_reset = resets->defined() && resets->dim() < 2 ? resets->view({s.T, s.B}) : *resets;
  Tensor y = x->dim() == 3 || s.packed ? *x : x->view({s.T, s.B, s.I});
  c10::SmallVector<Tensor, 2> hn, cn;
  std::optional<cuda::Stack> side_by_side;
  if (s.D == 1 && !s.packed && dropout == 0 && cuda::Stack::suits(*x, L)) side_by_side.emplace(device, L);
  for (int k = 0; k < L; ++k) {
    const bool last = k == L - 1;
    stack.resize(op.schema().arguments().size());  // of None
    stack[mode] = modes[static_cast<int>(s.mode)];
    put(input, y), put(h0, state(*h, s.P, k)), put(sizes, *batch_sizes);
    if (s.has_cell) put(c0, state(*c, s.H, k));
    for (int d = 0; d < s.D; ++d) {
      const Weights& w = weights[k * s.D + d];
      int place = of_direction[d];
      for (const Tensor* t : {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr}) put(place++, *t);
    }
    put(begins, rows_reset), put(h_anew, of_layer(reset_h, k)), put(c_anew, of_layer(reset_c, k));
    stack[batch_first] = s.batch_first;
    stack[save] = graph;
    stack[all_states] = false;
    op.callBoxed(stack);
    y = std::move(stack[0]).toTensor();
    if (dropout > 0 && !last) y = at::dropout(y, dropout, /*train=*/true);
    hn.push_back(std::move(stack[1]).toTensor()), cn.push_back(std::move(stack[2]).toTensor());
    stack.clear();
  }
  if (side_by_side) side_by_side->join();
  const auto all = [&](at::ArrayRef<Tensor> states, at::IntArrayRef size) {
    return view(L == 1 ? states[0] : at::cat(states), size);
  };
  return {y, all(hn, state_size), s.has_cell ? all(cn, cell_size) : Tensor()};
}

}  // namespace rnnfast
