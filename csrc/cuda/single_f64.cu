// The single step of double.
#include "cuda/single_backward.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<double>&, void*);
template const char* single_backward(Mode, const SingleBackward<double>&, void*);
}  // namespace rnnfast::cuda
