// The resident kernels for float, by TF32.
#include "cuda/resident.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT(float)
}
