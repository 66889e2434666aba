// The single step of Bfloat16.
#include "cuda/single_backward.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<Bfloat16>&, void*);
template const char* single_backward(Mode, const SingleBackward<Bfloat16>&, void*);
}  // namespace rnnfast::cuda
