// The layers that checks run; see shapes.h.
#include "shapes.h"

#include <algorithm>

#include "device.h"

namespace rnnfast::device_check {

using cuda::Team;

const char* name_of(Type type) {
  constexpr const char* names[] = {"bf16", "f16", "tf32"};
  return names[static_cast<int>(type)];
}
const char* name_of(Team team) {
  constexpr const char* names[] = {"block", "cluster", "grid"};
  return names[static_cast<int>(team)];
}

Walk::Walk(int64_t T, int64_t B, bool reverse, bool packed, bool batch_first)
    : T(T), B(B), reverse(reverse), packed(packed), batch_first(batch_first && !packed), rows(0) {
  for (int64_t t = 0; t < T; ++t) {
    // of a PackedSequence the first row has all steps, the last one but one
    const int64_t longer = B < 2 ? 1 : 1 + (T - 1 - t) * (B - 1) / std::max<int64_t>(1, T - 1);
    sizes.push_back(packed && t > 0 ? longer : B);
    offsets.push_back(this->batch_first ? t : rows);
    rows += sizes.back();
  }
}

int64_t Walk::length(int64_t b) const {
  return std::count_if(sizes.begin(), sizes.end(), [&](int64_t size) { return b < size; });
}
int64_t Walk::first_step(int64_t b) const { return reverse ? T - length(b) : 0; }

cuda::ResidentPlan plan_for(const Wanted& w) {
  constexpr int kMultiprocessors = 132;
  constexpr int64_t kSharedBytes = 232448;
  const auto plan_on = [&](int capability, int multiprocessors, int blocks, int at_once) {
    cuda::Device device = cuda::assumed_device(capability, multiprocessors, kSharedBytes);
    for (int n = 1; n <= cuda::kMostBlocks; ++n)
      device.clusters[n] = n > blocks ? 0 : std::min(device.clusters[n], at_once);
    const int bytes = w.type == Type::kTf32 ? 4 : 2;
    cuda::Shape shape{w.mode, bytes, true, w.H, w.B, false, w.backward, device};
    shape.sums = w.sums;
    const cuda::ResidentPlan plan = cuda::make_plan(shape);
    return cuda::is_resident(plan) && plan.team == w.team ? plan : cuda::kOneLaunchAStep;
  };
  const int most = w.team == Team::kGrid ? kMultiprocessors : cuda::kMostBlocks;
  const auto plan_of_team = [&](int size) {
    return w.team == Team::kGrid ? plan_on(80, size, 0, 0)
                                 : plan_on(90, kMultiprocessors, size, w.tight ? 1 : kMultiprocessors);
  };
  if (!w.tight) return plan_of_team(most);
  for (int size = 1; size <= most; ++size) {
    const cuda::ResidentPlan plan = plan_of_team(size);
    if (plan.batches > 1) return plan;
  }
  return cuda::kOneLaunchAStep;
}

int64_t width_here(int64_t H) { return is_emulated() ? std::min<int64_t>(H, 160) : H; }

std::string obstacle(const cuda::ResidentPlan& plan, int64_t B) {
  const cuda::Device device = cuda::current_device();
  if (!cuda::is_resident(plan)) return "no resident kernel does it here";
  if (plan.bytes > device.shared_bytes)
    return "it takes " + std::to_string(plan.bytes) + " bytes of shared memory, a block here has " +
           std::to_string(device.shared_bytes);
  const std::string blocks = std::to_string(plan.blocks);
  if (plan.team == Team::kCluster && device.clusters[plan.blocks] == 0)
    return "no clusters of " + blocks + " blocks here";
  const int64_t rows = cuda::kBatch * plan.batches, teams = (B + rows - 1) / rows;
  if (plan.team == Team::kGrid && teams * plan.blocks > device.multiprocessors)
    return std::to_string(teams) + " teams of " + blocks + " blocks have to run at once, on " +
           std::to_string(device.multiprocessors) + " multiprocessors";
  return "";
}

}  // namespace rnnfast::device_check
