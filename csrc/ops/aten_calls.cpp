// Which calls of torch's recurrent operators our kernels can take, and the taking: arguments as torch passes
// them are read here, none is an error, for what is not taken torch's own kernel will judge.
#include "ops/aten_calls.h"

#include <ATen/autocast_mode.h>

#include <optional>

#include "ops/layers_call.h"
#include "rnnfast_build.h"

namespace rnnfast::aten {
namespace {

using c10::IValue;
using torch::jit::Stack;

#ifdef RNNFAST_CUDA
constexpr bool kGpuKernels = true;
#else
constexpr bool kGpuKernels = false;
#endif

const Tensor* tensor_or_none(const IValue& value) {
  if (value.isNone()) return &kNone;
  return value.isTensor() ? &value.toTensor() : nullptr;
}

// h_0 and c_0 as the operator takes them: a tensor, or of a cell with c a list of both
struct States {
  const Tensor *h = nullptr, *c = &kNone;

  States(const IValue& value, bool has_cell) {
    if (!has_cell) {
      h = tensor_or_none(value);
    } else if (value.isList() && value.toListRef().size() == 2) {
      h = tensor_or_none(value.toListRef()[0]), c = tensor_or_none(value.toListRef()[1]);
    }
  }
  bool are_given() const { return h && c && h->defined(); }
};

// What autocast casts, if it is on, and what comes of it
using Autocast = std::optional<at::ScalarType>;

// A weight as autocast has it: one that requires a gradient is cast once, and kept until its region ends
class CastWeights {
 public:
  CastWeights(Autocast autocast, size_t n) : autocast_(autocast) {
    if (autocast_) kept_.reserve(n);
  }
  const Tensor* operator()(const Tensor* t) {
    if (!autocast_ || !t || !t->defined() || !t->requires_grad() || at::GradMode::is_enabled()) return t;
    kept_.push_back(at::autocast::cached_cast(*autocast_, *t, at::kCPU));
    return &kept_.back();
  }

