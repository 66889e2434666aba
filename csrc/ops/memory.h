// The tensors that the ops of a CPU make.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace rnnfast {

// at::empty whose large blocks are kept when the tensor has ended: a training step on fresh pages takes a
// quarter longer, because every page is faulted in when it is first touched.
at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options);
// gives them back to the allocator: how many bytes
int64_t empty_cache();

// How much may be kept: what RNNFAST_CACHE_MB says, or else the default, as None does.
constexpr int64_t kDefaultCacheMb = 1024, kMostCacheMb = 1 << 20;
void set_cache_limit(std::optional<double> mebibytes);
// in bytes: the limit, what is kept, and what is in use of blocks that may be
struct CacheFacts {
  int64_t limit, held, used;
};
CacheFacts cache_facts();

}  // namespace rnnfast
