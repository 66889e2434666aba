// What the AVX-512 sets have in one instruction, by the names that isa-inl.h asks for.
#pragma once
#include <immintrin.h>

#define RNNFAST_MANY_REGISTERS
#define RNNFAST_FMA_F32(a, b, c) _mm512_fmadd_ps(a, b, c)
#define RNNFAST_FMA_F64(a, b, c) _mm512_fmadd_pd(a, b, c)
// of two that do not compare the second is meant, which is what the instruction gives
#define RNNFAST_LESSER_F32(a, b) _mm512_maskz_min_ps(0xffff, a, b)
#define RNNFAST_LESSER_F64(a, b) _mm512_maskz_min_pd(0xff, a, b)
#define RNNFAST_GREATER_F32(a, b) _mm512_maskz_max_ps(0xffff, a, b)
#define RNNFAST_GREATER_F64(a, b) _mm512_maskz_max_pd(0xff, a, b)
#define RNNFAST_MASKED_LOAD(V, p, n)                                                            \
  (sizeof *(p) == 4 ? __builtin_bit_cast(V, _mm512_maskz_loadu_epi32(0xffffu >> (16 - (n)), p)) \
                    : __builtin_bit_cast(V, _mm512_maskz_loadu_epi64(0xffu >> (8 - (n)), p)))
#define RNNFAST_MASKED_STORE(p, v, n)                                                                    \
  (sizeof *(p) == 4 ? _mm512_mask_storeu_epi32(p, 0xffffu >> (16 - (n)), __builtin_bit_cast(__m512i, v)) \
                    : _mm512_mask_storeu_epi64(p, 0xffu >> (8 - (n)), __builtin_bit_cast(__m512i, v)))
#define RNNFAST_WIDEN_F16(v) _mm512_maskz_cvtph_ps(0xffff, __builtin_bit_cast(__m256i, v))
#define RNNFAST_ROUND_F16(v) \
  __builtin_bit_cast(bits16, _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
