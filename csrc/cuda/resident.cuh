// Whole sequences in one launch: W stays in the registers of the threads that use it, as operands of the
// matrix instruction, and only h (backward: dL/d(pre-activations)) travels, through shared memory. (Where
// blocks exchange sums backward, see resident_scatter.cuh.)
// A team of blocks (one, a cluster, or for wide layers a part of the grid) works on 8 rows of the batch, the
// columns of the instruction; the units are shared out among its warps. Each thread ends up with all gates of
// a unit for two rows, and does their cells. Teams of several blocks (kTeam) may give a unit to several
// warps, each with a part of the sum; keep a part of W in shared memory; and take several times 8 rows, one
// after the other.
#pragma once
#include "cuda/resident_backward.cuh"
#include "cuda/resident_forward.cuh"

namespace rnnfast::cuda {

// f.template operator()<a kernel's cell, its tiles, its kind of team, whether the walk is plain>()
template <class Params, class F>
const char* with_kernel(Mode mode, const ResidentPlan& plan, const Params& params, const F& f) {
  return rough::with_cell(mode, [&](auto cell) {
    typedef decltype(cell) Cell;
    const auto with = [&]<int kTiles, Team kTeam>() {
      return is_plain(params.rows, params.resets) ? f.template operator()<Cell, kTiles, kTeam, true>()
                                                  : f.template operator()<Cell, kTiles, kTeam, false>();
    };
    if (plan.team == Team::kCluster) return with.template operator()<kMostTiles, Team::kCluster>();
    if (plan.team == Team::kGrid) return with.template operator()<kMostTiles, Team::kGrid>();
    if (plan.tiles == 4) return with.template operator()<4, Team::kBlock>();
    return with.template operator()<8, Team::kBlock>();
  });
}

template <class E>
const char* resident_forward(Mode mode, const ResidentForward<E>* directions, const ResidentPlan& plan,
                             void* stream) {
  return with_kernel(mode, plan, *directions, [&]<class Cell, int kTiles, Team kTeam, bool kPlain>() {
    return launch_teams(resident_forward<Cell, E, kTiles, kTeam, kPlain>, plan, stream, directions);
  });
}

template <class E>
const char* resident_backward(Mode mode, const ResidentBackward<E>* directions, const ResidentPlan& plan,
                              void* stream) {
  if (plan.units) return resident_scatter(mode, directions, plan, stream);
  return with_kernel(mode, plan, *directions, [&]<class Cell, int kTiles, Team kTeam, bool kPlain>() {
    return launch_teams(resident_backward<Cell, E, kTiles, kTeam, kPlain>, plan, stream, directions);
  });
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT(E)                                                                           \
  template const char* resident_forward(Mode, const ResidentForward<E>*, const ResidentPlan&, void*); \
  template const char* resident_backward(Mode, const ResidentBackward<E>*, const ResidentPlan&, void*);
