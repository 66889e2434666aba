// The stepwise kernels for Half.
#include "cuda/stepwise.cuh"

namespace rnnfast::cuda {
RNNFAST_STEPWISE(Half)
}
