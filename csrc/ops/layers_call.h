// Some layers of one module, for callers that are no op: a call straight from Python (direct.cpp) or of one
// of torch's own operators (aten.cpp). First they are looked at, and only what a kernel or the op can take is
// taken. Then they run: straight in the CPU's kernel, or one by one through the op, where a graph is wanted,
// where the kernel cannot read the tensors as they are, and on a GPU.
#pragma once
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <optional>

#include "ops/cpu_layer.h"
#include "ops/memory.h"

namespace rnnfast {

// Whether something stands between the caller and a kernel: a transform, a tracer, a mode
bool interposed();
// Whether layers of this dtype have one
inline bool has_kernel(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}
// The dtype that autocast asks for on such a device, if it is on
std::optional<at::ScalarType> autocast_type(at::DeviceType on = at::kCPU);

// All in one direction or both. T steps of B rows, I inputs, H units, P outputs, D directions, N rows in all.
struct LayersCall {
  LayerSizes s;               // of the first layer
  const at::ScalarType type;  // that torch's operators would compute in
  const int L;                // layers
  // Autocast asks for the type, and tensors may be of another one of 16 or 32 bits. Then what came, and what
  // is made, is cast as `type` says.
  const bool casts;
  const at::Device device;
  bool one_operator = false;  // under autocast torch casts them as a whole: the results are of `type`
  bool graph = false;         // whether one is asked for
  bool straight;              // whether the kernel reads the tensors as they are
  const Tensor *x, *h, *c;    // the caller's; h and c may be None: zeros
  const Kernels* kernels;  // for the CPU: what was frozen is for some, and the setting may change meanwhile
  const Tensor* batch_sizes = &kNone;       // of packed rows
  const Tensor* resets = &kNone;            // of the rows of x: which begin anew, and
  Tensor reset_h, reset_c;                  // from what, [L D, 1 or B, .], or None: zeros
  double dropout = 0;                       // of what each layer but the last gives
  c10::SmallVector<Weights, 2> weights;     // of the first layer's directions, of the second's, and so on
  c10::SmallVector<const void*, 2> frozen;  // what they packed before, or null
  c10::SmallVector<int64_t, 3> state_size;  // [L D, B, P], or without some of the first
  c10::SmallVector<int64_t, 3> cell_size;   // the same with H

  LayersCall(Mode mode, at::ScalarType layer, int layers, bool by_autocast, at::Device where = at::kCPU)
      : s(mode), type(layer), L(layers), casts(by_autocast), device(where), straight(where.is_cpu()) {}

  // Whether it is a dense tensor on the CPU (or a GPU) and nothing else: no subclass, no lazy minus sign or
  // conjugate
  static bool is_plain(const Tensor& t, at::DeviceType on = at::kCPU);

  // Takes the input and the states, null where there is no tensor; false if they are of no kind that is
  // taken, or of a wrong size. T, B, I, D, H and P are set, and the sizes of states are `leading`, then P or
  // H.
  bool take(const Tensor* input, const Tensor* hidden, const Tensor* cell, at::IntArrayRef leading);
  // Takes the weights of the next direction, likewise
  bool take(const Tensor* w_ih, const Tensor* w_hh, const Tensor* b_ih, const Tensor* b_hh,
            const Tensor* w_hr = &kNone);

  // Takes resets of the caller's, and what states rows begin anew from, None, of state_size and cell_size, or
  // with these dimensions and a size of their own: one for all rows. After the input.
  bool take_resets(const Tensor* at, const Tensor* reset_hidden, const Tensor* reset_cell,
                   at::IntArrayRef one_for_all);

  // What comes out of a product has its dtype: an Elman cell's h. With more than one gate the new state is
  // mixed with the old one, which autocast leaves as it is.
  at::ScalarType result_type() const {
    if (!casts || s.gates == 1 || one_operator) return type;
    const Tensor& state = c->defined() ? *c : h->defined() ? *h : *x;
    return c10::promoteTypes(state.scalar_type(), type);
  }
  Tensor empty(at::IntArrayRef size) const { return kept_empty(size, at::TensorOptions(result_type())); }
  Tensor empty_cell() const { return s.has_cell ? empty(cell_size) : Tensor(); }

  // Straight: y, h_n and c_n, as `empty` makes them; y may be h_n (one step), c_n is undefined for a cell
  // without c. No graph is made.
  void run(const Tensor& y, const Tensor& hn, const Tensor& cn) const;

  // Through the op: the same as new tensors. Not for one that casts.
  std::array<Tensor, 3> run_by_op() const;

 private:
  bool is_taken(const Tensor& t, at::IntArrayRef size);
  bool is_taken_or_none(const Tensor* t, at::IntArrayRef size);
  bool has_taken_type(const Tensor& t) const;
};

}  // namespace rnnfast
