// The resident kernels for Bfloat16.
#include "cuda/resident.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT(Bfloat16)
}
