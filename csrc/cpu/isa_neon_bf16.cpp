// 64-bit Arm with BF16: layers of bfloat16, two products to an instruction. The rest is isa_neon.cpp.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dispatch.h"
#include "cpu/neon.h"

#ifdef RNNFAST_ARM_BF16
#define RNNFAST_DOT_BF16(a, b, c) \
  vbfdotq_f32(c, __builtin_bit_cast(bfloat16x8_t, a), __builtin_bit_cast(bfloat16x8_t, b))
#define RNNFAST_ROUND_BF16(v) __builtin_bit_cast(halves, vcvt_bf16_f32(v))

RNNFAST_TARGET_BEGIN(RNNFAST_BF16_TARGET)
namespace rnnfast::neon_bf16 {
constexpr int kVectorBytes = 16;
#include "cpu/isa-inl.h"
extern const LayerKernels<Bfloat16> kLayer;
const LayerKernels<Bfloat16> kLayer = kLayerOf<Bfloat16>;
}  // namespace rnnfast::neon_bf16
RNNFAST_TARGET_END
#endif
