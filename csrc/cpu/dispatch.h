// The kernels of one instruction set as a table of functions, and the choice among the sets at run time.
#pragma once
#include <string>
#include <vector>

#include "cpu/params.h"
#include "cpu/team.h"

namespace rnnfast {

// Each function does one member's share of a call; without a member it only returns how many bytes of
// workspace (64-byte aligned) the call needs.
template <class A>
struct KernelsOf {
  size_t (*forward)(Mode, const ForwardParams<A>&, Plan, void* workspace, Team::Member*);
  size_t (*backward)(Mode, const BackwardParams<A>&, Plan, void* workspace, Team::Member*);
  size_t (*deep_forward)(const DeepParams<A>&, Plan, void* workspace, Team::Member*);
  size_t (*deep_backward)(const DeepParams<A>&, Plan, void* workspace, Team::Member*);
  size_t (*gradient)(const GradientParams<A>&, Plan, void* workspace, Team::Member*);
  // elementwise over n numbers, for tests: 'e'xp, 's'igmoid, 't'anh
  void (*math)(char function, const A* x, A* y, int64_t n);
};

using ForwardBf16 = size_t (*)(Mode, const ForwardParams<Bfloat16>&, Plan, void* workspace, Team::Member*);

struct Kernels {
  const char* name;
  int vector_bytes;
  KernelsOf<float> f32;
  KernelsOf<double> f64;
  ForwardBf16 forward_bf16;  // null: this set has no products of bfloat16

  const KernelsOf<float>& of(float) const { return f32; }
  const KernelsOf<double>& of(double) const { return f64; }

  auto forward(float) const { return f32.forward; }
  auto forward(double) const { return f64.forward; }
  auto forward(Bfloat16) const { return forward_bf16; }
};

// The set in use: forced by set_isa or RNNFAST_ISA, else the best that was built and that this processor has.
const Kernels& kernels();
// "" chooses again by itself. Throws std::runtime_error for a name that was not built or that the processor
// lacks.
void set_isa(const std::string& name);
// all that were built and that this processor has, the plainest first
std::vector<std::string> isas();

}  // namespace rnnfast
