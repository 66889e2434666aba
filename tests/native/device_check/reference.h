// The cells and products in double: what the kernels are compared with.
#pragma once
#include <cstdint>
#include <vector>

#include "types.h"

namespace rnnfast::device_check {

// a [m, k] times b [k, n], or b turned [n, k]: [m, n]
std::vector<double> multiply(const std::vector<float>& a, const std::vector<float>& b, bool turned, int64_t m,
                             int64_t k, int64_t n);

// A step of one row, all of its H units.
struct ForwardRow {
  const double* product;  // [G, H]: W_hh h
  const double* input;    // [G, H]: W_ih x + b_ih
  const double* bias;     // [G, H]: b_hh
  double* h;              // [H]: before, and after
  double* c;              // [H]: the same, of a cell that has it
  double* state;          // [S, H]: becomes what is saved
};
void forward(Mode mode, int64_t H, const ForwardRow& row);

struct BackwardRow {
  const double* state;     // [S, H]
  const double* before;    // [H]: h before
  const double* c_before;  // [H]
  const double* c;         // [H]
  double* dh;              // [H]: dL/dh; becomes the part of dL/d(h before) that does not pass W_hh
  double* dc;              // [H]: dL/dc from the step after; becomes dL/d(c before)
  double* da;              // [G, H]
  double* dx;              // [G, H], of a cell that saves more than its gates
};
void backward(Mode mode, int64_t H, const BackwardRow& row);

}  // namespace rnnfast::device_check
