// Microseconds a step of whole layers, with the plan that they would get on this device. The input product is
// not in it.
#include "checks.h"
#include "layer.h"
#include "repeat.h"

namespace rnnfast::device_check {
namespace {

struct Timed {
  Mode mode;
  Type type;
  int64_t B, H;
  bool backward;
  bool sums = true;  // as in cuda::Shape
};
constexpr Timed kTimed[] = {
    {Mode::kLstm, Type::kBfloat16, 16, 64, false},
    {Mode::kLstm, Type::kBfloat16, 16, 128, false},
    {Mode::kLstm, Type::kBfloat16, 16, 256, false},
    {Mode::kLstm, Type::kBfloat16, 16, 512, false},
    {Mode::kLstm, Type::kBfloat16, 16, 768, false},
    {Mode::kLstm, Type::kBfloat16, 16, 1024, false},
    {Mode::kLstm, Type::kBfloat16, 64, 256, false},
    {Mode::kLstm, Type::kBfloat16, 64, 512, false},
    {Mode::kGru, Type::kBfloat16, 16, 512, false},
    {Mode::kLstm, Type::kHalf, 16, 512, false},
    {Mode::kLstm, Type::kTf32, 16, 256, false},
    {Mode::kLstm, Type::kBfloat16, 16, 512, true},
    {Mode::kLstm, Type::kBfloat16, 16, 256, true},
    {Mode::kLstm, Type::kBfloat16, 64, 512, true},
    {Mode::kLstm, Type::kBfloat16, 16, 512, true, false},
    {Mode::kLstm, Type::kBfloat16, 16, 256, true, false},
};

template <class E>
Outcome run_timed(const Timed& timed) {
  const Walk walk(is_emulated() ? 2 : 1024, timed.B, false, false, false);
  const int64_t H = width_here(timed.H);
  cuda::Shape shape{timed.mode,     static_cast<int>(sizeof(E)), true, H, timed.B, false,
                    timed.backward, cuda::current_device()};
  shape.sums = timed.sums;
  const cuda::ResidentPlan plan = cuda::make_plan(shape);
  const std::string why = obstacle(plan, timed.B);
  if (!why.empty()) return skipped(why);
  const Setup setup{timed.mode, H, walk, plan};
  Outcome outcome;
  outcome.plans = {plan};
  double time = 0;
  if (timed.backward) {
    Backward<E> layer(setup);
    layer.gates.write_repeated(draw<float>(11, 1 << 20, 1)),
        layer.cells.write_repeated(draw<float>(12, 1 << 20, 1));
    time = median(layer, layer.da);
  } else {
    Forward<E> layer(setup, true);
    time = median(layer, layer.y);
  }
  outcome.us_a_step = time / static_cast<double>(walk.T);
  return outcome;
}

}  // namespace

void add_times(Checks& checks) {
  for (const Timed& timed : kTimed) {
    const std::string name = std::string("time-") + facts_of(timed.mode).name + '-' + name_of(timed.type) +
                             "-b" + std::to_string(timed.B) + "-h" + std::to_string(timed.H) +
                             (timed.backward ? "-backward" : "") + (timed.sums ? "" : "-da");
    checks.push_back({"time", name, [timed] {
                        return with_element(timed.type,
                                            [&](auto e) { return run_timed<decltype(e)>(timed); });
                      }});
  }
}

}  // namespace rnnfast::device_check
