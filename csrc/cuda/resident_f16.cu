// The resident kernels for Half.
#include "cuda/resident.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT(Half)
}
