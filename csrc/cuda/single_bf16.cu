// The single step of Bfloat16.
#include "cuda/single.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<Bfloat16>&, void*);
}
