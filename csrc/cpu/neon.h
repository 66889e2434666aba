// What NEON has in one instruction, by the names that isa-inl.h and convert-inl.h ask for.
#pragma once
#include <arm_neon.h>

// as GCC and clang call it
#if defined(__clang__)
#define RNNFAST_BF16_TARGET "bf16,fullfp16"
#else
#define RNNFAST_BF16_TARGET "arch=armv8.2-a+fp16+bf16"
#endif

#define RNNFAST_MANY_REGISTERS
#define RNNFAST_FMA_F32(a, b, c) vfmaq_f32(c, a, b)
#define RNNFAST_FMA_F64(a, b, c) vfmaq_f64(c, a, b)
#define RNNFAST_WIDEN_F16(v) vcvt_f32_f16(__builtin_bit_cast(float16x4_t, v))
#define RNNFAST_ROUND_F16(v) __builtin_bit_cast(bits16, vcvt_f16_f32(v))
