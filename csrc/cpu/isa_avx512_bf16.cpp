// x86-64 with AVX-512 BF16: the forward of bfloat16 layers. The rest of this set is isa_avx512.cpp.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <immintrin.h>
#include <cstddef>
#include <cstdint>

#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace rnnfast::avx512_bf16 {
constexpr int kVectorBytes = 64;
#define RNNFAST_FMA_F32(a, b, c) _mm512_fmadd_ps(a, b, c)
#define RNNFAST_FMA_F64(a, b, c) _mm512_fmadd_pd(a, b, c)
#define RNNFAST_SCALE_F32(p, k) _mm512_maskz_scalef_ps(0xffff, p, k)
#define RNNFAST_SCALE_F64(p, k) _mm512_maskz_scalef_pd(0xff, p, k)
#define RNNFAST_DOT_BF16(a, b, c) \
  _mm512_dpbf16_ps(c, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b))
#define RNNFAST_ROUND_BF16(v) __builtin_bit_cast(halves, _mm512_cvtneps_pbh(v))
#define RNNFAST_MASKED_LOAD(V, p, n)                                                            \
  (sizeof *(p) == 4 ? __builtin_bit_cast(V, _mm512_maskz_loadu_epi32(0xffffu >> (16 - (n)), p)) \
                    : __builtin_bit_cast(V, _mm512_maskz_loadu_epi64(0xffu >> (8 - (n)), p)))
#define RNNFAST_MASKED_STORE(p, v, n)                                                                    \
  (sizeof *(p) == 4 ? _mm512_mask_storeu_epi32(p, 0xffffu >> (16 - (n)), __builtin_bit_cast(__m512i, v)) \
                    : _mm512_mask_storeu_epi64(p, 0xffu >> (8 - (n)), __builtin_bit_cast(__m512i, v)))
#include "cpu/isa-inl.h"
extern const ForwardBf16 kForward;
const ForwardBf16 kForward = run_cell<Forward, Bfloat16, ForwardParams<Bfloat16>>;
}  // namespace rnnfast::avx512_bf16
RNNFAST_TARGET_END
