// The kernels of one instruction set as a table of functions, and the choice among the sets at run time.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cpu/params.h"
#include "cpu/team.h"

namespace rnnfast {

// Each function does one member's share of a call; without a member it only returns how many bytes of
// workspace (64-byte aligned) the call needs. forward and backward take as many params as the plan has
// directions, unlike in pointers and in which way they walk.
template <class E>
struct LayerKernels {
  size_t (*forward)(Mode, const ForwardParams<E>*, Plan, void* workspace, Team::Member*);
  size_t (*backward)(Mode, const BackwardParams<E>*, Plan, void* workspace, Team::Member*);
  size_t (*gradient)(const GradientParams<E>&, Plan, void* workspace, Team::Member*);
  // Packs w_ih and w_hh for ForwardParams::frozen, for calls of any size and plan; null: only counts bytes.
  size_t (*freeze)(int gates, const ForwardParams<E>&, void* to);
};

template <class A>
struct KernelsOf {
  LayerKernels<A> layer;
  size_t (*deep_forward)(const DeepParams<A>&, Plan, void* workspace, Team::Member*);
  size_t (*deep_backward)(const DeepParams<A>&, Plan, void* workspace, Team::Member*);
  // elementwise over n numbers, for tests: 's'igmoid, 't'anh
  void (*math)(char function, const A* x, A* y, int64_t n);
};

// n numbers that are stored in 16 bits, to float and, to the nearest, ties to even, back; and both at once
struct Conversion {
  void (*widen)(const uint16_t* x, float* y, int64_t n);
  void (*round_off)(const float* x, uint16_t* y, int64_t n);
  void (*round_within)(const float* x, float* y, int64_t n);
};

// How exact float32's products have to be: as torch's fp32_precision "ieee", "tf32" and "bf16"
enum class Precision { kFloat32, kTf32, kBfloat16 };
constexpr int kPrecisions = 3;

// float32 by a matrix unit for bfloat16, of parts of the numbers
struct FloatsInParts {
  int products;  // of parts, that one of floats is made of
  KernelsOf<float> kernels;
};

struct Kernels {
  const char* name;
  int vector_bytes;
  KernelsOf<float> f32;
  KernelsOf<double> f64;
  Conversion of_bfloat16, of_half;
  const LayerKernels<Bfloat16>* bf16;  // null: this set has no products of bfloat16
  bool matrix_unit;                    // which they are made by
  const Kernels* in_parts = nullptr;   // by Precision: the same set with f32 of that unit's products, or null
  int products = 0;                    // which f32 makes of each: FloatsInParts; 0: multiply-adds

  const KernelsOf<float>& of(float) const { return f32; }
  const KernelsOf<double>& of(double) const { return f64; }

  const LayerKernels<float>& layer(float) const { return f32.layer; }
  const LayerKernels<double>& layer(double) const { return f64.layer; }
  const LayerKernels<Bfloat16>& layer(Bfloat16) const { return *bf16; }

  // whether vectors of numbers of so many bytes write all of a row of padded(units): narrow ones may leave
  // some
  bool fills_padding(int64_t units, int64_t bytes) const {
    const int64_t lanes = vector_bytes / bytes;
    return (units + lanes - 1) / lanes * lanes == padded(units);
  }
};

// Bytes of a core's second cache, or what many have where it is not known
int64_t second_cache();

// The set in use: forced by set_isa or RNNFAST_ISA, else the best that was built and that this processor has.
const Kernels& kernels();
// Whether a call of so many steps of a layer of so many units (the fewest of one product), whose fullest step
// has `batch` rows, is large enough for products of parts at some precision
bool may_take_unit(int64_t batch, int64_t units, int64_t steps);
// The kernels of the set in use for such a call. Nothing else decides, so that results do not
// change with threads, plan, or what else is in the batch.
const Kernels& kernels_for(int64_t batch, int64_t units, int64_t steps, Precision precision);
// Whether kernels_for is always kernels(): a row's results are then the same in a batch of any size. Without
// a value, as from the start unless RNNFAST_BATCH_INVARIANT is 1 or 0: where Precision::kFloat32 is had
// sooner so.
void set_batch_invariant(std::optional<bool> on);
// "" chooses again by itself. Throws std::runtime_error for a name that was not built or that the processor
// lacks.
void set_isa(const std::string& name);
// all that were built and that this processor has, the plainest first
std::vector<std::string> isas();
// those that it lacks, too
std::vector<std::string> built_isas();

}  // namespace rnnfast
