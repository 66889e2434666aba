// Kernels for torch's own recurrent operators: they take the calls that ours can take, and pass all others on
// to torch's kernel as if nothing stood in between.
//
// torch's operators are made of others (CompositeImplicitAutograd), so tools take them apart unless a backend
// has a kernel of its own. Hence ours stand at keys that are no backend: AutogradCPU and AutogradCUDA, where
// a call comes first, and BackendSelect, where it comes first in inference mode or below autograd, after all
// modes.
//
// torch's quantized operators are counted and always passed on.
#include "ops/aten.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "ops/layers_call.h"

namespace rnnfast::aten {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

#ifdef RNNFAST_CUDA
constexpr bool kGpuKernels = true;
#else
constexpr bool kGpuKernels = false;
#endif

enum Verdict {
  kTaken,
  kQuantized,
  kRegion,
  kInterposed,
  kTensors,
  kDtype,
  kBatchSizes,
  kNoGpuKernels,
  kGpuAutocast,
  kGpuDropout,
  kVerdicts
};
constexpr const char* kNames[kVerdicts] = {
    "taken",
    "a quantized operator",
    "a region that passes on",
    "a mode, a transform or a trace",
    "tensors that are not plain ones of one dtype and device, or of a size that does not fit",
    "a dtype without a kernel",
    "batch_sizes that are none of packed rows",
    "a GPU, for which this build has no kernels",
    "autocast of a layer on a GPU",
    "dropout between layers on a GPU"};

std::atomic<bool> active = false;

// Threads that run and have called one of the operators
std::atomic<int64_t> callers = 0;
struct Caller {
  bool counted = false;
  void count() {
    if (!std::exchange(counted, true)) ++callers;
  }
  ~Caller() {
    if (counted) --callers;
  }
};
thread_local Caller caller;
thread_local bool passing_on = false;

using Counts = std::array<std::atomic<int64_t>, kVerdicts>;

enum Form { kInput, kData, kCell, kOnlyCounted };

struct Operator {
  std::string name, overload;  // "aten::lstm", "input"
  Mode mode;
  Form form;
  Counts counts{};

  std::string full_name() const { return overload.empty() ? name : name + "." + overload; }
  std::optional<c10::OperatorHandle> find() const {
    return c10::Dispatcher::singleton().findOp({name, overload});
  }
};

// every cell of ours that torch may have, in each form, and quantized
std::vector<Operator*>& all() {
  static std::vector<Operator*> list = [] {
    std::vector<Operator*> made;
    for (const CellFacts& cell : kCells) {
      const std::string name = std::string("aten::") + cell.name;
      made.push_back(new Operator{name, "input", cell.mode, kInput});
      made.push_back(new Operator{name, "data", cell.mode, kData});
      made.push_back(new Operator{name + "_cell", "", cell.mode, kCell});
      const std::string quantized = std::string("quantized_") + cell.name;
      for (const char* overload : {"input", "data", "input_legacy", "data_legacy"})
        made.push_back(new Operator{"aten::" + quantized, overload, cell.mode, kOnlyCounted});
      made.push_back(new Operator{"aten::" + quantized + "_cell", "", cell.mode, kOnlyCounted});
      made.push_back(new Operator{"quantized::" + quantized + "_cell_dynamic", "", cell.mode, kOnlyCounted});
    }
    return made;
  }();
  return list;
}

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

Verdict take_as_it_is(const Operator& of, at::ArrayRef<IValue> a, bool below_autograd, Stack& results,
                      Autocast autocast = std::nullopt) {
  const Tensor& x = a[0].toTensor();
  if (!has_kernel(x.scalar_type())) return kDtype;
  if (!LayersCall::is_plain(x, gpu_or_cpu(x))) return kTensors;  // before its sizes: a nested one has none
  return of.form == kCell
             ? take_cell(of.mode, autocast, a, below_autograd, results)
             : take_layers(of.mode, autocast, a, /*packed=*/of.form == kData, below_autograd, results);
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
Verdict take_cast(const Operator& of, at::ScalarType type, at::ArrayRef<IValue> a, bool below_autograd,
                  Stack& results) {
  // Straight to the kernel, which casts so as it reads and writes; for all else tensors that are cast
  if (at::isReducedFloatingType(type) && take_as_it_is(of, a, below_autograd, results, type) == kTaken)
    return kTaken;
  std::vector<IValue> cast;
  for (const IValue& value : a) cast.push_back(cast_value(type, value));
  const Verdict verdict = take_as_it_is(of, cast, below_autograd, results);
  const CellFacts& cell = facts_of(of.mode);
  if (verdict != kTaken || cell.gates == 1) return verdict;
  bool projected = false;
  if (of.form != kCell) {
    projected = cell.has_cell && results[1].toTensor().size(-1) != results[2].toTensor().size(-1);
    if (cell.has_cell && of.form == kInput && !projected) return verdict;
  }
  const States states(a[of.form == kData ? 2 : 1], cell.has_cell);
  const at::ScalarType state = (cell.has_cell ? states.c : states.h)->scalar_type();
  for (size_t i = projected ? 2 : 0; i < results.size(); ++i)
    results[i] = results[i].toTensor().to(at::promote_types(state, type));
  return verdict;
}

Verdict take(const Operator& of, at::ArrayRef<IValue> arguments, bool below_autograd, Stack& results) {
  if (of.form == kOnlyCounted) return kQuantized;
  if (passing_on) return kRegion;
  if (interposed()) return kInterposed;
  const Tensor& x = arguments[0].toTensor();
  if (x.is_cuda() && !kGpuKernels) return kNoGpuKernels;
  const auto type = autocast_type(gpu_or_cpu(x));
  if (!type) return take_as_it_is(of, arguments, below_autograd, results);
  // A cell on a GPU has been cast when it comes here, by torch's kernel at AutocastCUDA, which then turns
  // autocast off: its results are of autocast's dtype. A layer has not: cuDNN's are cast to float16, whatever
  // the dtype that autocast asks for, other ones step by step, and which it will be is torch's to say.
  if (x.is_cuda()) return kGpuAutocast;
  if (!has_kernel(x.scalar_type())) return kDtype;
  return take_cast(of, *type, arguments, below_autograd, results);
}

// The kernel at one of the keys
struct Replacement : c10::OperatorKernel {
  Operator* const of;
  const bool below_autograd;

  Replacement(Operator* which, bool below) : of(which), below_autograd(below) {}

  void operator()(const c10::OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    // Python that runs within the call, a hook of saved tensors, may uninstall, which ends *this
    Operator* const called = of;
    const bool below = below_autograd;
    caller.count();
    if (active.load(std::memory_order_relaxed)) {
      const size_t n = op.schema().arguments().size();
      Stack results;
      const Verdict verdict = take(*called, torch::jit::last(*stack, n), below, results);
      called->counts[verdict].fetch_add(1, std::memory_order_relaxed);
      if (verdict == kTaken) {
        torch::jit::drop(*stack, n);
        for (IValue& result : results) stack->push_back(std::move(result));
        return;
      }
    }
    if (below) {
      op.redispatchBoxed(keys & DispatchKeySet(DispatchKeySet::FULL_AFTER, DispatchKey::BackendSelect),
                         stack);
    } else {
      op.callBoxedForDispatchKey(DispatchKey::CompositeImplicitAutograd, *stack);
    }
  }
};

constexpr DispatchKey kKeys[] = {DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA,
                                 DispatchKey::BackendSelect};
// where torch has no kernel of the operators that are taken; and what stands there would be hidden, or hide
// us
constexpr DispatchKey kKeysOfOthers[] = {DispatchKey::AutogradCPU,  DispatchKey::AutogradCUDA,
                                         DispatchKey::Autograd,     DispatchKey::CPU,
                                         DispatchKey::CUDA,         DispatchKey::CompositeExplicitAutograd,
                                         DispatchKey::BackendSelect};

std::mutex mutex;
// while installed; whatever is there as the process ends stays, for the dispatcher may have ended before
std::vector<torch::Library>* registered = nullptr;

// Quantized layers and torch's dynamic cells are of one backend, not made of other operators: what autograd
// does before them is torch's, and then they come to BackendSelect.
bool has_autograd_of_torch(const c10::OperatorHandle& op) {
  return !op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
}

torch::CppFunction kernel(Operator* of, bool below_autograd) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Replacement>(of, below_autograd));
}

}  // namespace

