// The resident kernels of a reduce-scatter for Half.
#include "cuda/resident_scatter.cuh"

namespace rnnfast::cuda {
RNNFAST_RESIDENT_SCATTER(Half)
}
