// x86-64 with AVX-512: 512-bit vectors.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/avx512.h"
#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace rnnfast::avx512 {
constexpr int kVectorBytes = 64;
#include "cpu/isa-inl.h"
extern const Kernels kKernels;
const Kernels kKernels = {
    "avx512",          kVectorBytes, kKernelsOf<float>, kKernelsOf<double>, kConversion<Bfloat16>,
    kConversion<Half>, nullptr};
}  // namespace rnnfast::avx512
RNNFAST_TARGET_END
