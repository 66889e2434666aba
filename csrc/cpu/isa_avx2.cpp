// x86-64 with AVX2, FMA and F16C: 256-bit vectors.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <immintrin.h>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx2,fma,f16c")
namespace rnnfast::avx2 {
constexpr int kVectorBytes = 32;
#define RNNFAST_FMA_F32(a, b, c) _mm256_fmadd_ps(a, b, c)
#define RNNFAST_FMA_F64(a, b, c) _mm256_fmadd_pd(a, b, c)
#define RNNFAST_LESSER_F32(a, b) _mm256_min_ps(a, b)
#define RNNFAST_LESSER_F64(a, b) _mm256_min_pd(a, b)
#define RNNFAST_GREATER_F32(a, b) _mm256_max_ps(a, b)
#define RNNFAST_GREATER_F64(a, b) _mm256_max_pd(a, b)
#define RNNFAST_WIDEN_F16(v) _mm256_cvtph_ps(__builtin_bit_cast(__m128i, v))
#define RNNFAST_ROUND_F16(v) \
  __builtin_bit_cast(bits16, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#include "cpu/isa-inl.h"
extern const Kernels kKernels;
const Kernels kKernels = {
    "avx2", kVectorBytes, kKernelsOf<float>, kKernelsOf<double>, kConversion<Bfloat16>, kConversion<Half>,
    nullptr};
}  // namespace rnnfast::avx2
RNNFAST_TARGET_END
