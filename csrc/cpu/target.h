// Compiler switches in one place: forced inlining, and one target per region of a file.
#pragma once

// Forced, so that no function shared by the instruction sets is left as a weak symbol that an old CPU could
// meet
#define RNNFAST_INLINE inline __attribute__((always_inline))

// 64-bit Arm, whose intrinsics for bfloat16 older clangs have for whole files only
#if defined(RNNFAST_ARM) && (!defined(__clang__) || __clang_major__ >= 16)
#define RNNFAST_ARM_BF16
#endif

#define RNNFAST_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define RNNFAST_TARGET_BEGIN(list) \
  RNNFAST_PRAGMA(clang attribute push(__attribute__((target(list))), apply_to = function))
#define RNNFAST_TARGET_END RNNFAST_PRAGMA(clang attribute pop)
#else
#define RNNFAST_TARGET_BEGIN(list) RNNFAST_PRAGMA(GCC push_options) RNNFAST_PRAGMA(GCC target(list))
#define RNNFAST_TARGET_END RNNFAST_PRAGMA(GCC pop_options)
#endif
