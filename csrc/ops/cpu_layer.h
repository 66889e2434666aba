// A recurrent layer on the CPU, for the op and for direct.cpp.
#pragma once
#include "cpu/dispatch.h"
#include "ops/layer.h"

namespace rnnfast::cpu {

// Runs the kernels of all directions of f, whose products read numbers of type `element`: float, double, or
// bfloat16 where k has it. op: under which name it is recorded.
void run_forward(const char* op, const Kernels& k, const LayerForward& f, at::ScalarType element);

}  // namespace rnnfast::cpu
