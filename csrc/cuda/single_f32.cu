// The single step of float.
#include "cuda/single.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<float>&, void*);
}
