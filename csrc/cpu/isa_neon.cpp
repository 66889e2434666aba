// 64-bit Arm: 128-bit vectors with fused multiply-add, and half precision in one instruction. Every such
// processor has it.
// Standard headers first: nothing of theirs may be compiled inside the set's namespace.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dispatch.h"
#include "cpu/neon.h"

namespace rnnfast::neon {
constexpr int kVectorBytes = 16;
#include "cpu/isa-inl.h"
extern const Kernels kKernels;
const Kernels kKernels = {
    "neon", kVectorBytes, kKernelsOf<float>, kKernelsOf<double>, kConversion<Bfloat16>, kConversion<Half>,
    nullptr};
}  // namespace rnnfast::neon
