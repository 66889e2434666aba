// The stepwise kernels for float.
#include "cuda/stepwise.cuh"

namespace rnnfast::cuda {
RNNFAST_STEPWISE(float)
}
