// Everything of one instruction set, in the order in which it builds on itself. Included once in each
// isa_*.cpp, inside the set's namespace and target region, after kVectorBytes, RNNFAST_FMA_F32,
// RNNFAST_FMA_F64 and what else the set has in one instruction: RNNFAST_LESSER_*, RNNFAST_GREATER_*,
// RNNFAST_MASKED_*, for 16 bits what convert-inl.h and bfloat16-inl.h ask for, and RNNFAST_MANY_REGISTERS if
// it has 32 of them.
// clang-format off: each needs what the one before it gives
#include "cells/real.h"
#include "cpu/pack-inl.h"
// clang-format on

RNNFAST_INLINE f32v fma(f32v a, f32v b, f32v c) { return RNNFAST_FMA_F32(a, b, c); }
RNNFAST_INLINE f64v fma(f64v a, f64v b, f64v c) { return RNNFAST_FMA_F64(a, b, c); }

#ifdef RNNFAST_LESSER_F32
RNNFAST_INLINE f32v lesser(f32v a, f32v b) { return RNNFAST_LESSER_F32(a, b); }
RNNFAST_INLINE f64v lesser(f64v a, f64v b) { return RNNFAST_LESSER_F64(a, b); }
RNNFAST_INLINE f32v greater(f32v a, f32v b) { return RNNFAST_GREATER_F32(a, b); }
RNNFAST_INLINE f64v greater(f64v a, f64v b) { return RNNFAST_GREATER_F64(a, b); }
#endif

// clang-format off: each needs what the one before it gives
#ifdef RNNFAST_DOT_BF16
#include "cpu/bfloat16-inl.h"
#endif
#include "cpu/convert-inl.h"
#include "cpu/turn-inl.h"
#include "cells/all.h"
#include "cpu/share-inl.h"
#include "cpu/parts-inl.h"
#include "cpu/tile-inl.h"
#include "cpu/product-inl.h"
#ifdef RNNFAST_MATRIX_UNIT
#include "cpu/matrix-inl.h"
#include "cpu/parts-product-inl.h"
#endif
#include "cpu/forward-inl.h"
#include "cpu/backward-inl.h"
#include "cpu/deep-inl.h"
#include "cpu/gradient-inl.h"
// clang-format on

// run(member), where there is one
template <class F>
void with_member(Team::Member* member, const F& run) {
  if (!member) return;
  run(*member);
#ifdef RNNFAST_MATRIX_UNIT
  release_tiles(member->tiles);
#endif
}

template <class Loop, class Params>
size_t run_loop(const Params& params, Plan plan, void* workspace, Team::Member* member) {
  Arena arena{static_cast<char*>(workspace)};
  const Loop loop(params, plan, arena);
  with_member(member, [&](Team::Member& m) { loop.run(m); });
  return arena.used;
}

template <class Loop, class Params>
size_t run_directions(const Params* params, Plan plan, void* workspace, Team::Member* member) {
  Arena arena{static_cast<char*>(workspace)};
  const Plan each = plan.of_direction();
  if (plan.directions() == 2) {
    const Loop loops[] = {Loop(params[0], each, arena), Loop(params[1], each, arena)};
    with_member(member, [&](Team::Member& m) { Loop::run(loops, plan, m); });
  } else {
    const Loop loop(*params, each, arena);
    with_member(member, [&](Team::Member& m) { Loop::run(&loop, plan, m); });
  }
  return arena.used;
}

template <template <class, class> class Loop, class E, class Params>
size_t run_cell(Mode mode, const Params* params, Plan plan, void* workspace, Team::Member* member) {
  return with_cell(mode, [&](auto cell) {
    return run_directions<Loop<decltype(cell), E>>(params, plan, workspace, member);
  });
}

template <class A>
void apply_math(char function, const A* x, A* y, int64_t n) {
  constexpr int L = Vec<A>::kLanes;
  for (int64_t i = 0; i < n; i += L) {
    const auto v = load_part(x + i, n - i);
    store_part(y + i, function == 's' ? sigmoid(v) : tanh(v), n - i);
  }
}

template <class E>
constexpr LayerKernels<E> kLayerOf = {run_cell<Forward, E, ForwardParams<E>>,
                                      run_cell<Backward, E, BackwardParams<E>>,
                                      run_loop<Gradient<E>, GradientParams<E>>, freeze<E>};

template <class A>
constexpr KernelsOf<A> kKernelsOf = {kLayerOf<A>, run_loop<DeepForward<A>, DeepParams<A>>,
                                     run_loop<DeepBackward<A>, DeepParams<A>>, apply_math<A>};
