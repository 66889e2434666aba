// The single step of double.
#include "cuda/single.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<double>&, void*);
}
