// Which kernel a layer, or a deep transition, takes on a GPU: pure functions of its shape and the device,
// tested as tables.
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
  int directions = 1;    // of the layer
  int64_t steps = 0;     // of the walk; 0: many
  bool lengths = false;  // rows may have fewer
  int64_t inputs = 0;    // width of x
  bool resets = false;   // rows may begin anew
  bool sums = true;      // whether a cluster may exchange sums backward; tests and measurements compare
};

constexpr ResidentPlan kOneLaunchAStep{0, 0, 1, 0, 1, 1, Team::kBlock, 0, 1, false, 0};
constexpr ResidentPlan kSingleStep{0, 0, 1, 0, 1, 1, Team::kBlock, 0, 1, true, 0};

// whether W stays where it is from step to step: in registers, in shared memory
inline bool is_resident(const ResidentPlan& plan) { return plan.tiles > 0 || plan.held > 0; }

ResidentPlan make_plan(const Shape& shape);
// A launch a step; of many rows by blocks, or clusters, of eight warps
ResidentPlan stepwise_plan(const Shape& shape);

// Of a step of many rows the blocks that share out the bytes of a sum of so many units (block_tiles.cuh), or
// 0 where smaller tiles take less; `sums` of a unit
int block_split(int64_t units, int sums, int64_t rows, int64_t bytes, const Device& device);

// whether a device has room for the teams of two such layers at the same time
bool two_at_once(const ResidentPlan& plan, int64_t batch, const Device& device);

// A deep transition's, of so many layers, none wider than `width`
struct DeepShape {
  int bytes;
  bool tf32;
  int64_t width;
  int depth;
  int64_t B;
  Device device;
  int64_t steps = 0;  // 0: many
};
ResidentPlan make_deep_plan(const DeepShape& shape);

// A device like Hopper's first ones: a cluster lies within a group of multiprocessors. So many groups have
// 16, the rest of the multiprocessors stand in groups of less; -1: as many as there can be.
Device assumed_device(int capability, int multiprocessors, int64_t shared_bytes, int clusters_of_16 = -1);

// Plan as for a device with so much less than the real one; capability 0 ends that.
void set_device(int capability, int multiprocessors, int clusters_of_16 = -1);
// What there is to plan for on this one. Throws std::runtime_error where set_device asks for more.
Device planned_device(const Device& real);

// "" lets make_plan choose, "stepwise" or "resident" forces; RNNFAST_CUDA_KERNEL from the start. Throws
// std::runtime_error for another name.
void set_kernel(const std::string& name);
std::string forced_kernel();

// The last call of this process, which the ops tell: for tests, benchmarks and rnnfast.info
struct LastRun {
  std::string op;  // "" before the first
  ResidentPlan plan;
};
void set_last_run(const char* op, const ResidentPlan& plan);
LastRun last_run();

// "resident", "stepwise" or "single"; "block", "cluster" or "grid"
const char* kernel_name(const ResidentPlan& plan);
const char* team_name(const ResidentPlan& plan);

// make_plan's, or the forced one. Throws std::runtime_error where the forced kernel cannot do it.
ResidentPlan choose_plan(const Shape& shape);
ResidentPlan choose_plan(const DeepShape& shape);

}  // namespace rnnfast::cuda
