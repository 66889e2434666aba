// The plan of a layer on a GPU; see plan.h.
#include "cuda/plan.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace rnnfast::cuda {
namespace {

enum Forced { kFree, kStepwise, kResident };
constexpr const char* kNames[] = {"", "stepwise", "resident"};

Forced parse(const char* name) {
  const std::string wanted = name ? name : "";
  for (const Forced forced : {kFree, kStepwise, kResident})
    if (wanted == kNames[forced]) return forced;
  throw std::runtime_error("CUDA kernel '" + wanted + "' is unknown, expected stepwise or resident");
}

std::atomic<Forced>& forced() {
  static std::atomic<Forced> value{parse(std::getenv("RNNFAST_CUDA_KERNEL"))};
  return value;
}

std::atomic<Forced>& last() {
  static std::atomic<Forced> value{kFree};
  return value;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The widest layers have so many instructions a warp; beyond kMostTiles all take that many.
ResidentPlan plan_with(const Shape& s, int most_tiles) {
  const int capability = s.device.capability;
  const bool half = s.bytes == 2, can = half || (s.bytes == 4 && s.tf32);
  if (!can || s.projected || s.H > 64 * most_tiles || capability < 80) return kOneLaunchAStep;
  const int64_t tile = kWords * 4 / s.bytes;  // numbers of one instruction
  const bool one_gate = s.mode == Mode::kRnnTanh || s.mode == Mode::kRnnRelu;
  const int64_t gates = one_gate ? 1 : s.mode == Mode::kGru ? 3 : 4;
  ResidentPlan p{};
  const bool held = most_tiles > kMostTiles;
  p.tiles = held ? most_tiles : s.H <= 4 * tile ? 4 : s.H <= 8 * tile ? 8 : kMostTiles;
  // clusters came with Hopper
  p.wide = held || s.H > kMostTiles * tile || (p.tiles == kMostTiles && capability < 90);
  p.split = static_cast<int>(p.wide ? divide_up(s.H, p.tiles * tile) : 1) * (s.backward ? 2 : 1);
  // units of the warps that share a sum; with one gate each slot is another unit
  const int64_t slots = one_gate ? 2 : 4, unit_blocks = one_gate ? 2 : 1;
  const int64_t units = kWarpUnits * (s.backward ? 2 : unit_blocks);
  const int64_t most_groups = (p.tiles <= 8 ? 16 : 8) / p.split;
  if (most_groups == 0) return kOneLaunchAStep;
  p.blocks = p.wide ? static_cast<int>(divide_up(s.H, most_groups * units)) : p.tiles <= 8 ? 1 : half ? 4 : 2;
  p.warps = static_cast<int>(divide_up(divide_up(s.H, p.blocks), units) * p.split);
  const int64_t teams = s.device.multiprocessors / p.blocks, rows = divide_up(s.B, kBatch);
  if (p.wide && teams == 0) return kOneLaunchAStep;
  p.batches = p.wide ? static_cast<int>(divide_up(rows, teams)) : 1;
  // what the kernels keep in shared memory: each row that is read (twice where it is written at the same
  // time), W that the registers do not hold, sums on their way, a thread's own
  const int64_t threads = 32 * p.warps, sum = tile * p.tiles * p.split * (s.backward ? gates : 2) / 2;
  const int64_t parts = s.backward ? 2 * 4 * threads : p.wide ? 2 * slots * 2 * threads : 0;
  const int64_t own = s.backward ? 2 * 2 * p.batches * threads
                      : p.wide   ? 2 * unit_blocks * p.batches * threads
                                 : 0;
  const int64_t bias = s.backward ? 0 : p.warps * slots * kWarpUnits;
  const int64_t w = held ? 4 * threads * (p.tiles - kMostTiles) * (s.backward ? gates : slots) / 2 : 0;
  const int64_t rows_read = (p.wide ? 1 : 2) * kBatch * p.batches;
  p.bytes = rows_read * (s.bytes * sum + kSkewBytes) + 4 * (w + parts + own + bias);
  return p.bytes <= s.device.shared_bytes ? p : kOneLaunchAStep;
}

}  // namespace

// W must fit the registers: 8 units of four gates take a register of each of a warp's threads for 2 halves or
// for one number of TF32 of a unit's H (forward; backward as many), which leaves room for 16 warps, a block
// of 128 units, with 64 registers, and for 8 warps with 128, in a cluster. From there on several warps share
// a sum, and the blocks of a team are too many for a cluster. Where they are too many for the device too, or
// have no shared memory for the batch, a layer of halves keeps as much of W again there and takes half as
// many.
ResidentPlan make_plan(const Shape& s) {
  const ResidentPlan plan = plan_with(s, kMostTiles);
  return plan.tiles == 0 && s.bytes == 2 ? plan_with(s, 2 * kMostTiles) : plan;
}

void set_kernel(const std::string& name) { forced().store(parse(name.c_str())); }

std::string last_kernel() { return kNames[last().load()]; }

std::string forced_kernel() { return kNames[forced().load()]; }

ResidentPlan choose_plan(const Shape& shape) {
  const Forced now = forced().load();
  const ResidentPlan plan = now == kStepwise ? kOneLaunchAStep : make_plan(shape);
  if (now == kResident && plan.tiles == 0)
    throw std::runtime_error(
        "the resident CUDA kernel is forced, but it takes layers of bfloat16, float16 or (where TF32 is "
        "allowed) float32, without projection, and no wider and with no larger a batch than the device's "
        "registers and shared memory hold");
  last().store(plan.tiles ? kResident : kStepwise);
  return plan;
}

}  // namespace rnnfast::cuda
