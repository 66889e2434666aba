// x86-64 with AMX beside AVX-512 BF16: layers of bfloat16, and floats in parts. The rest is isa_avx512.cpp.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>

#include "cpu/avx512_bf16.h"
#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace rnnfast::amx_bf16 {
constexpr int kVectorBytes = 64;
#define RNNFAST_MATRIX_UNIT
#include "cpu/isa-inl.h"
extern const LayerKernels<Bfloat16> kLayer;
const LayerKernels<Bfloat16> kLayer = kLayerOf<Bfloat16>;
extern const KernelsOf<float> kFloat32;
const KernelsOf<float> kFloat32 = kKernelsOf<float>;
}  // namespace rnnfast::amx_bf16
RNNFAST_TARGET_END
