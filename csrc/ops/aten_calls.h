// A call of one of torch's recurrent operators: what becomes of it, and the taking of it.
#pragma once
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include "types.h"

namespace rnnfast::aten {

enum Verdict {
  kTaken,
  kQuantized,
  kRegion,
  kInterposed,
  kTensors,
  kDtype,
  kBatchSizes,
  kNoGpuKernels,
  kGpuAutocast,
  kGpuDropout,
  kVerdicts
};
inline constexpr const char* kNames[kVerdicts] = {
    "taken",
    "a quantized operator",
    "a region that passes on",
    "a mode, a transform or a trace",
    "tensors that are not plain ones of one dtype and device, or of a size that does not fit",
    "a dtype without a kernel",
    "batch_sizes that are none of packed rows",
    "a GPU, for which this build has no kernels",
    "autocast of a layer on a GPU",
    "dropout between layers on a GPU"};

// What an operator's arguments are: those of a layer, of a layer of packed data, of a cell; or it is passed
// on
enum Form { kInput, kData, kCell, kOnlyCounted };

// The results of such a call, if our kernels can take it: kTaken; or why not, and nothing has happened.
// below_autograd: no gradient is asked for here.
Verdict take(Mode mode, Form form, at::ArrayRef<c10::IValue> arguments, bool below_autograd,
             torch::jit::Stack& results);

}  // namespace rnnfast::aten
