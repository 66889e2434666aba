// Which kernel a layer on a GPU takes: one pure function of its shape and the device, tested as a table.
#pragma once
#include <string>

#include "cuda/kernels.h"

namespace rnnfast::cuda {

struct Shape {
  Mode mode;
  int bytes;  // of a stored number
  bool tf32;  // floats may be read as TF32
  int64_t H, B;
  bool projected;
  bool backward;
  Device device;
};

constexpr ResidentPlan kOneLaunchAStep{0, 0, 1, 0, 1, 1, Team::kBlock, 0};

ResidentPlan make_plan(const Shape& shape);

// A device like Hopper's first ones: a cluster lies within 16 multiprocessors.
Device assumed_device(int capability, int multiprocessors, int64_t shared_bytes);

// "" lets make_plan choose, "stepwise" or "resident" forces; RNNFAST_CUDA_KERNEL from the start. Throws
// std::runtime_error for another name.
void set_kernel(const std::string& name);
std::string forced_kernel();

// what choose_plan chose last in this process: for tests
std::string last_kernel();

// make_plan's, or the forced one. Throws std::runtime_error where the forced kernel cannot do it.
ResidentPlan choose_plan(const Shape& shape);

}  // namespace rnnfast::cuda