 private:
  const Autocast autocast_;
  std::vector<Tensor> kept_;
};

// lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None) -> (h', c'), and its like -> h'
Verdict take_cell(Mode mode, Autocast autocast, at::ArrayRef<IValue> a, bool below_autograd, Stack& results) {
  const Tensor& x = a[0].toTensor();
  if (x.dim() != 2 || a[3].toTensor().dim() != 2) return kTensors;
  LayersCall call(mode, autocast.value_or(x.scalar_type()), /*layers=*/1, autocast.has_value(), x.device());
  LayerSizes& s = call.s;
  s.T = s.D = 1, s.B = x.size(0), s.I = x.size(1), s.H = s.P = a[3].toTensor().size(-1);
  const States states(a[1], s.has_cell);
  CastWeights cast(autocast, 4);
  const auto weight = [&](int i) { return cast(tensor_or_none(a[i])); };
  if (!states.are_given() || !call.take(&x, states.h, states.c, {s.B}) ||
      !call.take(weight(2), weight(3), weight(4), weight(5)))
    return kTensors;
  call.graph &= !below_autograd;
  Tensor h, c;
  if (call.straight && !call.graph) {
    h = call.empty(call.state_size), c = call.empty_cell();
    call.run(h, h, c);
  } else if (autocast) {
    return kTensors;
  } else {
    auto [y, hn, cn] = call.run_by_op();
    h = std::move(hn), c = std::move(cn);
  }
  results.emplace_back(std::move(h));
  if (s.has_cell) results.emplace_back(std::move(c));
  return kTaken;
}

// How rows of packed data are spread over the steps; false if they are not
bool read_batch_sizes(const Tensor& batch_sizes, LayerSizes& s) {
  if (!LayersCall::is_plain(batch_sizes) || batch_sizes.scalar_type() != at::kLong ||
      batch_sizes.dim() != 1 || batch_sizes.numel() == 0 || !batch_sizes.is_contiguous())
    return false;
  const int64_t* const sizes = batch_sizes.const_data_ptr<int64_t>();
  s.T = batch_sizes.numel(), s.B = sizes[0];
  int64_t rows = 0, before = s.B;
  for (int64_t t = 0; t < s.T; before = sizes[t++]) {
    if (sizes[t] <= 0 || sizes[t] > before || sizes[t] > s.N - rows) return false;
    rows += sizes[t];
  }
  return rows == s.N;
}

// lstm.input(x, hx, params, has_biases, layers, dropout, train, both, batch_first) -> (y, h_n, c_n),
// lstm.data with batch_sizes after x and without batch_first, and their likes -> (y, h_n)
Verdict take_layers(Mode mode, Autocast autocast, at::ArrayRef<IValue> a, bool packed, bool below_autograd,
                    Stack& results) {
  const Tensor& given = a[0].toTensor();
  const Tensor* const batch_sizes = packed ? &a[1].toTensor() : &kNone;
  const size_t next = packed ? 2 : 1;
  const at::ArrayRef<IValue> weights = a[next + 1].toListRef();
  const bool biased = a[next + 2].toBool(), train = a[next + 5].toBool(), both = a[next + 6].toBool();
  const int64_t layers = a[next + 3].toInt();
  if (given.dim() != (packed ? 2 : 3) || layers < 1 || layers > 1 << 16) return kTensors;
  // torch's output with batch_first is a view of [T, B, D P]: callers may rely on its strides, and dropout
  // draws in that order. With one row or one step the two layouts are one.
  const bool batch_first = !packed && a[next + 7].toBool();
  const bool turned = batch_first && given.size(0) != 1 && given.size(1) != 1;
  const Tensor x = turned ? given.transpose(0, 1).contiguous() : given;
  LayersCall call(mode, autocast.value_or(x.scalar_type()), static_cast<int>(layers), autocast.has_value(),
                  x.device());
  call.one_operator = call.s.has_cell;
  LayerSizes& s = call.s;
  s.D = both ? 2 : 1, s.I = x.size(-1);
  s.packed = packed, s.batch_first = batch_first && !turned;
  if (packed) {
    s.N = x.size(0);
    call.batch_sizes = batch_sizes;
    if (!read_batch_sizes(*batch_sizes, s)) return kBatchSizes;
  } else {
    s.T = x.size(s.batch_first ? 1 : 0), s.B = x.size(s.batch_first ? 0 : 1);
  }
  if (train && layers > 1) call.dropout = a[next + 4].toDouble();
  if (!(call.dropout >= 0 && call.dropout <= 1)) return kTensors;     // NaN, too
  if (call.dropout > 0 && !call.device.is_cpu()) return kGpuDropout;  // cuDNN draws masks in a way of its own
  const size_t each = weights.size() / (layers * s.D), plain = biased ? 4 : 2;
  const bool projected = s.has_cell && each == plain + 1;
  if (weights.size() % (layers * s.D) || (each != plain && !projected)) return kTensors;
  const Tensor& w_hh = weights[1].toTensor();
  if (!w_hh.defined() || w_hh.dim() != 2) return kTensors;
  s.P = s.H = w_hh.size(1);
  if (projected) {
    const Tensor& w_hr = weights[plain].toTensor();
    if (!w_hr.defined() || w_hr.dim() != 2) return kTensors;
    s.H = w_hr.size(1);
  }
  const States states(a[next], s.has_cell);
  if (!states.are_given() || !call.take(&x, states.h, states.c, {layers * s.D, s.B})) return kTensors;
  if (projected != s.projected) return kTensors;
  CastWeights cast(autocast, weights.size());
  for (size_t i = 0; i < weights.size(); i += each) {
    const auto at = [&](size_t place) { return cast(&weights[i + place].toTensor()); };
    if (!call.take(at(0), at(1), biased ? at(2) : &kNone, biased ? at(3) : &kNone,
                   projected ? at(plain) : &kNone))
      return kTensors;
  }
  call.graph &= !below_autograd;
  if (call.straight && !call.graph) {
    c10::SmallVector<int64_t, 3> size(x.sizes().begin(), x.sizes().end());
    size.back() = s.D * s.H;
    const Tensor y = call.empty(size), hn = call.empty(call.state_size), cn = call.empty_cell();
    call.run(y, hn, cn);
    results.emplace_back(turned ? y.transpose(0, 1) : y), results.emplace_back(hn);
    if (s.has_cell) results.emplace_back(cn);
  } else if (autocast) {
    return kTensors;
  } else {
    auto [y, hn, cn] = call.run_by_op();
    results.emplace_back(turned ? y.transpose(0, 1) : std::move(y)), results.emplace_back(std::move(hn));
    if (s.has_cell) results.emplace_back(std::move(cn));
  }
  return kTaken;
}

at::DeviceType gpu_or_cpu(const Tensor& x) { return x.is_cuda() ? at::kCUDA : at::kCPU; }

Verdict take_as_it_is(Mode mode, Form form, at::ArrayRef<IValue> a, bool below_autograd, Stack& results,
                      Autocast autocast = std::nullopt) {
  const Tensor& x = a[0].toTensor();
  if (!has_kernel(x.scalar_type())) return kDtype;
  if (!LayersCall::is_plain(x, gpu_or_cpu(x))) return kTensors;  // before its sizes: a nested one has none
  return form == kCell ? take_cell(mode, autocast, a, below_autograd, results)
                       : take_layers(mode, autocast, a, /*packed=*/form == kData, below_autograd, results);
}

IValue cast_value(at::ScalarType type, const IValue& value) {
  const auto cast_one = [&](const Tensor& t) { return at::autocast::cached_cast(type, t, at::kCPU); };
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_floating_point())
    return cast_one(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const IValue& one : value.toListRef()) list.push_back(cast_one(one.toTensor()));
  return list;
}

// As autocast casts: what is floating point but not float64. What comes out of a product has its dtype: an
// Elman cell's h, a projected h. With more than one gate the new state is mixed with the old one, which has
// kept its dtype. But torch's LSTM, where it is neither packed nor projected, is one operator, cast as a
// whole.
Verdict take_cast(Mode mode, Form form, at::ScalarType type, at::ArrayRef<IValue> a, bool below_autograd,
                  Stack& results) {
  // Straight to the kernel, which casts so as it reads and writes; for all else tensors that are cast
  if (at::isReducedFloatingType(type) &&
      take_as_it_is(mode, form, a, below_autograd, results, type) == kTaken)
    return kTaken;
  std::vector<IValue> cast;
  for (const IValue& value : a) cast.push_back(cast_value(type, value));
  const Verdict verdict = take_as_it_is(mode, form, cast, below_autograd, results);
  const CellFacts& cell = facts_of(mode);
  if (verdict != kTaken || cell.gates == 1) return verdict;
  bool projected = false;
  if (form != kCell) {
    projected = cell.has_cell && results[1].toTensor().size(-1) != results[2].toTensor().size(-1);
    if (cell.has_cell && form == kInput && !projected) return verdict;
  }
  const States states(a[form == kData ? 2 : 1], cell.has_cell);
  const at::ScalarType state = (cell.has_cell ? states.c : states.h)->scalar_type();
  for (size_t i = projected ? 2 : 0; i < results.size(); ++i)
    results[i] = results[i].toTensor().to(at::promote_types(state, type));
  return verdict;
}

}  // namespace

Verdict take(Mode mode, Form form, at::ArrayRef<IValue> arguments, bool below_autograd,
             torch::jit::Stack& results) {
  if (interposed()) return kInterposed;
  const Tensor& x = arguments[0].toTensor();
  if (x.is_cuda() && !kGpuKernels) return kNoGpuKernels;
  const auto type = autocast_type(gpu_or_cpu(x));
  if (!type) return take_as_it_is(mode, form, arguments, below_autograd, results);
  // A cell on a GPU has been cast when it comes here, by torch's kernel at AutocastCUDA, which then turns
  // autocast off: its results are of autocast's dtype. A layer has not: cuDNN's are cast to float16, whatever
  // the dtype that autocast asks for, other ones step by step, and which it will be is torch's to say.
  if (x.is_cuda()) return kGpuAutocast;
  if (!has_kernel(x.scalar_type())) return kDtype;
  return take_cast(mode, form, *type, arguments, below_autograd, results);
}

}  // namespace rnnfast::aten
