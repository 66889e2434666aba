// From Python straight to the kernel, or to the op's autograd kernel where a graph is wanted: `_C.try_cell`
// and `_C.try_layers`, plain functions. They take what a kernel can read as it is, and leave everything else,
// every error too, to the way through Python by returning None. A stream calls a layer thousands of times a
// second, and Python's checks and the dispatcher take 10 us, which is more than a step.
#include "direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <deque>

#include "check.h"
#include "launch.h"
#include "walk.h"

namespace rnnfast {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// Whether something stands between the caller and a CPU kernel: a transform, a tracer, a mode, autocast.
bool interposed() {
  static const DispatchKeySet usual{DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView};
  return !(c10::impl::tls_local_dispatch_key_set().included_ - usual).empty() ||
         at::impl::torch_function_mode_enabled() || at::autocast::is_autocast_enabled(at::kCPU);
}

// A tensor whose numbers lie row by row in the CPU's memory, of this type and size; null otherwise. `graph`
// becomes true if it asks for one.
const Tensor* readable(PyObject* object, at::ScalarType type, at::IntArrayRef size, bool& graph) {
  static const DispatchKeySet usual{DispatchKey::Dense, DispatchKey::AutogradCPU,
                                    DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU};
  static const DispatchKeySet cpu(c10::BackendComponent::CPUBit);
  if (!object || !THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  const bool plain = t.defined() && (t.key_set() - usual) == cpu && t.scalar_type() == type &&
                     t.sizes() == size && t.is_contiguous() && !t._fw_grad(/*level=*/0).defined();
  graph |= plain && t.requires_grad() && at::GradMode::is_enabled();
  return plain ? &t : nullptr;
}

// The names of the weights in a module's dict of parameters
struct Names {
  PyObject *w_ih, *w_hh, *b_ih, *b_hh;

  explicit Names(const std::string& suffix)
      : w_ih(PyUnicode_InternFromString(("weight_ih" + suffix).c_str())),
        w_hh(PyUnicode_InternFromString(("weight_hh" + suffix).c_str())),
        b_ih(PyUnicode_InternFromString(("bias_ih" + suffix).c_str())),
        b_hh(PyUnicode_InternFromString(("bias_hh" + suffix).c_str())) {}
};

// of each layer and direction
using NamesOfLayers = std::deque<std::array<Names, 2>>;
constexpr size_t kMostLayers = 1 << 16;

// W_ih and W_hh packed once: the tuple that `freeze` returns. Of each matrix it keeps the tensor, the storage
// that it had (so that no other can stand at that address) and the version.
enum FrozenMatrix { kTensor, kStorage, kVersion, kMatrixItems };
enum Frozen { kPacked, kIsa, kInput, kHidden = kInput + kMatrixItems, kItems = kHidden + kMatrixItems };

const Tensor* tensor_of(PyObject* tuple, int item) {
  PyObject* const object = PyTuple_GET_ITEM(tuple, item);
  return THPVariable_Check(object) ? &THPVariable_Unpack(object) : nullptr;
}

// whether w is the tensor that was packed, and torch counts no change of its numbers since
bool is_unchanged(const Tensor& w, PyObject* frozen, int first) {
  const Tensor *tensor = tensor_of(frozen, first + kTensor), *storage = tensor_of(frozen, first + kStorage);
  PyObject* const version = PyTuple_GET_ITEM(frozen, first + kVersion);
  return tensor && storage && PyLong_Check(version) && tensor->is_same(w) && !w.is_inference() &&
         storage->const_data_ptr() == w.const_data_ptr() && storage->sizes() == w.sizes() &&
         storage->scalar_type() == w.scalar_type() &&
         PyLong_AsLongLong(version) == static_cast<int64_t>(w._version());
}

// Its memory, if the weights and the instruction set are still those that it was made of and for; else null.
const void* frozen_of(PyObject* frozen, const Kernels& k, const Tensor& w_ih, const Tensor& w_hh) {
  if (!PyTuple_Check(frozen) || PyTuple_GET_SIZE(frozen) != kItems) return nullptr;
  const Tensor* const packed = tensor_of(frozen, kPacked);
  PyObject* const isa = PyTuple_GET_ITEM(frozen, kIsa);
  const bool current = packed && PyUnicode_Check(isa) && PyUnicode_CompareWithASCIIString(isa, k.name) == 0 &&
                       is_unchanged(w_ih, frozen, kInput) && is_unchanged(w_hh, frozen, kHidden);
  return current ? packed->const_data_ptr() : nullptr;
}

template <class A>
Tensor packed_weights(Mode mode, const Tensor& w_ih, const Tensor& w_hh) {
  const LayerKernels<A>& layer = kernels().layer(A());
  ForwardParams<A> p{};
  p.I = w_ih.size(1), p.H = p.P = w_hh.size(1);
  p.w_ih = w_ih.const_data_ptr<A>(), p.w_hh = w_hh.const_data_ptr<A>();
  const int gates = gates_of(mode);
  const auto bytes = static_cast<int64_t>(layer.freeze(gates, p, nullptr));
  const Tensor to = at::empty({bytes}, w_ih.options().dtype(at::kByte));
  layer.freeze(gates, p, to.mutable_data_ptr());
  return to;
}

struct Direct {
  Mode mode;
  at::ScalarType type;
  int64_t T, B, I, H;
  int L, D;                         // layers, and directions of each
  bool batch_first, graph, biased;  // biased: its biases are among the parameters, or it is none of ours
  const Tensor *x, *h, *c;          // the caller's; h and c may be null: zeros
  struct Weights {
    const Tensor *w_ih, *w_hh, *b_ih, *b_hh;  // the biases may be null
    // another thread may make the module let go of them while a kernel reads
    std::array<pybind11::object, 4> held;
    const void* frozen;  // what they packed before, or null
  };
  c10::SmallVector<Weights, 2> weights;  // of the first layer's directions, of the second's, and so on
  const Kernels* set;
  c10::SmallVector<int64_t, 3> state_size;

  // Finds the tensors, of all layers before one of them runs; false if one is the op's. T, B, I, L, D are
  // set, and the size of a state is known. packed: what `freeze` returned, or None, for each of `weights`; or
  // null
  bool read(const NamesOfLayers& names, PyObject* parameters, PyObject* input, PyObject* hx, PyObject* cx,
            PyObject* const* packed, at::IntArrayRef leading) {
    PyObject* const first = PyDict_GetItemWithError(parameters, names[0][0].w_hh);
    if (!first || !THPVariable_CheckExact(first) || THPVariable_Unpack(first).dim() != 2) return false;
    H = THPVariable_Unpack(first).size(1);
    if (T == 0 || B == 0 || I == 0 || H == 0) return false;
    // None is null, which is fine; what cannot be read is not
    bool all = true;
    const auto optional = [&](PyObject* object, at::IntArrayRef size) -> const Tensor* {
      if (object == Py_None) return nullptr;
      const Tensor* t = readable(object, type, size, graph);
      all &= t != nullptr;
      return t;
    };
    state_size.assign(leading.begin(), leading.end());
    state_size.push_back(H);
    x = readable(input, type, THPVariable_Unpack(input).sizes(), graph);
    h = optional(hx, state_size);
    c = optional(cx, state_size);
    if (!all || !x || (mode == Mode::kLstm && !h != !c)) return false;
    set = &kernels();
    weights.resize(L * D);
    for (int i = 0; i < L * D; ++i) {
      Weights& w = weights[i];
      const Names& name = names[i / D][i % D];
      size_t count = 0;
      const auto parameter = [&](PyObject* of) {
        PyObject* const object = PyDict_GetItemWithError(parameters, of);
        w.held[count++] = pybind11::reinterpret_borrow<pybind11::object>(object);
        return object;
      };
      const int64_t rows = gates_of(mode) * H;
      w.w_ih = readable(parameter(name.w_ih), type, {rows, i < D ? I : D * H}, graph);
      w.w_hh = readable(parameter(name.w_hh), type, {rows, H}, graph);
      w.b_ih = optional(biased ? parameter(name.b_ih) : Py_None, {rows});
      w.b_hh = optional(biased ? parameter(name.b_hh) : Py_None, {rows});
      const Tensor* const as_first = weights[0].b_ih;
      if (!all || !w.w_ih || !w.w_hh || !w.b_ih != !as_first || !w.b_hh != !as_first) return false;
      // a longer sequence packs panels as wide as suits its batch
      constexpr int64_t kFewSteps = 12;
      if (packed && packed[i] != Py_None && T <= kFewSteps)
        w.frozen = frozen_of(packed[i], *set, *w.w_ih, *w.w_hh);
    }
    return true;
  }

  // y, h_n and c_n as the op has them
  std::array<Tensor, 3> recorded() const {
    static const auto op = find_op<decltype(recurrent)>("rnnfast::recurrent");
    static constexpr std::string_view kModes[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
    const pybind11::gil_scoped_release without_gil;
    const auto given = [](const Tensor* t) { return t ? OptTensor(*t) : std::nullopt; };
    // a view is recorded too, even one of the same size
    const auto view = [](const Tensor& t, at::IntArrayRef size) {
      return t.sizes() == size ? t : t.view(size);
    };
    const auto state = [&](const Tensor* t, int k) {
      if (!t) return at::zeros({D, B, H}, x->options());
      const Tensor all = view(*t, {L * D, B, H});
      return L == 1 ? all : all.narrow(0, k * D, D);
    };
    const bool has_cell = mode == Mode::kLstm;
    const OptTensor none;
    Tensor y = x->dim() == 3 ? *x : x->view({T, B, I});
    c10::SmallVector<Tensor, 2> hn, cn;
    for (int k = 0; k < L; ++k) {
      const Weights &w = weights[k * D], &reverse = weights[k * D + D - 1];
      const auto of_reverse = [&](const Tensor* t) { return D == 2 ? given(t) : none; };
      auto [above, h_k, c_k, gates, cells] =
          op.call(kModes[static_cast<int>(mode)], y, state(h, k), has_cell ? OptTensor(state(c, k)) : none,
                  *w.w_ih, *w.w_hh, given(w.b_ih), given(w.b_hh), none, of_reverse(reverse.w_ih),
                  of_reverse(reverse.w_hh), of_reverse(reverse.b_ih), of_reverse(reverse.b_hh), none, none,
                  batch_first, /*save=*/true, none, none, none, none);
      y = std::move(above);
      hn.push_back(std::move(h_k)), cn.push_back(std::move(c_k));
    }
    const auto all = [&](at::ArrayRef<Tensor> states) {
      return view(L == 1 ? states[0] : at::cat(states), state_size);
    };
    return {y, all(hn), has_cell ? all(cn) : Tensor()};
  }

  Tensor empty(at::IntArrayRef size) const { return kept_empty(size, x->options()); }

  // y, h_n and c_n; y may be h_n (one step), c_n is undefined for a cell without c
  void run(const Tensor& y, const Tensor& hn, const Tensor& cn) const {
    const pybind11::gil_scoped_release without_gil;
    const WalkStorage walk = WalkStorage::dense(T, B, batch_first);
    const auto run_layer = type == at::kDouble ? &Direct::run_as<double> : &Direct::run_as<float>;
    // layers write to y and to another in turn, the last one to y
    const Tensor other = L > 1 ? empty(y.sizes()) : Tensor(), *below = x;
    for (int k = 0; k < L; ++k) {
      const Tensor* const above = (L - 1 - k) % 2 ? &other : &y;
      (this->*run_layer)(k, walk.walk, *below, *above, hn, cn);
      below = above;
    }
  }

  template <class A>
  void run_as(int layer, const Walk& walk, const Tensor& input, const Tensor& y, const Tensor& hn,
              const Tensor& cn) const {
    const auto in = [](const Tensor* t, int64_t offset = 0) {
      return t ? t->const_data_ptr<A>() + offset : nullptr;
    };
    const Kernels& k = *set;
    const int64_t inputs = layer ? D * H : I;
    A* const last_c = cn.defined() ? cn.mutable_data_ptr<A>() : nullptr;
    ForwardParams<A> params[2]{};
    bool frozen = true;
    for (int d = 0; d < D; ++d) {
      const Weights& w = weights[layer * D + d];
      const int64_t state = (layer * D + d) * B * H;
      ForwardParams<A>& p = params[d];
      p.walk = walk;
      p.walk.reverse = d == 1;
      p.I = inputs, p.H = H, p.P = H;
      p.x = in(&input), p.h0 = in(h, state), p.c0 = in(c, state);
      p.w_ih = in(w.w_ih), p.w_hh = in(w.w_hh);
      p.b_ih = in(w.b_ih), p.b_hh = in(w.b_hh);
      p.frozen = w.frozen;
      p.y = y.mutable_data_ptr<A>() + d * H;
      p.ldy = D * H;
      p.hn = hn.mutable_data_ptr<A>() + state;
      p.cn = last_c ? last_c + state : nullptr;
      frozen &= w.frozen != nullptr;
    }
    Shape shape{T, B, T * B, inputs, H, H, gates_of(mode), 1, k.vector_bytes / int(sizeof(A)), false};
    shape.frozen = frozen;
    shape.directions = D;
    launch(frozen ? "frozen" : "direct", shape, sizeof(A) == 4,
           [&](int d, Plan plan, void* workspace, Team::Member* member) {
             return k.layer(A()).forward(mode, &params[d], plan, workspace, member);
           });
  }
};

// What both functions begin with: mode, parameters, input; false if the input is the op's.
bool begin(Direct& d, const char* name, PyObject* const* args) {
  TORCH_CHECK(PyUnicode_Check(args[0]) && PyDict_Check(args[1]), name,
              ": expected mode, a str, and parameters, a dict");
  if (interposed() || !THPVariable_CheckExact(args[2])) return false;
  d.mode = parse_mode(name, PyUnicode_AsUTF8(args[0]));
  d.type = THPVariable_Unpack(args[2]).scalar_type();
  return d.type == at::kFloat || d.type == at::kDouble;
}

PyObject* wrap(const Tensor& t) { return t.defined() ? THPVariable_Wrap(t) : Py_NewRef(Py_None); }

// freeze(mode, w_ih, w_hh) -> a tuple for `frozen`, of float32 or float64 on the CPU, dense
PyObject* freeze(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(n == 3 && PyUnicode_Check(args[0]) && THPVariable_Check(args[1]) && THPVariable_Check(args[2]),
              "freeze: expected mode, w_ih and w_hh");
  const Mode mode = parse_mode("freeze", PyUnicode_AsUTF8(args[0]));
  const Tensor &w_ih = THPVariable_Unpack(args[1]), &w_hh = THPVariable_Unpack(args[2]);
  for (const Tensor& w : {w_ih, w_hh}) {
    TORCH_CHECK(w.is_cpu() && (w.scalar_type() == at::kFloat || w.scalar_type() == at::kDouble),
                "rnnfast.freeze: expected weights of float32 or float64 on the CPU, got ", w.scalar_type(),
                " on ", w.device());
    TORCH_CHECK(w.layout() == at::kStrided && w.is_contiguous(),
                "rnnfast.freeze: expected weights that are contiguous, got one that is not");
    TORCH_CHECK(!w.is_inference(),
                "rnnfast.freeze: expected weights made outside of inference mode, in which torch counts no "
                "changes of them");
  }
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.scalar_type() == w_hh.scalar_type() &&
                  w_ih.size(0) == gates_of(mode) * w_hh.size(1) && w_hh.size(0) == w_ih.size(0),
              "rnnfast.freeze: expected w_ih [", gates_of(mode), " H, I] and w_hh [", gates_of(mode),
              " H, H] of one dtype, got ", w_ih.sizes(), " and ", w_hh.sizes());
  const auto pack = w_ih.scalar_type() == at::kDouble ? packed_weights<double> : packed_weights<float>;
  const Tensor packed = pack(mode, w_ih, w_hh);
  const auto version = [](const Tensor& w) { return static_cast<long long>(w._version()); };
  return Py_BuildValue("(NsNNLNNL)", wrap(packed), kernels().name, wrap(w_ih), wrap(w_ih.detach()),
                       version(w_ih), wrap(w_hh), wrap(w_hh.detach()), version(w_hh));
  END_HANDLE_TH_ERRORS
}

// try_cell(mode, parameters, input, hx, cx, frozen) -> h', or (h', c') for LSTM; hx None is zeros; frozen is
// what `freeze` returned for these weights, or None
PyObject* try_cell(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  static const NamesOfLayers names{{Names(""), Names("")}};
  TORCH_CHECK(n == 6, "try_cell: expected mode, parameters, input, hx, cx and frozen");
  Direct d{};
  if (!begin(d, "try_cell", args)) Py_RETURN_NONE;
  const at::IntArrayRef x = THPVariable_Unpack(args[2]).sizes();
  if (x.size() < 1 || x.size() > 2) Py_RETURN_NONE;
  d.T = 1, d.B = x.size() == 2 ? x[0] : 1, d.I = x.back(), d.L = d.D = 1;
  d.biased = true;  // a cell without them has None under their names
  if (!d.read(names, args[1], args[2], args[3], args[4], &args[5], x.slice(0, x.size() - 1))) Py_RETURN_NONE;
  if (d.graph) {
    const auto [y, h, c] = d.recorded();
    return c.defined() ? Py_BuildValue("(NN)", wrap(h), wrap(c)) : wrap(h);
  }
  RECORD_FUNCTION("rnnfast::cell", {});
  const Tensor h = d.empty(d.state_size), c = d.mode == Mode::kLstm ? d.empty(d.state_size) : Tensor();
  d.run(h, h, c);
  return c.defined() ? Py_BuildValue("(NN)", wrap(h), wrap(c)) : wrap(h);
  END_HANDLE_TH_ERRORS
}

// try_layers(mode, parameters, input, hx, cx, bias, batch_first, layers, both, frozen) -> (y, h_n, c_n or
// None), of so many layers in one direction or both; frozen is a tuple of what `freeze` returned for each of
// them, or None
PyObject* try_layers(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  static NamesOfLayers names;  // of all layers that were asked for
  TORCH_CHECK(
      n == 10,
      "try_layers: expected mode, parameters, input, hx, cx, bias, batch_first, layers, both and frozen");
  const size_t layers = PyLong_AsSize_t(args[7]);
  if (PyErr_Occurred()) return nullptr;
  TORCH_CHECK(layers > 0 && layers <= kMostLayers, "try_layers: expected 1 to ", kMostLayers, " layers, got ",
              layers);
  while (names.size() < layers) {
    const std::string suffix = "_l" + std::to_string(names.size());
    names.push_back({Names(suffix), Names(suffix + "_reverse")});
  }
  Direct d{};
  if (!begin(d, "try_layers", args)) Py_RETURN_NONE;
  const at::IntArrayRef x = THPVariable_Unpack(args[2]).sizes();
  if (x.size() < 2 || x.size() > 3) Py_RETURN_NONE;
  const bool batched = x.size() == 3;
  d.biased = args[5] == Py_True;
  d.batch_first = batched && args[6] == Py_True;
  d.L = static_cast<int>(layers), d.D = args[8] == Py_True ? 2 : 1;
  d.T = x[d.batch_first ? 1 : 0], d.B = batched ? x[d.batch_first ? 0 : 1] : 1, d.I = x.back();
  const int64_t leading[] = {d.L * d.D, d.B};
  const bool packed = PyTuple_Check(args[9]) && PyTuple_GET_SIZE(args[9]) == d.L * d.D;
  if (!d.read(names, args[1], args[2], args[3], args[4], packed ? PySequence_Fast_ITEMS(args[9]) : nullptr,
              {leading, batched ? 2u : 1u}))
    Py_RETURN_NONE;
  c10::SmallVector<int64_t, 3> y_size(x.begin(), x.end());
  y_size.back() = d.D * d.H;
  if (d.graph) {
    const auto [y, h, c] = d.recorded();
    return Py_BuildValue("(NNN)", wrap(batched ? y : y.view(y_size)), wrap(h), wrap(c));
  }
  RECORD_FUNCTION("rnnfast::layers", {});
  const Tensor y = d.empty(y_size), h = d.empty(d.state_size),
               c = d.mode == Mode::kLstm ? d.empty(d.state_size) : Tensor();
  d.run(y, h, c);
  return Py_BuildValue("(NNN)", wrap(y), wrap(h), wrap(c));
  END_HANDLE_TH_ERRORS
}

template <class F>
PyMethodDef method(const char* name, F function, const char* text) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, text};
}

}  // namespace

PyMethodDef direct_methods[] = {
    method("try_cell", try_cell, "One step of a cell, or None: then there is more to it."),
    method("try_layers", try_layers, "One or more layers, or None: then there is more to it."),
    method("freeze", freeze, "A layer's weights, packed once."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace rnnfast
