// The resident kernels of a reduce-scatter for float, by TF32.
#include "cuda/resident_scatter.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_SCATTER(float)
}
