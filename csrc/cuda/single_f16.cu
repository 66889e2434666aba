// The single step of Half.
#include "cuda/single_backward.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<Half>&, void*);
template const char* single_backward(Mode, const SingleBackward<Half>&, void*);
}  // namespace rnnfast::cuda
