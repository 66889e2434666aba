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

constexpr ResidentPlan kOneLaunchAStep{0, 1, 0};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// W must fit the registers: 8 units of four gates take H / 2 of each of a warp's threads, which leaves room
// for 16 warps (a block of 128 units) up to H = 128, and for 8 up to 256, in a cluster of four.
ResidentPlan make_plan(const Shape& s) {
  if (s.bytes != 2 || s.projected || s.packed || s.H > 256 || s.capability < 80) return kOneLaunchAStep;
  if (s.H > 128 && s.capability < 90) return kOneLaunchAStep;  // clusters came with Hopper
  const bool one_gate = s.mode == Mode::kRnnTanh || s.mode == Mode::kRnnRelu;
  // forward a warp has 8 units, or 16 with one gate; backward two warps have 16, of any cell
  const int64_t units = s.backward || one_gate ? 16 : 8, warps = s.backward ? 2 : 1;
  const int tiles = s.H <= 64 ? 4 : s.H <= 128 ? 8 : 16, cluster = s.H <= 128 ? 1 : 4;
  return {tiles, cluster, static_cast<int>(divide_up(divide_up(s.H, cluster), units) * warps)};
}

void set_kernel(const std::string& name) { forced().store(parse(name.c_str())); }

std::string last_kernel() { return kNames[last().load()]; }

std::string forced_kernel() { return kNames[forced().load()]; }

ResidentPlan choose_plan(const Shape& shape) {
  const Forced now = forced().load();
  const ResidentPlan plan = now == kStepwise ? kOneLaunchAStep : make_plan(shape);
  if (now == kResident && plan.tiles == 0)
    throw std::runtime_error(
        "the resident CUDA kernel is forced, but it takes bfloat16 and float16 layers of equal lengths "
        "without "
        "projection and with at most 256 units (128 before compute capability 9.0)");
  last().store(plan.tiles ? kResident : kStepwise);
  return plan;
}

}  // namespace rnnfast::cuda
