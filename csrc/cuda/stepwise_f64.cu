// The stepwise kernels for double.
#include "cuda/stepwise.cuh"

namespace rnnfast::cuda {
RNNFAST_STEPWISE(double)
}
