// What AVX-512 BF16 has in one instruction, by the names that bfloat16-inl.h asks for.
#pragma once
#include "cpu/avx512.h"

#define RNNFAST_DOT_BF16(a, b, c) \
  _mm512_dpbf16_ps(c, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b))
#define RNNFAST_ROUND_BF16(v) __builtin_bit_cast(halves, _mm512_cvtneps_pbh(v))
// the first 16 numbers, and those of b after them
#define RNNFAST_ROUND_TWO_BF16(a, b) _mm512_cvtne2ps_pbh(b, a)
#define RNNFAST_MASKED_LOAD_HALVES(p, n) \
  __builtin_bit_cast(halves, _mm256_maskz_loadu_epi16(0xffffu >> (16 - (n)), p))
#define RNNFAST_MASKED_STORE_HALVES(p, v, n) \
  _mm256_mask_storeu_epi16(p, 0xffffu >> (16 - (n)), __builtin_bit_cast(__m256i, v))
