// The stepwise kernels for Bfloat16.
#include "cuda/stepwise.cuh"

namespace rnnfast::cuda {
RNNFAST_STEPWISE(Bfloat16)
}
