// The resident kernels of the deep transition for Half.
#include "cuda/resident_deep.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_DEEP(Half)
}
