// The single step of float.
#include "cuda/single_backward.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<float>&, void*);
template const char* single_backward(Mode, const SingleBackward<float>&, void*);
}  // namespace rnnfast::cuda
