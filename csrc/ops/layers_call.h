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
// The dtype that autocast asks for on such a device, if it is on
std::optional<at::ScalarType> autocast_type(at::DeviceType on = at::kCPU);

// All in one direction or both. T steps of B rows, I inputs, H units, P outputs, D directions, N rows in all.
struct LayersCall {
  LayerSizes s;  // of the first layer
  const at::ScalarType type;
  const at::Device device;
  const int L;                              // layers
  bool graph = false;                       // whether one is asked for
  bool straight;                            // whether the kernel reads the tensors as they are
  const Tensor *x, *h, *c;                  // the caller's; h and c may be None: zeros
  const Tensor* batch_sizes = &kNone;       // of packed rows
  double dropout = 0;                       // of what each layer but the last gives
  c10::SmallVector<Weights, 2> weights;     // of the first layer's directions, of the second's, and so on
  c10::SmallVector<const void*, 2> frozen;  // what they packed before, or null
  c10::SmallVector<int64_t, 3> state_size;  // [L D, B, P], or without some of the first
  c10::SmallVector<int64_t, 3> cell_size;   // the same with H

  LayersCall(Mode mode, at::ScalarType element, int layers, at::Device where = at::kCPU)
      : s(mode),
        type(element),
        device(where),
        L(layers),
        straight(where.is_cpu() && (type == at::kFloat || type == at::kDouble)) {}

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

  Tensor empty(at::IntArrayRef size) const { return kept_empty(size, x->options()); }
  Tensor empty_cell() const { return s.has_cell ? empty(cell_size) : Tensor(); }

  // Straight: y, h_n and c_n; y may be h_n (one step), c_n is undefined for a cell without c. No graph is
  // made.
  void run(const Tensor& y, const Tensor& hn, const Tensor& cn) const;

  // Through the op: the same as new tensors
  std::array<Tensor, 3> run_by_op() const;

 private:
  bool is_taken(const Tensor& t, at::IntArrayRef size);
  bool is_taken_or_none(const Tensor* t, at::IntArrayRef size);
};

}  // namespace rnnfast
