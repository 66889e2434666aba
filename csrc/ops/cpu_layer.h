// A recurrent layer on the CPU, for the op and for direct.cpp.
#pragma once
#include "cpu/dispatch.h"
#include "ops/layer.h"

namespace rnnfast::cpu {

struct WeightMemory {
  WeightMatrix w_ih, w_hh;
  const void *b_ih, *b_hh;
  WeightMatrix w_hr;
};

// What the kernels of a layer's directions read and write, dense, in the dtypes that they do: products and y
// in `element`, all else in what they add up in. Null for what is None.
struct LayerMemory {
  const LayerSizes& s;
  const Walk& walk;                         // of the direction that begins with the first step
  const void* x = nullptr;                  // [., I], of which the walk tells the rows
  const void *h0 = nullptr, *c0 = nullptr;  // [D, B, P], [D, B, H]
  std::array<WeightMemory, 2> weights{};    // of each direction
  std::array<const void*, 2> frozen{};      // of each: ForwardParams::frozen
  void* y = nullptr;                        // output_shape(s)
  void *hn = nullptr, *cn = nullptr;        // [D, B, P], [D, B, H]
  int64_t first = 0;  // this layer's first direction among those of h0, c0, hn, cn: of a stack they have more
  void *gates = nullptr, *cells = nullptr;            // what is saved for backward
  int64_t gate_numbers = 0, cell_numbers = 0;         // of each direction
  const bool* resets = nullptr;                       // of the rows of x
  const void *reset_h = nullptr, *reset_c = nullptr;  // as h0 and c0; null: zeros
  void* cs = nullptr;                                 // cells_shape(s): c of every step
};

// a state of each row of the batch, [D, B, .], of one that may serve all; or None
Tensor of_each_row(const Tensor& state, int64_t B);

// Runs the kernels of all directions, whose products read numbers of type `element`: float, double, or
// bfloat16 where k has it. op: under which name it is recorded.
void run_forward(const char* op, const Kernels& k, const LayerMemory& m, at::ScalarType element);

}  // namespace rnnfast::cpu
