// The ops of a GPU as rnnfast_emulated::*, on CPU tensors: the same glue, the same kernels (csrc/cuda/*.cu),
// with the device emulated.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

// first: it brings the macros of csrc/cpu, which those of the emulated device replace
#include "ops/cuda_tensors.h"

#include "cuda/plan.h"
#include "cuda/primitives.cuh"
#include "ops/on_stack.h"
#include "ops/ops.h"
#include "ops/overlap_backward.h"
#include "ops/rows.h"

namespace rnnfast::cuda {
Device device = assumed_device(90, 132, 232448);
bool is_capturing = false;
bool capturing(void*) { return is_capturing; }
Device current_device() { return device; }
std::optional<Stack> stack;
int64_t launches_so_far() { return launches; }
uint32_t* failure_word() {
  static uint32_t word = 0;
  return &word;
}
}  // namespace rnnfast::cuda

namespace rnnfast {
// as csrc/ops/rows.cpp does with a tensor of a GPU
at::Tensor converted(const at::Tensor& t, at::ScalarType type) { return t.to(type); }
}  // namespace rnnfast

TORCH_LIBRARY(rnnfast_emulated, m) {
  for (const std::string name :
       {"recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward"})
    m.def(c10::Dispatcher::singleton()
              .findSchemaOrThrow(("rnnfast::" + name).c_str(), "")
              .schema()
              .cloneWithName("rnnfast_emulated::" + name, ""));
}

TORCH_LIBRARY_FRAGMENT(rnnfast_emulated, m) {
  m.def("set_kernel(str name) -> ()", [](const std::string& name) { rnnfast::cuda::set_kernel(name); });
  m.def("set_device(int capability, int multiprocessors, int clusters_of_16=-1) -> ()",
        [](int64_t capability, int64_t multiprocessors, int64_t clusters_of_16) {
          rnnfast::cuda::set_device(static_cast<int>(capability), static_cast<int>(multiprocessors),
                                    static_cast<int>(clusters_of_16));
        });
  // of a device that loses what is sent, blocks have little patience
  m.def("lose(int each, int silent_block) -> ()", [](int64_t each, int64_t silent_block) {
    rnnfast::cuda::loses_each = static_cast<int>(each), rnnfast::cuda::stores = 0;
    rnnfast::cuda::silent_block = static_cast<int>(silent_block);
    rnnfast::cuda::device.patience = each || silent_block >= 0 ? 300'000 : rnnfast::cuda::kPatience;
  });
  m.def("launches() -> int", [] { return rnnfast::cuda::launches; });
  m.def("copies() -> int", [] { return rnnfast::cuda::copies; });
  m.def("open_stack(int layers) -> ()", [](int64_t layers) {
    rnnfast::cuda::waits.clear();
    rnnfast::cuda::stack.emplace(at::Device(at::kCPU), layers);
  });
  m.def("close_stack() -> ()", [] { rnnfast::cuda::stack.reset(); });
  // of the next call backward
  m.def("place_in_stack(int stack, int layer) -> ()",
        [](int64_t stack, int64_t layer) { rnnfast::cuda::PlaceInStack::current() = {stack, layer}; });
  // [stream, the one that it waited for, launches before that moment, launches before the wait] of each
  m.def("waits() -> int[]", [] {
    std::vector<int64_t> all;
    for (const auto& wait : rnnfast::cuda::waits) all.insert(all.end(), wait.begin(), wait.end());
    return all;
  });
  m.def("take_failure() -> bool", [] { return rnnfast::cuda::take_failure(); });
  m.def("let_warps_fall_behind(bool let) -> ()", [](bool let) { rnnfast::cuda::warps_fall_behind = let; });
  m.def("set_capturing(bool capturing) -> ()",
        [](bool capturing) { rnnfast::cuda::is_capturing = capturing; });
  m.def("set_chunk_bytes(int bytes) -> ()", [](int64_t bytes) { rnnfast::cuda::chunk_bytes = bytes; });
  m.def("last_run() -> (str, str, str, int[])", [] {
    const auto [op, plan] = rnnfast::cuda::last_run();
    return std::tuple<std::string, std::string, std::string, std::vector<int64_t>>(
        op, kernel_name(plan), team_name(plan),
        {plan.blocks, plan.warps, plan.split, plan.held, plan.batches, plan.directions, plan.units});
  });
}

TORCH_LIBRARY_IMPL(rnnfast_emulated, CPU, m) {
  rnnfast::implement<rnnfast::cuda::recurrent>(m, "recurrent");
  rnnfast::implement<rnnfast::cuda::recurrent_backward>(m, "recurrent_backward");
  rnnfast::implement<rnnfast::cuda::deep_transition>(m, "deep_transition");
  rnnfast::implement<rnnfast::cuda::deep_transition_backward>(m, "deep_transition_backward");
}
