// One kernel call from the torch side: kernels, plan, workspace, team; and the record of what ran last.
#pragma once
#include <c10/core/ScalarType.h>

#include <string>

#include "cpu/dispatch.h"
#include "cpu/plan.h"

namespace rnnfast {

// What the last call in this process did: for tests and rnnfast.info
struct LastRun {
  std::string op;  // "recurrent", "recurrent_backward", ...
  std::string isa, split;
  int parts = 0, wanted = 0, members = 0;
  int products = 0;  // Kernels::products
};
LastRun last_run();

// The kernels for a call of so many steps of such a layer of this dtype; of float32 as exact as
// torch.backends.mkldnn.rnn.fp32_precision asks for now.
const Kernels& kernels_for(int64_t batch, int64_t units, int64_t steps, at::ScalarType layer);

// "" lets the plan choose. RNNFAST_SPLIT forces from the start. Throws std::runtime_error for another name.
void set_split(const std::string& name);
std::string forced_split();
bool forced_serial();

// The plan of a call: make_plan's, or the forced one.
Plan choose_plan(Shape shape);

// op null: not recorded; products: what is recorded of it
using Call = size_t (*)(const void* context, Plan plan, void* workspace, Team::Member* member);
void launch_raw(const char* op, Plan plan, bool flush, Call call, const void* context, int products);

// call(plan, workspace, member) is a row of KernelsOf with its parameters bound
template <class F>
void launch_with(const char* op, Plan plan, bool flush, const F& call, int products = 0) {
  launch_raw(
      op, plan, flush,
      [](const void* context, Plan how, void* workspace, Team::Member* member) {
        return (*static_cast<const F*>(context))(how, workspace, member);
      },
      &call, products);
}

// All directions of a shape, one after the other or side by side: call takes the first one of a launch before
// all else.
template <class F>
void launch(const char* op, const Shape& shape, bool flush, const F& call) {
  const Plan plan = choose_plan(shape);
  for (int d = 0; d < shape.directions; d += plan.directions())
    launch_with(
        op, plan, flush,
        [&](Plan how, void* workspace, Team::Member* member) { return call(d, how, workspace, member); },
        shape.products);
}

}  // namespace rnnfast
