// One step of a cell for a caller who wants no graph: `_C.try_step`, a plain Python function. It takes what a
// kernel can read as it is, and leaves everything else, every error too, to the op by returning None. Such a
// step is called thousands of times a second; through the dispatcher and Python's checks it costs 10 us,
// which is more than the step itself.
#include "step.h"

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "check.h"
#include "launch.h"

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

// A tensor whose numbers lie row by row in the CPU's memory, of this type and size, and outside any graph;
// null otherwise
const Tensor* readable(PyObject* object, at::ScalarType type, at::IntArrayRef size) {
  static const DispatchKeySet usual{DispatchKey::Dense, DispatchKey::AutogradCPU,
                                    DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU};
  static const DispatchKeySet cpu(c10::BackendComponent::CPUBit);
  if (!object || !THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  const bool plain = t.defined() && (t.key_set() - usual) == cpu && t.scalar_type() == type &&
                     t.sizes() == size && t.is_contiguous() && !t._fw_grad(/*level=*/0).defined() &&
                     !(at::GradMode::is_enabled() && t.requires_grad());
  return plain ? &t : nullptr;
}

struct Step {
  Mode mode;
  int64_t B, I, H;
  int gates;
  const Tensor *x, *h, *c;                  // [B, I] or [I], [B, H] or [H]; h and c may be null
  const Tensor *w_ih, *w_hh, *b_ih, *b_hh;  // the biases may be null
};

template <class A>
void run(const Step& s, const Tensor& h_new, const Tensor& c_new) {
  const auto in = [](const Tensor* t) { return t ? t->const_data_ptr<A>() : nullptr; };
  const int64_t offset = 0;
  const Kernels& k = kernels();
  ForwardParams<A> p{};
  p.walk = {1, s.B, s.B, 1, &offset, &s.B, false};
  p.I = s.I, p.H = s.H, p.P = s.H;
  p.x = in(s.x), p.h0 = in(s.h), p.c0 = in(s.c);
  p.w_ih = in(s.w_ih), p.w_hh = in(s.w_hh);
  p.b_ih = in(s.b_ih), p.b_hh = in(s.b_hh);
  p.y = p.hn = h_new.mutable_data_ptr<A>();
  p.ldy = s.H;
  p.cn = c_new.defined() ? c_new.mutable_data_ptr<A>() : nullptr;
  const Shape shape{1, s.B, s.B, s.I, s.H, s.H, s.gates, 1, k.vector_bytes / int(sizeof(A)), false};
  launch("step", shape, sizeof(A) == 4, [&](Plan plan, void* workspace, Team::Member* member) {
    return k.forward(A())(s.mode, p, plan, workspace, member);
  });
}

// try_step(mode, parameters, input, hx, cx): parameters is the module's dict; hx None is zeros
PyObject* try_step(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  static PyObject *const weight_ih = PyUnicode_InternFromString("weight_ih"),
                         *const weight_hh = PyUnicode_InternFromString("weight_hh"),
                         *const bias_ih = PyUnicode_InternFromString("bias_ih"),
                         *const bias_hh = PyUnicode_InternFromString("bias_hh");
  TORCH_CHECK(n == 5 && PyUnicode_Check(args[0]) && PyDict_Check(args[1]),
              "try_step: expected mode, parameters, input, hx and cx");
  PyObject *const hx = args[3], *const cx = args[4];
  const auto parameter = [&](PyObject* name) { return PyDict_GetItemWithError(args[1], name); };
  if (interposed() || !THPVariable_CheckExact(args[2])) Py_RETURN_NONE;

  const Tensor& x = THPVariable_Unpack(args[2]);
  const at::ScalarType type = x.scalar_type();
  if ((type != at::kFloat && type != at::kDouble) || x.dim() < 1 || x.dim() > 2) Py_RETURN_NONE;
  Step s{};
  s.mode = parse_mode("try_step", PyUnicode_AsUTF8(args[0]));
  s.gates = gates_of(s.mode);
  s.B = x.dim() == 2 ? x.size(0) : 1;
  s.I = x.size(-1);
  PyObject* const w_hh = parameter(weight_hh);
  if (!w_hh || !THPVariable_CheckExact(w_hh) || THPVariable_Unpack(w_hh).dim() != 2) Py_RETURN_NONE;
  s.H = THPVariable_Unpack(w_hh).size(1);
  if (s.B == 0 || s.I == 0 || s.H == 0) Py_RETURN_NONE;

  const int64_t states[] = {s.B, s.H}, rows = s.gates * s.H;
  const at::IntArrayRef state_size(states + (x.dim() == 1), states + 2);
  // an absent one is null, which is fine; a tensor that cannot be read is not
  bool all = true;
  const auto optional = [&](PyObject* object, at::IntArrayRef size) -> const Tensor* {
    if (object == Py_None) return nullptr;
    const Tensor* t = readable(object, type, size);
    all &= t != nullptr;
    return t;
  };
  s.x = optional(args[2], x.sizes());
  s.w_ih = readable(parameter(weight_ih), type, {rows, s.I});
  s.w_hh = readable(w_hh, type, {rows, s.H});
  s.b_ih = optional(parameter(bias_ih), {rows});
  s.b_hh = optional(parameter(bias_hh), {rows});
  s.h = optional(hx, state_size);
  s.c = optional(cx, state_size);
  if (!all || !s.w_ih || !s.w_hh || (s.mode == Mode::kLstm && !s.h != !s.c)) Py_RETURN_NONE;

  RECORD_FUNCTION("rnnfast::step", {});
  const Tensor h_new = at::detail::empty_cpu(state_size, x.options());
  const Tensor c_new = s.mode == Mode::kLstm ? at::detail::empty_cpu(state_size, x.options()) : Tensor();
  {
    const pybind11::gil_scoped_release without_gil;
    (type == at::kDouble ? run<double> : run<float>)(s, h_new, c_new);
  }
  PyObject* const h = THPVariable_Wrap(h_new);
  if (s.mode != Mode::kLstm) return h;
  return Py_BuildValue("(NN)", h, THPVariable_Wrap(c_new));
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef step_methods[] = {
    {"try_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(try_step)), METH_FASTCALL,
     "One step of a cell without a graph -> h', or (h', c'), or None: what it cannot take is the op's."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace rnnfast
