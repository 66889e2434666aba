// One call of a kernel, alone and by a team on a random plan: what it must leave as it was, and that the
// results are equal bit for bit.
#pragma once
#include <cstdlib>
#include <cstring>
#include <utility>

#include "outputs.h"

namespace {

int64_t calls, teams;

// call(plan, workspace, member) is a row of KernelsOf with its parameters bound
template <class Call>
void launch(const char* kernel, Plan plan, int wanted, bool flush, const Call& call) {
  std::snprintf(call_text, sizeof call_text, "%s: split %s, parts %d, threads %d", kernel,
                name_of(plan.split), plan.parts, wanted);
  struct Bound {
    const Call& call;
    Plan plan;
    void* workspace;
  };
  // the race: each of the parts takes itself for the only one
  const Plan told = fault == "race" && plan.split == Split::kUnits ? Plan{Split::kSerial, 1} : plan;
  const size_t bytes = call(told, nullptr, nullptr);
  Bound bound{call, told, std::aligned_alloc(64, bytes)};
  std::memset(bound.workspace, rng.one_in(4) ? static_cast<int>(rng.in(0, 255)) : 0xff, bytes);
  mxcsr = {rng.one_in(2) ? 0x1f80u : 0x9fc0u, flush ? ~0u : ~0x3fu};
  new (&solitude) Solitude;  // forgets what calls before lost by waiting
  mxcsr.set();
  const bool profiled = rng.one_in(8);
  if (profiled) start_profile();
  const int members = Team::run(
      wanted, plan.parts, flush, plan.split == Split::kUnits,
      [](void* self, Team::Member& member) noexcept {
        const Bound& b = *static_cast<const Bound*>(self);
        b.call(b.plan, b.workspace, &member);
      },
      &bound);
  // the pool has checked its threads, the caller among them
  if (wanted > 1) mxcsr.set();
  mxcsr.check("the caller");
  if (profiled) {
    const Profile profile = stop_profile();
    // a tick's length is measured, and an emulated processor may count whole microseconds
    constexpr double kExact = 0.01, kShort = 1e-6;
    if (!(profile.kernels > 0 || profile.elapsed <= kShort) ||
        !(profile.kernels <= (1 + kExact) * profile.elapsed + kShort))
      fail("a call of %g s took %g s", profile.elapsed, profile.kernels);
  }
  std::free(bound.workspace);
  if (members < 1 || members > wanted)
    fail("%d members worked, of %d threads on %d parts", members, wanted, plan.parts);
  calls += wanted > 1;
  teams += members > 1;
}

Plan random_plan(bool units, bool directions) {
  const int parts = static_cast<int>(rng.in(1, kThreads));
  if (rng.one_in(8)) return {Split::kSerial, 1};
  if (directions && rng.one_in(4)) return {Split::kDirections, 2};
  if (!units || rng.one_in(2)) return {Split::kRows, parts};
  return {Split::kUnits, parts};
}

// call(params, plan, workspace, member) alone, and by a team, which may take the other direction too, if
// there is one; takes(p, outputs) gives p what it writes to. p keeps the results of the lone call.
template <class Params, class Takes, class Call>
Outputs run_both(const char* kernel, Params& p, const Params* other, bool units, bool flush,
                 const Takes& takes, const Call& call) {
  const Plan plan = random_plan(units, other);
  Params alone[] = {p, other ? *other : p}, together[] = {alone[0], alone[1]};
  Outputs of_alone[] = {{0xff, false, {}}, {0xff, false, {}}},
          of_team[] = {{0x41, true, {}}, {0x41, true, {}}};
  const auto run = [&](Params* q, Outputs* outputs, Plan how, int wanted) {
    for (int i = 0; i < how.directions(); ++i) takes(q[i], outputs[i]);
    launch(kernel, how, wanted, flush, [&](Plan told, void* workspace, Team::Member* member) {
      return call(q, told, workspace, member);
    });
    for (int i = 0; i < how.directions(); ++i) outputs[i].check_kept();
  };
  for (int i = 0; i < plan.directions(); ++i) run(&alone[i], &of_alone[i], {Split::kSerial, 1}, 1);
  run(together, of_team, plan, static_cast<int>(rng.in(fault.empty() ? 1 : 2, kThreads)));
  if (fault == "differs") of_team[0].arrays[0].bytes[of_team[0].arrays[0].before] ^= 1;
  for (int i = 0; i < plan.directions() && fault != "race"; ++i) of_alone[i].check_equal(of_team[i]);
  p = alone[0];
  return std::move(of_alone[0]);
}

// what runs beside p: the same the other way round
template <class Params>
Params reversed(Params p) {
  p.walk.reverse = !p.walk.reverse;
  return p;
}

}  // namespace
