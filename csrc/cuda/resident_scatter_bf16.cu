// The resident kernels of a reduce-scatter for Bfloat16.
#include "cuda/resident_scatter.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_SCATTER(Bfloat16)
}
