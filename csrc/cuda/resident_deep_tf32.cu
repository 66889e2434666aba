// The resident kernels of the deep transition for float, by TF32.
#include "cuda/resident_deep.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_DEEP(float)
}
