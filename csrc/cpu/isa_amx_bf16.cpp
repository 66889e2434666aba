// x86-64 with AMX beside AVX-512 BF16: layers of bfloat16, and floats in one, two and three parts. The rest
// is isa_avx512.cpp. Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/avx512_bf16.h"
#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define RNNFAST_MATRIX_UNIT
namespace rnnfast::amx_bf16::one {
constexpr int kVectorBytes = 64, kFloatParts = 1;
#include "cpu/isa-inl.h"
}  // namespace rnnfast::amx_bf16::one
namespace rnnfast::amx_bf16::two {
constexpr int kVectorBytes = 64, kFloatParts = 2;
#include "cpu/isa-inl.h"
}  // namespace rnnfast::amx_bf16::two
namespace rnnfast::amx_bf16::three {
constexpr int kVectorBytes = 64, kFloatParts = 3;
#include "cpu/isa-inl.h"
}  // namespace rnnfast::amx_bf16::three
namespace rnnfast::amx_bf16 {
extern const LayerKernels<Bfloat16> kLayer;
const LayerKernels<Bfloat16> kLayer = three::kLayerOf<Bfloat16>;
extern const FloatsInParts kFloats[kPrecisions];
const FloatsInParts kFloats[] = {{three::kProducts, three::kKernelsOf<float>},
                                 {two::kProducts, two::kKernelsOf<float>},
                                 {one::kProducts, one::kKernelsOf<float>}};
}  // namespace rnnfast::amx_bf16
RNNFAST_TARGET_END