std::vector<std::string> operators() {
  std::vector<std::string> names;
  for (const Operator* o : all())
    if (o->find()) names.push_back(o->full_name());
  return names;
}

std::vector<std::string> lacking() {
  std::vector<std::string> names;
  for (const Operator* o : all()) {
    const auto is_there = [&](const Operator* other) { return other->mode == o->mode && other->find(); };
    const bool has_cell = std::any_of(all().begin(), all().end(), is_there);
    if (has_cell && o->form != kOnlyCounted && !o->find()) names.push_back(o->full_name());
  }
  return names;
}

void install(bool on) {
  const std::lock_guard lock(mutex);
  if (on == (registered != nullptr)) return;
  if (!on) {
    delete registered;
    registered = nullptr;
    return;
  }
  for (const Operator* o : all()) {
    const auto op = o->find();
    if (!op || has_autograd_of_torch(*op)) continue;
    for (const DispatchKey key : kKeysOfOthers)
      TORCH_CHECK(!op->hasKernelForDispatchKey(key), "rnnfast.enable: ", o->full_name(), " has a kernel at ",
                  key,
                  " already, which is not torch's: something else replaces torch's "
                  "recurrent operators; end that first");
  }
  auto made = std::make_unique<std::vector<torch::Library>>();
  for (const std::string space : {"aten", "quantized"})
    for (const DispatchKey key : kKeys) {
      const bool below = key == DispatchKey::BackendSelect;
      made->emplace_back(torch::Library::IMPL, space, key, __FILE__, __LINE__);
      for (Operator* o : all())
        if (const auto op = o->find();
            op && o->name.starts_with(space + "::") && (below || !has_autograd_of_torch(*op)))
          made->back().impl(o->full_name().c_str(), kernel(o, below));
    }
  registered = made.release();
}

bool is_installed() {
  const std::lock_guard lock(mutex);
  return registered != nullptr;
}

int64_t other_callers() { return callers - caller.counted; }

void set_active(bool on) { active.store(on); }
bool is_active() { return active.load(); }

bool pass_on(bool on) { return std::exchange(passing_on, on); }

std::map<std::string, std::map<std::string, int64_t>> counts() {
  std::map<std::string, std::map<std::string, int64_t>> found;
  for (const Operator* o : all())
    for (int v = 0; v < kVerdicts; ++v)
      if (const int64_t n = o->counts[v].load(std::memory_order_relaxed))
        found[o->full_name()][kNames[v]] = n;
  return found;
}

void reset_counts() {
  for (Operator* o : all())
    for (auto& count : o->counts) count.store(0, std::memory_order_relaxed);
}

}  // namespace rnnfast::aten
