// The resident kernels of the deep transition for Bfloat16.
#include "cuda/resident_deep.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_DEEP(Bfloat16)
}
