// Any processor: 128-bit vectors (SSE2, NEON), no fused multiply-add.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dispatch.h"

namespace rnnfast::generic {
constexpr int kVectorBytes = 16;
#define RNNFAST_FMA_F32(a, b, c) ((a) * (b) + (c))
#define RNNFAST_FMA_F64(a, b, c) ((a) * (b) + (c))
#include "cpu/isa-inl.h"
extern const Kernels kKernels;
const Kernels kKernels = {
    "generic",         kVectorBytes, kKernelsOf<float>, kKernelsOf<double>, kConversion<Bfloat16>,
    kConversion<Half>, nullptr};
}  // namespace rnnfast::generic
