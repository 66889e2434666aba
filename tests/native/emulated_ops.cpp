// The ops of a GPU as rnnfast_emulated::*, on CPU tensors: the same glue, the same kernels, with the device
// emulated.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

// first: it brings the macros of csrc/cpu, which those of the emulated device replace
#include "cuda_tensors.h"

#include "cuda/plan.h"
#include "cuda/resident.cuh"
#include "cuda/stepwise.cuh"
#include "ops.h"

namespace rnnfast::cuda {
RNNFAST_STEPWISE(float)
RNNFAST_STEPWISE(double)
RNNFAST_STEPWISE(Bfloat16)
RNNFAST_STEPWISE(Half)
RNNFAST_RESIDENT(Bfloat16)
RNNFAST_RESIDENT(Half)
RNNFAST_RESIDENT(float)

Device device = assumed_device(90, 132, 232448);
bool is_capturing = false;
bool capturing(void*) { return is_capturing; }
Device current_device() { return device; }
uint32_t* failure_word() {
  static uint32_t word = 0;
  return &word;
}
}  // namespace rnnfast::cuda

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
  m.def("set_device(int capability, int multiprocessors) -> ()",
        [](int64_t capability, int64_t multiprocessors) {
          rnnfast::cuda::device = rnnfast::cuda::assumed_device(static_cast<int>(capability),
                                                                static_cast<int>(multiprocessors), 232448);
        });
  m.def("lose_packets(bool lose) -> ()", [](bool lose) {
    rnnfast::cuda::loses_packets = lose;
    rnnfast::cuda::device.patience = lose ? 50 : 1 << 21;
  });
  m.def("let_warps_fall_behind(bool let) -> ()", [](bool let) { rnnfast::cuda::warps_fall_behind = let; });
  m.def("set_capturing(bool capturing) -> ()",
        [](bool capturing) { rnnfast::cuda::is_capturing = capturing; });
  m.def("set_chunk_bytes(int bytes) -> ()", [](int64_t bytes) { rnnfast::cuda::chunk_bytes = bytes; });
  m.def("last_kernel() -> str", [] { return rnnfast::cuda::last_kernel(); });
}

TORCH_LIBRARY_IMPL(rnnfast_emulated, CPU, m) {
  m.impl("recurrent", &rnnfast::cuda::recurrent);
  m.impl("recurrent_backward", &rnnfast::cuda::recurrent_backward);
  m.impl("deep_transition", &rnnfast::cuda::deep_transition);
  m.impl("deep_transition_backward", &rnnfast::cuda::deep_transition_backward);
}
