// x86-64 with AVX-512 BF16: layers of bfloat16. The rest of this set is isa_avx512.cpp.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>

#include "cpu/avx512.h"
#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace rnnfast::avx512_bf16 {
constexpr int kVectorBytes = 64;
#define RNNFAST_DOT_BF16(a, b, c) \
  _mm512_dpbf16_ps(c, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b))
#define RNNFAST_ROUND_BF16(v) __builtin_bit_cast(halves, _mm512_cvtneps_pbh(v))
#define RNNFAST_MASKED_LOAD_HALVES(p, n) \
  __builtin_bit_cast(halves, _mm256_maskz_loadu_epi16(0xffffu >> (16 - (n)), p))
#define RNNFAST_MASKED_STORE_HALVES(p, v, n) \
  _mm256_mask_storeu_epi16(p, 0xffffu >> (16 - (n)), __builtin_bit_cast(__m256i, v))
#include "cpu/isa-inl.h"
extern const LayerKernels<Bfloat16> kLayer;
const LayerKernels<Bfloat16> kLayer = kLayerOf<Bfloat16>;
}  // namespace rnnfast::avx512_bf16
RNNFAST_TARGET_END
