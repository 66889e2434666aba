// x86-64 with AVX-512 BF16: layers of bfloat16. The rest of this set is isa_avx512.cpp.
// Standard headers first: nothing of theirs may be compiled inside the target region.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/avx512_bf16.h"
#include "cpu/dispatch.h"

RNNFAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace rnnfast::avx512_bf16 {
constexpr int kVectorBytes = 64;
#include "cpu/isa-inl.h"
extern const LayerKernels<Bfloat16> kLayer;
const LayerKernels<Bfloat16> kLayer = kLayerOf<Bfloat16>;
}  // namespace rnnfast::avx512_bf16
RNNFAST_TARGET_END
