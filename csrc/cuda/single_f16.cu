// The single step of Half.
#include "cuda/single.cuh"

namespace rnnfast::cuda {
template const char* single_step(Mode, const SingleStep<Half>&, void*);
}
