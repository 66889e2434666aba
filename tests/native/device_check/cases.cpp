// Every resident kernel against the reference: cells, types, teams, forms, forward and backward.
#include "checks.h"
#include "compare.h"

namespace rnnfast::device_check {
namespace {

using cuda::Team;

enum class Form { kDense, kReverse, kPacked };
constexpr Form kForms[] = {Form::kDense, Form::kReverse, Form::kPacked};
const char* name_of(Form form) {
  constexpr const char* names[] = {"dense", "reverse", "packed"};
  return names[static_cast<int>(form)];
}

struct Case {
  Mode mode;
  Type type;
  Team team;
  Form form;
  bool backward;
  int64_t H;
};

// Widths of each kind of team, in an order in which each cell meets each of them: whole tiles and parts of
// them, the narrowest and the widest that a team takes, W in registers alone and in shared memory too.
int64_t width_of(Team team, Type type, int which) {
  constexpr int64_t halves[][6] = {
      {128, 40, 33, 64, 100, 7}, {512, 256, 129, 512, 200, 144}, {1024, 520, 129, 300, 264, 192}};
  constexpr int64_t tf32[][6] = {
      {64, 40, 33, 20, 48, 7}, {400, 256, 65, 130, 100, 72}, {700, 300, 129, 200, 65, 96}};
  return (type == Type::kTf32 ? tf32 : halves)[static_cast<int>(team)][which % 6];
}

// What each case is run with: batches that are one tile of 8 rows, a part of one, several on teams of their
// own, and several on one team, which then takes two launches; once without saving anything for backward.
struct Run {
  int64_t T, B;
  bool tight, saves;
  int launches;
  bool sums = true;  // as in cuda::Shape
};
typedef std::vector<Run> Runs;
const Runs kRuns = {
    {9, 8, false, true, 1}, {500, 3, false, false, 1}, {9, 17, false, true, 1}, {500, 11, true, true, 2}};
// The emulated device is slow: few steps, and of wide layers few runs.
const Runs kEmulatedRuns = {
    {3, 8, false, true, 1}, {5, 3, false, false, 1}, {3, 9, false, true, 1}, {3, 11, true, true, 2}};
const Runs kEmulatedWideRuns = {{3, 8, false, true, 1}, {2, 11, true, true, 1}};
constexpr int64_t kEmulatedWide = 220, kEmulatedWidest = 512;

// Backward in a cluster both ways: sums are exchanged, and da.
Runs runs_of(const Case& c, int64_t H) {
  Runs runs = !is_emulated() ? kRuns : H < kEmulatedWide ? kEmulatedRuns : kEmulatedWideRuns;
  if (c.team != Team::kCluster || !c.backward) return runs;
  Runs both;
  for (const bool sums : {false, true})
    for (Run run : runs) {
      run.sums = sums;
      both.push_back(run);
    }
  return both;
}

template <class E>
void run_forward(const Setup& setup, const Run& run, Comparison& comparison) {
  Forward<E> layer(setup, run.saves);
  layer.prepare();
  layer.launch(run.launches);
  finish(nullptr);
  compare_forward(layer, compared_rows(setup), comparison);
}

template <class E>
void run_backward(const Setup& setup, Comparison& comparison) {
  const std::vector<int64_t> rows = compared_rows(setup);
  Backward<E> layer(setup);
  save_states(layer, rows);
  layer.prepare();
  layer.launch();
  finish(nullptr);
  compare_backward(layer, rows, comparison);
}

Outcome run_case(const Case& c) {
  Outcome outcome;
  std::string left_out;
  double excess = -1;
  bool odd = true;
  const int64_t H = is_emulated() ? std::min(c.H, kEmulatedWidest) : c.H;
  for (const Run& run : runs_of(c, H)) {
    odd = !odd;
    if (run.tight && c.team == Team::kBlock) continue;  // it never takes several times 8 rows
    const bool packed = c.form == Form::kPacked, reverse = c.form == Form::kReverse || (packed && odd);
    const Walk walk(run.T, run.B, reverse, packed, odd);
    const Setup setup{c.mode, H, walk,
                      plan_for({c.mode, c.type, c.team, H, run.B, c.backward, run.tight, run.sums})};
    const std::string where = " (T = " + std::to_string(walk.T) + ", B = " + std::to_string(walk.B) + ")";
    const std::string why = obstacle(setup.plan, run.B);
    if (!why.empty()) {
      left_out = why + where;
      continue;
    }
    outcome.plans.push_back(setup.plan);
    Comparison comparison;
    try {
      with_element(c.type, [&](auto e) {
        if (c.backward)
          run_backward<decltype(e)>(setup, comparison);
        else
          run_forward<decltype(e)>(setup, run, comparison);
      });
    } catch (const Failure& failure) {
      outcome.result = Result::kWrong, outcome.said = failure.what() + where;
      return outcome;
    }
    if (comparison.error() / comparison.limit() > excess || !comparison.right()) {
      outcome.error = comparison.error(), outcome.limit = comparison.limit();
      excess = outcome.error / outcome.limit;
    }
    if (comparison.right()) continue;
    outcome.result = Result::kWrong, outcome.said = comparison.said() + where;
    return outcome;
  }
  if (!left_out.empty()) outcome.said = (outcome.plans.empty() ? "" : "in part: ") + left_out;
  if (outcome.plans.empty()) outcome.result = Result::kSkipped;
  return outcome;
}

}  // namespace

void add_cases(Checks& checks) {
  for (const CellFacts& cell : kCells)
    for (const Type type : kTypes)
      for (const Team team : kTeams)
        for (const Form form : kForms)
          for (const bool backward : {false, true}) {
            const int which = 2 * static_cast<int>(form) + backward + static_cast<int>(cell.mode) +
                              static_cast<int>(type == Type::kHalf);
            const Case c{cell.mode, type, team, form, backward, width_of(team, type, which)};
            const std::string name = std::string("case-") + cell.name + '-' + name_of(type) + '-' +
                                     name_of(team) + '-' + name_of(form) +
                                     (backward ? "-backward-h" : "-forward-h") + std::to_string(c.H);
            checks.push_back({"case", name, [c] { return run_case(c); }});
          }
}

}  // namespace rnnfast::device_check
