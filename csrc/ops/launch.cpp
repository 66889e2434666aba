// Kernels, plan, workspace and team of a kernel call; see launch.h.
#include "ops/launch.h"

#include <ATen/Context.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "ops/memory.h"

namespace rnnfast {
namespace {

std::mutex record_mutex;
LastRun record;

constexpr int kFree = -1;

int parse_forced(const char* name) {
  if (!name || !*name) return kFree;
  Split split;
  if (!parse_split(name, split))
    throw std::runtime_error(std::string("split '") + name +
                             "' is unknown, expected serial, units, rows or directions");
  return static_cast<int>(split);
}

std::atomic<int>& forced() {
  static std::atomic<int> value{parse_forced(std::getenv("RNNFAST_SPLIT"))};
  return value;
}

// what torch's setting comes to, once those that it stands under are asked too
Precision asked_precision() {
  const auto asked = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::RNN);
  return asked == at::Float32Precision::TF32   ? Precision::kTf32
         : asked == at::Float32Precision::BF16 ? Precision::kBfloat16
                                               : Precision::kFloat32;
}

}  // namespace

const Kernels& kernels_for(int64_t batch, int64_t units, int64_t steps, at::ScalarType layer) {
  const bool asks = layer == at::kFloat && may_take_unit(batch, units, steps);  // small calls have no time to
  return asks ? kernels_for(batch, units, steps, asked_precision()) : kernels();
}

LastRun last_run() {
  const std::lock_guard<std::mutex> lock(record_mutex);
  return record;
}

void set_split(const std::string& name) { forced().store(parse_forced(name.c_str())); }

std::string forced_split() {
  const int now = forced().load();
  return now == kFree ? "" : name_of(static_cast<Split>(now));
}

bool forced_serial() { return forced().load() == static_cast<int>(Split::kSerial); }

Plan choose_plan(Shape shape) {
  shape.vector_bytes = kernels().vector_bytes;
  shape.second_cache = second_cache();
  const int now = forced().load();
  // what many threads would not take up, few will not: most small calls end here, without a system call
  if (now == kFree && make_plan(shape, Team::kMaxMembers, 0).split == Split::kSerial)
    return {Split::kSerial, 1};
  const int threads = Team::usable_threads();
  if (now == kFree) return make_plan(shape, threads, Team::meeting_ns());
  const Split split = static_cast<Split>(now);
  const int parts = split == Split::kSerial       ? 1
                    : split == Split::kDirections ? shape.directions
                                                  : std::max(2, threads);
  return {parts == 1 ? Split::kSerial : split, parts};
}

void launch_raw(const char* op, Plan plan, bool flush, Call call, const void* context, int products) {
  struct Bound {
    Plan plan;
    Call call;
    const void* context;
    void* workspace;
  };
  const int64_t bytes = static_cast<int64_t>(call(context, plan, nullptr, nullptr));
  const at::Tensor workspace = kept_empty({bytes}, at::TensorOptions().dtype(at::kByte));
  Bound bound{plan, call, context, workspace.mutable_data_ptr()};
  const int wanted = plan.parts > 1 ? std::min(plan.parts, Team::usable_threads()) : 1;
  const int members = Team::run(
      wanted, plan.parts, flush, plan.split == Split::kUnits,
      [](void* self, Team::Member& member) noexcept {
        const Bound& b = *static_cast<const Bound*>(self);
        b.call(b.context, b.plan, b.workspace, &member);
      },
      &bound);
  if (!op) return;
  const std::lock_guard<std::mutex> lock(record_mutex);
  record.op = op;
  record.isa = kernels().name;
  record.split = name_of(plan.split);
  record.parts = plan.parts;
  record.wanted = wanted;
  record.members = members;
  record.products = products;
}

}  // namespace rnnfast
