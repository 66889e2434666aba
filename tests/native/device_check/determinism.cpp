// The same bits from every run, forward and backward: what waits for the wrong thing, or reads what nobody
// wrote, differs sooner or later. Every run begins with outputs of NaN, and one with shared memory of NaN
// too.
#include "checks.h"
#include "layer.h"
#include "repeat.h"

namespace rnnfast::device_check {
namespace {

using cuda::Team;

struct Shape {
  Mode mode;
  Type type;
  Team team;
  int64_t H, B;
  bool packed, tight;
};
constexpr Shape kShapes[] = {
    {Mode::kLstm, Type::kBfloat16, Team::kBlock, 128, 17, false, false},
    {Mode::kLstm, Type::kBfloat16, Team::kBlock, 40, 8, true, false},
    {Mode::kLstm, Type::kBfloat16, Team::kCluster, 256, 16, false, false},
    {Mode::kLstm, Type::kBfloat16, Team::kCluster, 512, 16, false, false},
    {Mode::kLstm, Type::kBfloat16, Team::kCluster, 200, 17, true, false},
    {Mode::kLstm, Type::kBfloat16, Team::kCluster, 640, 16, false, false},
    {Mode::kLstm, Type::kBfloat16, Team::kCluster, 300, 16, false, true},
    {Mode::kLstm, Type::kBfloat16, Team::kGrid, 1024, 8, false, false},
    {Mode::kLstm, Type::kBfloat16, Team::kGrid, 320, 16, true, true},
    {Mode::kLstm, Type::kHalf, Team::kBlock, 64, 8, false, false},
    {Mode::kLstm, Type::kHalf, Team::kCluster, 512, 8, true, false},
    {Mode::kLstm, Type::kHalf, Team::kGrid, 640, 16, false, false},
    {Mode::kLstm, Type::kTf32, Team::kBlock, 64, 9, false, false},
    {Mode::kLstm, Type::kTf32, Team::kCluster, 256, 16, false, false},
    {Mode::kLstm, Type::kTf32, Team::kCluster, 100, 16, true, true},
    {Mode::kLstm, Type::kTf32, Team::kGrid, 512, 8, false, false},
    {Mode::kGru, Type::kBfloat16, Team::kBlock, 100, 8, false, false},
    {Mode::kGru, Type::kBfloat16, Team::kCluster, 512, 16, false, false},
    {Mode::kGru, Type::kBfloat16, Team::kGrid, 768, 8, false, false},
    {Mode::kGru, Type::kHalf, Team::kCluster, 129, 17, true, false},
    {Mode::kGru, Type::kHalf, Team::kCluster, 400, 16, false, true},
    {Mode::kGru, Type::kHalf, Team::kGrid, 1024, 8, false, false},
    {Mode::kGru, Type::kTf32, Team::kBlock, 33, 8, true, false},
    {Mode::kGru, Type::kTf32, Team::kCluster, 300, 8, false, false},
    {Mode::kGru, Type::kTf32, Team::kGrid, 200, 16, true, true},
    {Mode::kRnnTanh, Type::kBfloat16, Team::kCluster, 512, 17, true, false},
    {Mode::kRnnTanh, Type::kHalf, Team::kGrid, 1024, 16, false, false},
    {Mode::kRnnTanh, Type::kTf32, Team::kCluster, 256, 8, false, false},
    {Mode::kRnnRelu, Type::kBfloat16, Team::kBlock, 128, 8, true, false},
    {Mode::kRnnRelu, Type::kHalf, Team::kCluster, 256, 16, false, true},
    {Mode::kRnnRelu, Type::kTf32, Team::kGrid, 500, 8, false, false},
};

template <class E>
Outcome run_shape(const Shape& shape) {
  const Walk walk(is_emulated() ? 3 : 2000, shape.B, false, shape.packed, false);
  const int64_t H = width_here(shape.H);
  const auto setup = [&](bool backward) {
    return Setup{shape.mode, H, walk,
                 plan_for({shape.mode, shape.type, shape.team, H, shape.B, backward, shape.tight})};
  };
  Outcome outcome;
  for (const bool backward : {false, true}) {
    const std::string why = obstacle(setup(backward).plan, shape.B);
    if (!why.empty()) return skipped(why);
    outcome.plans.push_back(setup(backward).plan);
  }
  const auto check = [&](const char* what, int64_t differing) {
    if (differing == 0) return;
    outcome.result = Result::kWrong;
    outcome.said += std::string(outcome.said.empty() ? "" : ", ") + what + ": " + std::to_string(differing) +
                    " words are not those of the first run";
  };
  Forward<E> forward(setup(false), true);
  check("forward", differences(forward, forward.y, forward.gates, forward.cells, forward.h, forward.c));
  Backward<E> backward(setup(true));
  std::swap(backward.gates, forward.gates), std::swap(backward.cells, forward.cells);
  std::swap(backward.y, forward.y);
  backward.p.gates = backward.gates.get(), backward.p.cells = backward.cells.get();
  backward.p.y = backward.y.get();
  check("backward", differences(backward, backward.da, backward.dx, backward.dh0, backward.dc0));
  return outcome;
}

}  // namespace

void add_determinism(Checks& checks) {
  for (const Shape& shape : kShapes) {
    const std::string name = std::string("determinism-") + facts_of(shape.mode).name + '-' +
                             name_of(shape.type) + '-' + name_of(shape.team) +
                             (shape.packed ? "-packed" : "") + (shape.tight ? "-tight" : "") + "-h" +
                             std::to_string(shape.H);
    checks.push_back({"determinism", name, [shape] {
                        return with_element(shape.type,
                                            [&](auto e) { return run_shape<decltype(e)>(shape); });
                      }});
  }
}

}  // namespace rnnfast::device_check
