// What a resident kernel is told of a walk and of the device, forward and backward.
#pragma once
#include "cuda/plan.h"
#include "ops/cuda_episodes.h"
#include "ops/walk.h"

namespace rnnfast::cuda {

// The walk for a resident kernel; `sizes` has to live until it is launched.
inline Rows rows_of(const LayerSizes& s, const Walk& walk, const DeviceEpisodes& episodes, const Tensor& like,
                    Tensor& sizes) {
  Rows rows{};
  rows.batch = s.B, rows.steps = s.T, rows.reverse = walk.reverse;
  rows.lengths = in<int64_t>(episodes.lengths);
  if (!s.packed) {
    rows.first = walk.offsets[walk.time(0)], rows.stride = walk.row_stride;
    rows.step = (walk.reverse ? -1 : 1) * (s.batch_first ? 1 : s.B);
    return rows;
  }
  const Tensor both = at::empty({2, s.T}, at::kLong);
  std::copy_n(walk.offsets, s.T, both.mutable_data_ptr<int64_t>());
  std::copy_n(walk.sizes, s.T, both.mutable_data_ptr<int64_t>() + s.T);
  sizes = on_device(both, like);
  rows.offsets = sizes.const_data_ptr<int64_t>(), rows.sizes = rows.offsets + s.T, rows.stride = 1;
  return rows;
}

// resident(E()) or stepwise(E()), as planned, of what a tensor of this dtype stores: float64 has no resident
// one
template <class Resident, class Stepwise>
void run_planned(at::ScalarType type, const ResidentPlan& plan, const Resident& resident,
                 const Stepwise& stepwise) {
  with_element(type, [&](auto e) {
    if constexpr (sizeof(e) <= 4) {
      if (is_resident(plan)) return resident(e);
    }
    stepwise(e);
  });
}

inline void check_waited() {
  TORCH_CHECK(!take_failure(),
              "rnnfast: an earlier CUDA kernel waited in vain for blocks that never ran; its output is NaN");
}

// What ties the blocks of a resident kernel's teams, where a row of the batch takes so many packets; `places`
// has to live until it is launched.
inline Links links_of(const ResidentPlan& plan, int64_t batch, int64_t numbers, const Tensor& like,
                      Tensor& places) {
  Links links{};
  links.blocks = plan.blocks, links.split = plan.split, links.batches = plan.batches, links.held = plan.held;
  if (plan.team == Team::kBlock) return links;
  links.patience = current_device().patience;
  links.failed = failure_word();
  TORCH_CHECK(links.failed, "rnnfast: no memory that the host and the GPU share");
  if (plan.team == Team::kCluster) return links;
  const int64_t team = kBatch * plan.batches, rows = (batch + team - 1) / team * team;
  places = at::zeros({rows * numbers}, like.options().dtype(at::kLong));
  links.places = static_cast<uint64_t*>(places.mutable_data_ptr());
  return links;
}

}  // namespace rnnfast::cuda
