// Whole sequences in one launch: W stays in the registers of the threads that use it, as operands of the
// matrix instruction, and only h (backward: dL/d(pre-activations)) travels, through shared memory.
// A team of blocks (one, a cluster, or for wide layers a part of the grid) works on 8 rows of the batch, the
// columns of the instruction; the units are shared out among its warps. Each thread ends up with all gates of
// a unit for two rows, and does their cells. Teams of several blocks (kTeam) may give a unit to several
// warps, each with a part of the sum; keep a part of W in shared memory; and take several times 8 rows, one
// after the other.
#pragma once
#include "cuda/resident_backward.cuh"
#include "cuda/resident_forward.cuh"

namespace rnnfast::cuda {

// the blocks of all teams
template <class Params>
const char* launch_teams(void (*kernel)(Params), const ResidentPlan& plan, int64_t batch, void* stream,
                         const Params& params) {
  const int64_t teams = divide_up(batch, kBatch * plan.batches);
  return launch_clusters(kernel, teams, plan.blocks, plan.warps * kLanes, plan.bytes,
                         plan.team == Team::kGrid, stream, params);
}

// f(a kernel's tiles, whether for teams of several blocks, as constants)
template <class F>
const char* with_tiles(const ResidentPlan& plan, const F& f) {
  if (plan.team != Team::kBlock) return f(std::integral_constant<int, kMostTiles>(), std::true_type());
  if (plan.tiles == 4) return f(std::integral_constant<int, 4>(), std::false_type());
  return f(std::integral_constant<int, 8>(), std::false_type());
}

template <class E>
const char* resident_forward(Mode mode, const ResidentForward<E>& layer, const ResidentPlan& plan,
                             void* stream) {
  return rough::with_cell(mode, [&](auto cell) {
    return with_tiles(plan, [&](auto tiles, auto team) {
      return launch_teams(resident_forward<decltype(cell), E, decltype(tiles)::value, decltype(team)::value>,
                          plan, layer.batch, stream, layer);
    });
  });
}

template <class E>
const char* resident_backward(Mode mode, const ResidentBackward<E>& layer, const ResidentPlan& plan,
                              void* stream) {
  return rough::with_cell(mode, [&](auto cell) {
    return with_tiles(plan, [&](auto tiles, auto team) {
      return launch_teams(resident_backward<decltype(cell), E, decltype(tiles)::value, decltype(team)::value>,
                          plan, layer.batch, stream, layer);
    });
  });
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT(E)                                                                           \
  template const char* resident_forward(Mode, const ResidentForward<E>&, const ResidentPlan&, void*); \
  template const char* resident_backward(Mode, const ResidentBackward<E>&, const ResidentPlan&, void*);
