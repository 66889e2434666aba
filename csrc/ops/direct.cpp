// From Python straight to the kernel, or to the op's autograd kernel where a graph is wanted: `_C.try_cell`
// and `_C.try_layers`, plain functions. They take what a kernel can read as it is, and leave everything else,
// every error too, to the way through Python by returning None. A stream calls a layer thousands of times a
// second, and Python's checks and the dispatcher take 10 us, which is more than a step.
#include "ops/direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <deque>
#include <limits>

#include "ops/cpu_tensors.h"
#include "ops/launch.h"
#include "ops/layers_call.h"
#include "ops/overlap.h"

namespace rnnfast {
namespace {

// The tensor, None, or null for what is neither or of a subclass
const Tensor* tensor_or_none(PyObject* object) {
  if (object == Py_None) return &kNone;
  return object && THPVariable_CheckExact(object) ? &THPVariable_Unpack(object) : nullptr;
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
// Floats may be packed twice: for multiply-adds, which few rows take in any case, and behind that, from byte
// kOffset on, for many rows, by so many products of parts.
enum Frozen {
  kPacked,
  kIsa,
  kProducts,
  kOffset,
  kInput,
  kHidden = kInput + kMatrixItems,
  kItems = kHidden + kMatrixItems
};

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

// the products of parts that these kernels make of a layer of this dtype
int products_of(const Kernels& k, at::ScalarType layer) {
  return cpu::element_type(k, layer) == at::kFloat ? k.products : 0;
}

// Its memory for these kernels, if the weights are still those that it was made of, and it was made for them;
// else null.
const void* frozen_of(PyObject* frozen, const Tensor& w_ih, const Tensor& w_hh, const Kernels& k) {
  if (!PyTuple_Check(frozen) || PyTuple_GET_SIZE(frozen) != kItems) return nullptr;
  const auto number = [&](int item) {
    PyObject* const object = PyTuple_GET_ITEM(frozen, item);
    return PyLong_Check(object) ? PyLong_AsLongLong(object) : -1;
  };
  const Tensor* const packed = tensor_of(frozen, kPacked);
  PyObject* const isa = PyTuple_GET_ITEM(frozen, kIsa);
  const int products = products_of(k, w_hh.scalar_type());
  const bool current = packed && PyUnicode_Check(isa) && PyUnicode_CompareWithASCIIString(isa, k.name) == 0 &&
                       (products == 0 || products == number(kProducts)) &&
                       is_unchanged(w_ih, frozen, kInput) && is_unchanged(w_hh, frozen, kHidden);
  if (!current) return nullptr;
  return static_cast<const char*>(packed->const_data_ptr()) + (products ? number(kOffset) : 0);
}

// What `frozen` of a call begins with
struct PackedWeights {
  Tensor packed;
  const char* isa;
  int products;
  long long offset;
};

PackedWeights packed_weights(Mode mode, const Tensor& w_ih, const Tensor& w_hh) {
  const Kernels& k = kernels();
  const at::ScalarType type = w_ih.scalar_type();
  constexpr int64_t kMany = std::numeric_limits<int64_t>::max();
  const Kernels& for_many = kernels_for(kMany, w_hh.size(1), kMany, type);
  PackedWeights to{{}, k.name, products_of(for_many, type), 0};
  // where floats are packed in parts as well, both read the same floats
  cpu::Operands o(to.products ? for_many : k, type);
  cpu::with_element(o.element, [&](auto e) {
    typedef decltype(e) E;
    ForwardParams<E> p{};
    p.I = w_ih.size(1), p.H = p.P = w_hh.size(1);
    p.w_ih = o.weight(w_ih), p.w_hh = o.weight(w_hh);
    const int gates = facts_of(mode).gates;
    const auto bytes = [&](const Kernels& of) { return of.layer(e).freeze(gates, p, nullptr); };
    to.offset = bytes(k);
    const int64_t size = to.offset + (to.products ? bytes(for_many) : 0);
    to.packed = at::empty({size}, w_ih.options().dtype(at::kByte));
    char* const data = static_cast<char*>(to.packed.mutable_data_ptr());
    k.layer(e).freeze(gates, p, data);
    if (to.products) for_many.layer(e).freeze(gates, p, data + to.offset);
  });
  return to;
}

// resets and reset_state as a call is given them by name
struct Anew {
  PyObject *resets = Py_None, *h = Py_None, *c = Py_None;

  // false if something else was given, or a state of no known form
  bool read(PyObject* given, bool has_cell) {
    static PyObject* const names[] = {PyUnicode_InternFromString("resets"),
                                      PyUnicode_InternFromString("reset_state")};
    if (!PyDict_CheckExact(given)) return false;
    if (PyDict_GET_SIZE(given) == 0) return true;
    PyObject* const at = PyDict_GetItemWithError(given, names[0]);
    PyObject* const state = PyDict_GetItemWithError(given, names[1]);
    if (PyDict_GET_SIZE(given) != (at != nullptr) + (state != nullptr)) return false;
    if (at) resets = at;
    if (!state || state == Py_None) return true;
    const bool is_pair = PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2;
    h = state;
    if (has_cell && is_pair) h = PyTuple_GET_ITEM(state, 0), c = PyTuple_GET_ITEM(state, 1);
    return resets != Py_None && h != Py_None && is_pair == has_cell;
  }
};

// What the arguments of try_cell and try_layers begin with
enum CallItem { kMode, kParameters, kInputTensor, kHx, kCx };

// A call of a module
struct Direct : LayersCall {
  using LayersCall::LayersCall;
  Anew anew;
  Tensor first_h, first_c;  // the initial state, where it is learned and no other one given
  // what holds the weights: another thread may make the module let go of them while a kernel reads
  c10::SmallVector<pybind11::object, 8> held;

  // Finds the tensors, of all layers before one of them runs; false if one is the op's. T, B, I and D are
  // set. biased: its biases are among the parameters, or it is none of ours. packed: what `freeze` returned,
  // or None, for each of `weights`; or null. one_for_all: of a state that serves all rows, without its last
  // size. initial: None, or the learned state, (h_0, c_0 or None).
  bool read(const NamesOfLayers& names, PyObject* const* call, bool biased, PyObject* const* packed,
            at::IntArrayRef leading, PyObject* given, at::IntArrayRef one_for_all,
            PyObject* initial = Py_None) {
    if (!anew.read(given, s.has_cell)) return false;
    PyObject* const parameters = call[kParameters];
    PyObject* const first = PyDict_GetItemWithError(parameters, names[0][0].w_hh);
    if (!first || !THPVariable_CheckExact(first) || THPVariable_Unpack(first).dim() != 2) return false;
    s.H = s.P = THPVariable_Unpack(first).size(1);
    const Tensor *hidden = tensor_or_none(call[kHx]), *cell = tensor_or_none(call[kCx]);
    if (initial != Py_None) {
      PyObject *const h_0 = PyTuple_GET_ITEM(initial, 0), *const c_0 = PyTuple_GET_ITEM(initial, 1);
      if (call[kHx] == Py_None) {
        first_h = of_each_row(tensor_or_none(h_0), leading),
        first_c = of_each_row(tensor_or_none(c_0), leading);
        if (!first_h.defined() || first_c.defined() != s.has_cell) return false;
        hidden = &first_h, cell = &first_c;
      }
      if (anew.resets != Py_None && anew.h == Py_None) anew.h = h_0, anew.c = c_0;
    }
    if (!take(tensor_or_none(call[kInputTensor]), hidden, cell, leading)) return false;
    if (anew.resets != Py_None && !take_resets(tensor_or_none(anew.resets), tensor_or_none(anew.h),
                                               tensor_or_none(anew.c), one_for_all))
      return false;
    for (int i = 0; i < L * s.D; ++i) {
      const Names& name = names[i / s.D][i % s.D];
      const auto parameter = [&](PyObject* of) {
        PyObject* const object = PyDict_GetItemWithError(parameters, of);
        held.push_back(pybind11::reinterpret_borrow<pybind11::object>(object));
        return tensor_or_none(object);
      };
      const Tensor *const w_ih = parameter(name.w_ih), *const w_hh = parameter(name.w_hh);
      const Tensor* const b_ih = biased ? parameter(name.b_ih) : &kNone;
      const Tensor* const b_hh = biased ? parameter(name.b_hh) : &kNone;
      if (!take(w_ih, w_hh, b_ih, b_hh)) return false;
      // a longer sequence packs panels as wide as suits its batch
      constexpr int64_t kFewSteps = 12;
      if (packed && packed[i] != Py_None && s.T <= kFewSteps && w_hh->scalar_type() == type)
        frozen.back() = frozen_of(packed[i], *w_ih, *w_hh, *kernels);
    }
    return straight && !(graph && casts);
  }

  // the learned state [L D, 1, .] of each row, of the sizes `leading` and the last one; or None
  Tensor of_each_row(const Tensor* t, at::IntArrayRef leading) const {
    if (!t || !is_plain(*t) || t->dim() != 3 || t->size(0) != L * s.D || t->size(1) != 1) return {};
    c10::SmallVector<int64_t, 3> size(leading.begin(), leading.end());
    size.push_back(t->size(2));
    return t->expand({-1, s.B, -1}).reshape(size).contiguous();
  }

  std::array<Tensor, 3> run_by_op() const {
    const pybind11::gil_scoped_release without_gil;
    return LayersCall::run_by_op();
  }
  void run(const Tensor& y, const Tensor& hn, const Tensor& cn) const {
    const pybind11::gil_scoped_release without_gil;
    LayersCall::run(y, hn, cn);
  }
};

// What both functions begin with
struct Beginning {
  Mode mode;
  at::ScalarType type;
  bool casts;
};

// or nothing, if the input is the op's
std::optional<Beginning> begin(const char* name, PyObject* const* call) {
  TORCH_CHECK(PyUnicode_Check(call[kMode]) && PyDict_Check(call[kParameters]), name,
              ": expected mode, a str, and parameters, a dict");
  if (interposed() || at::impl::torch_function_mode_enabled() || !THPVariable_CheckExact(call[kInputTensor]))
    return std::nullopt;
  const Mode mode = parse_mode(name, PyUnicode_AsUTF8(call[kMode]));
  const auto asked = autocast_type();
  const at::ScalarType type = asked.value_or(THPVariable_Unpack(call[kInputTensor]).scalar_type());
  if (asked ? !at::isReducedFloatingType(type) : !has_kernel(type)) return std::nullopt;
  return Beginning{mode, type, asked.has_value()};
}

PyObject* wrap(const Tensor& t) { return t.defined() ? THPVariable_Wrap(t) : Py_NewRef(Py_None); }

// freeze(mode, w_ih, w_hh) -> a tuple for `frozen`, of weights on the CPU, dense
PyObject* freeze(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(n == 3 && PyUnicode_Check(args[0]) && THPVariable_Check(args[1]) && THPVariable_Check(args[2]),
              "freeze: expected mode, w_ih and w_hh");
  const Mode mode = parse_mode("freeze", PyUnicode_AsUTF8(args[0]));
  const Tensor &w_ih = THPVariable_Unpack(args[1]), &w_hh = THPVariable_Unpack(args[2]);
  for (const Tensor& w : {w_ih, w_hh}) {
    TORCH_CHECK(w.is_cpu() && has_kernel(w.scalar_type()),
                "rnnfast.freeze: expected weights of float32, float64, bfloat16 or float16 on the CPU, got ",
                w.scalar_type(), " on ", w.device());
    TORCH_CHECK(w.layout() == at::kStrided && w.is_contiguous(),
                "rnnfast.freeze: expected weights that are contiguous, got one that is not");
    TORCH_CHECK(!w.is_inference(),
                "rnnfast.freeze: expected weights made outside of inference mode, in which torch counts no "
                "changes of them");
  }
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.scalar_type() == w_hh.scalar_type() &&
                  w_ih.size(0) == facts_of(mode).gates * w_hh.size(1) && w_hh.size(0) == w_ih.size(0),
              "rnnfast.freeze: expected w_ih [", facts_of(mode).gates, " H, I] and w_hh [",
              facts_of(mode).gates, " H, H] of one dtype, got ", w_ih.sizes(), " and ", w_hh.sizes());
  const auto [packed, isa, products, offset] = packed_weights(mode, w_ih, w_hh);
  const auto version = [](const Tensor& w) { return static_cast<long long>(w._version()); };
  return Py_BuildValue("(NsiLNNLNNL)", wrap(packed), isa, products, offset, wrap(w_ih), wrap(w_ih.detach()),
                       version(w_ih), wrap(w_hh), wrap(w_hh.detach()), version(w_hh));
  END_HANDLE_TH_ERRORS
}

// try_cell(mode, parameters, input, hx, cx, frozen, given) -> h', or (h', c') for a cell with c; hx None is
// zeros; frozen is what `freeze` returned for these weights, or None; given is a dict of what was given by
// name
PyObject* try_cell(PyObject*, PyObject* const* call, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  static const NamesOfLayers names{{Names(""), Names("")}};
  TORCH_CHECK(n == 7, "try_cell: expected mode, parameters, input, hx, cx, frozen and given");
  const auto to_do = begin("try_cell", call);
  if (!to_do) Py_RETURN_NONE;
  const at::IntArrayRef x = THPVariable_Unpack(call[kInputTensor]).sizes();
  if (x.size() < 1 || x.size() > 2) Py_RETURN_NONE;
  Direct d(to_do->mode, to_do->type, /*layers=*/1, to_do->casts);
  d.s.T = 1, d.s.B = x.size() == 2 ? x[0] : 1, d.s.I = x.back(), d.s.D = 1;
  // without biases None has their names
  const int64_t one[] = {1};
  const at::IntArrayRef leading = x.slice(0, x.size() - 1);
  if (!d.read(names, call, /*biased=*/true, &call[kCx + 1], leading, call[kCx + 2], {one, leading.size()}))
    Py_RETURN_NONE;
  if (d.graph) {
    const auto [y, h, c] = d.run_by_op();
    return c.defined() ? Py_BuildValue("(NN)", wrap(h), wrap(c)) : wrap(h);
  }
  RECORD_FUNCTION("rnnfast::cell", {});
  const Tensor h = d.empty(d.state_size), c = d.empty_cell();
  d.run(h, h, c);
  return c.defined() ? Py_BuildValue("(NN)", wrap(h), wrap(c)) : wrap(h);
  END_HANDLE_TH_ERRORS
}

// try_layers(mode, parameters, input, hx, cx, (bias, batch_first, layers, both), frozen, given, initial) ->
// (y, h_n, c_n or None), of so many layers in one direction or both; frozen is a tuple of what `freeze`
// returned for each of them, or None; given as try_cell; initial is the learned state (h_0, c_0 or None), or
// None
PyObject* try_layers(PyObject*, PyObject* const* call, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  static NamesOfLayers names;  // of all layers that were asked for
  PyObject* const how = n == 9 ? call[kCx + 1] : nullptr;
  TORCH_CHECK(how && PyTuple_Check(how) && PyTuple_GET_SIZE(how) == 4,
              "try_layers: expected mode, parameters, input, hx, cx, (bias, batch_first, layers, both), "
              "frozen, given "
              "and initial");
  PyObject *const given = call[kCx + 3], *const initial = call[kCx + 4];
  TORCH_CHECK(initial == Py_None || (PyTuple_Check(initial) && PyTuple_GET_SIZE(initial) == 2),
              "try_layers: expected initial to be None or a pair");
  const auto is_true = [&](int item) { return PyTuple_GET_ITEM(how, item) == Py_True; };
  const size_t layers = PyLong_AsSize_t(PyTuple_GET_ITEM(how, 2));
  if (PyErr_Occurred()) return nullptr;
  TORCH_CHECK(layers > 0 && layers <= kMostLayers, "try_layers: expected 1 to ", kMostLayers, " layers, got ",
              layers);
  while (names.size() < layers) {
    const std::string suffix = "_l" + std::to_string(names.size());
    names.push_back({Names(suffix), Names(suffix + "_reverse")});
  }
  const auto to_do = begin("try_layers", call);
  if (!to_do) Py_RETURN_NONE;
  const at::IntArrayRef x = THPVariable_Unpack(call[kInputTensor]).sizes();
  if (x.size() < 2 || x.size() > 3) Py_RETURN_NONE;
  const bool batched = x.size() == 3;
  Direct d(to_do->mode, to_do->type, static_cast<int>(layers), to_do->casts);
  LayerSizes& s = d.s;
  d.one_operator = s.has_cell;
  s.batch_first = batched && is_true(1);
  s.D = is_true(3) ? 2 : 1;
  s.T = x[s.batch_first ? 1 : 0], s.B = batched ? x[s.batch_first ? 0 : 1] : 1, s.I = x.back();
  const int64_t leading[] = {d.L * s.D, s.B};
  PyObject* const frozen = call[kCx + 2];
  const bool packed = PyTuple_Check(frozen) && PyTuple_GET_SIZE(frozen) == d.L * s.D;
  PyObject* const* const of_each = packed ? PySequence_Fast_ITEMS(frozen) : nullptr;
  const int64_t one_for_all[] = {d.L * s.D, 1};
  if (!d.read(names, call, is_true(0), of_each, {leading, batched ? 2u : 1u}, given, one_for_all, initial))
    Py_RETURN_NONE;
  c10::SmallVector<int64_t, 3> y_size(x.begin(), x.end());
  y_size.back() = s.D * s.H;
  if (d.graph) {
    const auto [y, h, c] = d.run_by_op();
    return Py_BuildValue("(NNN)", wrap(batched ? y : y.view(y_size)), wrap(h), wrap(c));
  }
  RECORD_FUNCTION("rnnfast::layers", {});
  const Tensor y = d.empty(y_size), h = d.empty(d.state_size), c = d.empty_cell();
  d.run(y, h, c);
  return Py_BuildValue("(NNN)", wrap(y), wrap(h), wrap(c));
  END_HANDLE_TH_ERRORS
}

// the stack that Python has opened in this thread
std::optional<cuda::Stack>& opened_stack() {
  static thread_local std::optional<cuda::Stack> stack;
  return stack;
}

// open_stack(layers, tensors) -> whether the calls of the op up to close_stack() are the layers of a stack
// that run side by side (see overlap.h): x, and all that they read beside it
PyObject* open_stack(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(n == 2 && PyLong_Check(args[0]) && PyList_CheckExact(args[1]) && PyList_GET_SIZE(args[1]) > 0,
              "open_stack: expected the number of layers and a list of tensors");
  if (interposed() || at::impl::torch_function_mode_enabled()) Py_RETURN_FALSE;
  const Tensor* x = nullptr;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); ++i) {
    const Tensor* const t = tensor_or_none(PyList_GET_ITEM(args[1], i));
    if (!t || (t->defined() && !LayersCall::is_plain(*t, at::kCUDA))) Py_RETURN_FALSE;
    if (i == 0) x = t;
  }
  const int64_t layers = PyLong_AsLongLong(args[0]);
  if (!x->defined() || !cuda::Stack::suits(*x, layers)) Py_RETURN_FALSE;
  opened_stack().emplace(x->device(), layers);
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

PyObject* close_stack(PyObject*, PyObject* const*, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(n == 0 && opened_stack(), "close_stack: no stack is open");
  opened_stack()->join();
  opened_stack().reset();
  Py_RETURN_NONE;
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
    method("open_stack", open_stack, "Whether layers on a GPU, from here on, run side by side."),
    method("close_stack", close_stack, "They have all been called."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace rnnfast
