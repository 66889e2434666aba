// The plans of a GPU; see plan.h.
#include "cuda/plan.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "cells/facts.h"
#include "cuda/step_cycles.h"

namespace rnnfast::cuda {
namespace {

enum Forced { kFree, kStepwise, kResident };
constexpr const char* kNames[] = {"", "stepwise", "resident"};
constexpr const char* kSingleName = "single";

Forced parse(const char* name) {
  const std::string wanted = name ? name : "";
  for (const Forced forced : {kFree, kStepwise, kResident})
    if (wanted == kNames[forced]) return forced;
  throw std::runtime_error("CUDA kernel '" + wanted + "' is unknown, expected stepwise or resident");
}

std::atomic<Forced>& forced() {
  static std::atomic<Forced> value{parse(std::getenv("RNNFAST_CUDA_KERNEL"))};
  return value;
}

// the device of set_device, of capability 0 where there is none; and what ran last
struct State {
  std::mutex mutex;
  Device device{};
  LastRun last{"", kOneLaunchAStep};
};
State& state() {
  static State instance;
  return instance;
}

// what the sums of a layer are made of
struct Sums {
  int64_t tile;     // numbers that one instruction takes of a sum
  int64_t gates;    // of the cell
  int64_t slots;    // sums of a thread for each row
  int64_t units;    // of the warps that share a sum
  int64_t numbers;  // of h, or dL/d(pre-activations), that travel of a row
  int64_t bytes;    // of each
};

Sums sums_of(const Shape& s) {
  const int64_t gates = facts_of(s.mode).gates;
  const bool one_gate = gates == 1;
  const int64_t word = 4 / s.bytes, row = travelling(s.H, gates, s.backward);
  const int64_t units = units_of_group(gates, s.backward);
  return {kWords * word, gates, one_gate ? 2 : 4, units, s.backward ? gates * row : row, s.bytes};
}

// instructions of a warp with W in its registers
int64_t own_tiles(int tiles, const Sums& sums, bool backward) {
  return backward ? divide_up(sums.gates * tiles, 2) : tiles;
}

// Backward in a cluster that exchanges sums, of 16 units each: those of all its blocks
int64_t sums_of_blocks(const ResidentPlan& p) { return p.blocks * p.units / (2 * kWarpUnits); }
// and the shared memory of a block: the marks, what comes and a thread's own of each tile; da of the block's
// own units, twice; W that the registers do not hold
int64_t bytes_of_scatter(const ResidentPlan& p, const Sums& sums) {
  const int64_t das = 2 * kBatch * (sums.gates * p.units * sums.bytes + kSkewBytes);
  const int64_t cells = p.units * kBatch, length = scatter_length(sums.gates, p.units, sums.bytes);
  const int64_t held = sums_of_blocks(p) - p.tiles / length * kScatterWarps;
  const int64_t w = held > 0 ? held * length * 4 * 32 : 0;
  return p.batches * (16 + 4 * 2 * cells * (p.blocks + 1)) + das + 4 * w;
}

// shared memory of a block: the marks of what has arrived of each tile, each row that is read (twice where it
// is written at the same time), W that the registers do not hold, sums on their way, a thread's own
int64_t bytes_of(const ResidentPlan& p, const Sums& sums, bool backward) {
  if (p.units) return bytes_of_scatter(p, sums);
  const int64_t threads = 32 * p.warps, per_tile = backward ? 1 : sums.slots / 2;
  const int64_t w = 4 * threads * p.held * per_tile;
  const bool several = p.team != Team::kBlock;
  const int64_t leaving = backward ? p.warps : p.warps - p.warps / p.split;
  const int64_t parts = 2 * 2 * (backward ? 2 : sums.slots) * 32 * leaving;
  const int64_t bias = backward ? 0 : p.warps * sums.slots * kWarpUnits;
  const int64_t own = backward  ? 2 * 2 * p.batches * threads
                      : several ? sums.units / kWarpUnits * 2 * p.batches * threads
                                : 0;
  const int64_t row =
      sums.bytes * sums.tile * (own_tiles(p.tiles, sums, backward) + p.held) * p.split + kSkewBytes;
  return p.batches * (16 + (p.team == Team::kGrid ? 1 : 2) * kBatch * row) + 4 * (w + parts + bias + own);
}

// Cycles that a tile of 8 rows takes a team in a step, as benchmarks.cycles reckons them: with W in registers
// and a sum for each warp; for each instruction whose W is in shared memory, and to begin with those; for
// each warp that shares a sum.
struct Cycles {
  int64_t tile, held, first_held, part;
};
// What a team sends is on its way for so long: an estimate. Of several tiles one's is while the others are
// worked on.
constexpr int64_t kWay = 400;
Cycles cycles_of(int64_t gates, bool backward) {
  if (backward) return {640 + 283 * gates, 44, 0, 38};
  return gates == 1 ? Cycles{1227, 50, 88, 62} : Cycles{1300, 57, 80, 65};
}

// The same where a cluster exchanges sums: what a step takes with one cell for a thread, and for a second
// one; for each sum that a warp sends; for instructions one after another, in two chains where there are but
// two sums; for more parts than are read at once; and for each instruction whose W is in shared memory, of
// which all warps read 4 KiB, 128 bytes a cycle.
int64_t cycles_of_scatter(const ResidentPlan& p, const Sums& sums) {
  const int64_t more = p.units * kBatch / (32 * kScatterWarps) - 1;  // cells of a thread than one
  const int length = scatter_length(sums.gates, p.units, sums.bytes);
  const int64_t chain = (scatter_sums(length) > 2 ? 17 : 8) * length;
  const int64_t product = chain + 15 * divide_up(sums_of_blocks(p), kScatterWarps) + 32 * p.held;
  const int64_t cells = 730 + 90 * sums.gates + more * (60 + 45 * sums.gates);
  const int64_t gathered = p.blocks * (more + 1) > kMostBlocks ? 155 : 0;
  return (p.batches == 1 ? kWay : 0) + p.batches * (cells + product + gathered);
}

int64_t cycles_of(const ResidentPlan& p, const Shape& s, const Sums& sums) {
  if (p.units) return cycles_of_scatter(p, sums);
  const Cycles c = cycles_of(sums.gates, s.backward);
  const int64_t of_held = p.held ? c.first_held + c.held * p.held : 0;
  // a thread takes packets of a word's rows (two of halves)
  const int64_t sharers = 32 * p.warps * (4 / s.bytes) / kBatch;
  const int pairs = packet_pairs(s.bytes, s.backward, /*plain=*/true, s.device.capability >= 90);
  const int64_t asks = p.team == Team::kGrid ? divide_up(sums.numbers / 2, pairs * sharers) : 0;
  const int64_t way = p.batches == 1 ? kWay : 0, round = 60 + 80 * pairs;  // of packets
  return way + p.batches * (c.tile + of_held + c.part * p.split + round * asks);
}

// A plan, and the cycles of a step for all rows; teams that are not there at once come one after the other
struct Weighed {
  ResidentPlan plan = kOneLaunchAStep;
  int64_t cycles = 0;

  // of fewer cycles or, where they are as many, of fewer blocks
  void take(const Weighed& other) {
    const bool better = other.cycles < cycles || (other.cycles == cycles && other.plan.blocks < plan.blocks);
    if (is_resident(other.plan) && (!is_resident(plan) || better)) *this = other;
  }
};

// A plan with as many tiles of 8 rows for a team as take the fewest cycles, where so many teams are there at
// once; none where it does not fit
Weighed of_all_rows(ResidentPlan p, const Shape& s, const Sums& sums, int64_t at_once) {
  if (at_once == 0) return {};
  const int64_t rows = divide_up(s.B, kBatch), most = divide_up(s.directions * rows, at_once);
  Weighed best;
  // clusters need not run all at once, though none begins twice for nothing
  for (int64_t batches = most; batches >= (p.team == Team::kCluster ? 1 : most); --batches) {
    p.batches = static_cast<int>(batches);
    p.bytes = bytes_of(p, sums, s.backward);
    if (p.bytes > s.device.shared_bytes) continue;
    const int64_t teams = s.directions * divide_up(rows, batches);
    best.take({p, divide_up(teams, at_once) * cycles_of(p, s, sums)});
  }
  return best;
}

// The plan of a team of this kind whose warps share sums so; none where it does not fit
Weighed team_plan(const Shape& s, const Sums& sums, Team team, int split) {
  ResidentPlan p{};
  p.directions = s.directions;
  p.tiles = kMostTiles, p.split = split, p.team = team;
  const int64_t own = own_tiles(kMostTiles, sums, s.backward);
  const int64_t tiles = divide_up(divide_up(sums.numbers, sums.tile), split);
  p.held = static_cast<int>(tiles > own ? tiles - own : 0);
  if (s.backward) p.held += p.held % 2;  // two at a time
  // of one block alone st.async is undefined
  const int64_t fewest = team == Team::kCluster ? 2 : 1,
                blocks = divide_up(s.H, kMostWarps / split * sums.units);
  p.blocks = static_cast<int>(blocks < fewest ? fewest : blocks);
  p.warps = static_cast<int>(divide_up(divide_up(s.H, p.blocks), sums.units) * split);
  const bool cluster = team == Team::kCluster;
  if (!cluster && s.directions > 1) return {};  // see of_this_block
  const int64_t at_once = !cluster                 ? s.device.multiprocessors / p.blocks
                          : p.blocks > kMostBlocks ? 0
                                                   : s.device.clusters[p.blocks];
  return of_all_rows(p, s, sums, at_once);
}

// The plan of a cluster whose blocks exchange sums and have so many units; none where it does not fit
Weighed scatter_plan(const Shape& s, const Sums& sums, int units) {
  ResidentPlan p{};
  p.directions = s.directions;
  p.team = Team::kCluster, p.warps = kScatterWarps, p.split = 1, p.units = units;
  const int64_t blocks = divide_up(s.H, units);
  p.blocks = static_cast<int>(blocks < 2 ? 2 : blocks);
  if (p.blocks > kMostBlocks) return {};
  const int length = scatter_length(sums.gates, units, sums.bytes), own = scatter_sums(length);
  if (length > kLongestSum) return {};
  const int64_t of_warp = divide_up(sums_of_blocks(p), kScatterWarps);
  p.tiles = own * length;
  p.held = static_cast<int>(of_warp > own ? (of_warp - own) * length : 0);
  return of_all_rows(p, s, sums, s.device.clusters[p.blocks]);
}

// W must fit the registers: 8 units of four gates take a register of each of a warp's threads for 2 halves or
// for one number of TF32 of a unit's H (forward; backward as many), which leaves room for 16 warps, a block
// of 128 units, with 64 registers. Wider layers take several blocks of twelve warps with 88 registers for W:
// a cluster if there is one that holds it, else a part of the grid; or backward a cluster of blocks of eight
// warps with 128 registers for W, which exchange sums. What the registers do not hold of W goes to shared
// memory.
Weighed resident_plan(const Shape& s) {
  const Sums sums = sums_of(s);
  if (s.H <= 8 * sums.tile) {
    ResidentPlan p{};
    p.tiles = s.H <= 4 * sums.tile ? 4 : 8;
    p.blocks = p.batches = 1, p.split = s.backward ? 2 : 1;
    p.warps = static_cast<int>(divide_up(s.H, sums.units) * p.split);
    p.bytes = bytes_of(p, sums, s.backward);
    p.directions = s.directions;
    return p.bytes <= s.device.shared_bytes ? Weighed{p} : Weighed{};
  }
  for (const Team team : {Team::kCluster, Team::kGrid}) {
    Weighed best;
    for (int split = s.backward ? 2 : 1; split <= kMostWarps; ++split)
      best.take(team_plan(s, sums, team, split));
    if (s.backward && s.sums && team == Team::kCluster)
      for (const int units : {32, 64}) best.take(scatter_plan(s, sums, units));
    if (is_resident(best.plan)) return best;
  }
  return {};
}

// The team of a deep transition whose products take the fewest cycles, as benchmarks.cycles reckons them:
// once, for each instruction of a warp (all W is in shared memory), for each warp that shares a sum, and for
// several blocks, between which what is sent takes some time, an estimate.
Weighed deep_plan(const DeepShape& s) {
  constexpr int64_t kProduct = 740, kHeld = 30, kPart = 62, kTeam = 390;
  const bool matrix = s.bytes == 2 || (s.bytes == 4 && s.tf32);
  Weighed best;
  if (!matrix || s.depth > kMostDeep || s.device.capability < 80) return best;
  const int64_t tile = kWords * 4 / s.bytes, width = travelling(s.width, 1, false);
  const int64_t groups = width / units_of_group(1, false), teams = divide_up(s.B, kBatch);
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
    const int64_t at_once = blocks == 1 ? s.device.multiprocessors : s.device.clusters[blocks];
    const int64_t of_block = divide_up(groups, blocks);
    if (at_once == 0 || divide_up(groups, of_block) < blocks) continue;
    for (int split = 1; split * of_block <= kMostDeepWarps; ++split) {
      ResidentPlan p = kOneLaunchAStep;
      p.team = blocks == 1 ? Team::kBlock : Team::kCluster;
      p.blocks = blocks, p.split = split, p.warps = static_cast<int>(of_block * split);
      const int64_t tiles = divide_up(divide_up(width, tile), split);
      p.held = static_cast<int>(tiles + tiles % 2);  // two at a time
      const int64_t row = s.bytes * tile * p.held * split + kSkewBytes;
      const int64_t w = 4 * 32 * s.depth * p.warps * p.held, parts = 2 * 4 * 32 * (p.warps - of_block);
      const int64_t bias = 2 * kWarpUnits * s.depth * p.warps;
      p.bytes = 16 + 2 * kBatch * row + 4 * (w + parts + bias);
      if (p.bytes > s.device.shared_bytes) continue;
      const int64_t product = kProduct + kHeld * p.held + kPart * split + (blocks > 1 ? kTeam + kWay : 0);
      best.take({p, divide_up(teams, at_once) * product});
    }
  }
  return best;
}

// Whether one step backward takes less by the two launches of SingleBackward, whose products are plain
// multiply-adds, than by thirteen, among them torch's products. A multiprocessor makes 128 multiply-adds a
// cycle in float, of which half are reckoned with.
bool single_takes_less(const Shape& s) {
  constexpr int64_t kMostRows = 64;  // a thread adds them up one after the other
  if (s.B > kMostRows) return false;
  const int64_t rows = divide_up(s.B, kSingleTile) * kSingleTile;
  const int64_t multiply_adds = 2 * rows * facts_of(s.mode).gates * s.H * (s.inputs + s.H);
  return multiply_adds <= 10 * kLaunch * s.device.multiprocessors * (s.bytes == 8 ? 32 : 64);
}

// Whether a layer with a projection is one without, to its kernel (ops/cuda_folded.h): that takes some thirty
// launches more, or of TF32, whose products are of floats in two parts, eighty; a launch a step takes two in
// each. A row that begins anew in the middle cannot be.
bool folds(const Shape& s) {
  const int64_t least_steps = s.bytes == 2 ? 16 : 40;
  return !s.lengths && !s.resets && (s.steps == 0 || s.steps >= least_steps);
}

// A call of one step, of as many rows as one tile has, is a launch that reads everything as it is; backward
// two launches (see single_takes_less). Of so many rows that teams would take longer each step is a launch.
// Both directions of a layer run side by side where a team is no grid: however few clusters there are at
// once, those of both in one row take no longer than two rows.
ResidentPlan plan_of(const Shape& s, bool only_resident) {
  const bool matrix = s.bytes == 2 || (s.bytes == 4 && s.tf32);
  const bool few = s.B <= (matrix ? kSingleMatrixRows : kSingleRows);
  if (s.steps == 1 && (s.backward ? single_takes_less(s) : few) && !s.lengths && !s.projected)
    return kSingleStep;
  if (!matrix || s.device.capability < 80 || (s.projected && !folds(s))) return stepwise_plan(s);
  Shape side_by_side = s;
  Weighed best = resident_plan(s);
  if (!is_resident(best.plan) && s.directions > 1) {
    side_by_side.directions = 1;
    best = resident_plan(side_by_side);
  }
  if (!is_resident(best.plan)) return stepwise_plan(s);
  // with a projection a step is two launches
  const bool less = s.projected || best.cycles <= side_by_side.directions * cycles_of_step(s).cycles;
  return only_resident || less ? best.plan : stepwise_plan(s);
}

}  // namespace

ResidentPlan stepwise_plan(const Shape& s) {
  ResidentPlan p = kOneLaunchAStep;
  const bool matrix = s.bytes == 2 || (s.bytes == 4 && s.tf32);
  const int split = matrix && !s.projected ? cycles_of_step(s).split : 0;
  if (split > 0) p.blocks = split, p.warps = kBlockWarps, p.team = split > 1 ? Team::kCluster : Team::kBlock;
  return p;
}

ResidentPlan make_plan(const Shape& s) { return plan_of(s, /*only_resident=*/false); }

int block_split(int64_t units, int sums, int64_t rows, int64_t bytes, const Device& device) {
  return cycles_of_step(units, sums, rows, bytes, device).split;
}

bool two_at_once(const ResidentPlan& plan, int64_t batch, const Device& device) {
  // of a grid all blocks must run at once, and whether two such launches do no GPU has been asked
  if (!is_resident(plan) || plan.team == Team::kGrid) return false;
  const int64_t at_once = plan.team == Team::kCluster ? device.clusters[plan.blocks] : device.multiprocessors;
  return 2 * divide_up(batch, kBatch * plan.batches) <= at_once;
}

// Before the one launch the weights are gathered, by one for each layer and more.
ResidentPlan make_deep_plan(const DeepShape& s) {
  const Weighed best = deep_plan(s);
  const int64_t layers = s.depth * (s.steps ? s.steps : int64_t{1} << 20), before = 2 + 2 * s.depth;
  const bool less = kLaunch * before + layers * best.cycles <= kLaunch * layers;
  return less ? best.plan : kOneLaunchAStep;
}

Device assumed_device(int capability, int multiprocessors, int64_t shared_bytes, int clusters_of_16) {
  Device device{capability, multiprocessors, shared_bytes, kPatience, {}};
  const int most = multiprocessors / kMostBlocks,
            whole = clusters_of_16 < 0 || clusters_of_16 > most ? most : clusters_of_16;
  for (int n = 1; n <= kMostBlocks && capability >= 90; ++n) {
    device.clusters[n] = whole * (kMostBlocks / n);
    for (int rest = multiprocessors - whole * kMostBlocks; rest > 0; rest -= kMostBlocks - 1)
      device.clusters[n] += (rest < kMostBlocks ? rest : kMostBlocks - 1) / n;
  }
  return device;
}

void set_device(int capability, int multiprocessors, int clusters_of_16) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().device = assumed_device(capability, multiprocessors, 0, clusters_of_16);
}

Device planned_device(const Device& real) {
  Device device;
  {
    const std::lock_guard<std::mutex> lock(state().mutex);
    device = state().device;
  }
  if (device.capability == 0) return real;
  const auto check = [](const char* what, int asked, int there) {
    if (asked > there)
      throw std::runtime_error("set_cuda_device: " + std::to_string(asked) + " is asked for as the " + what +
                               ", this GPU has " + std::to_string(there));
  };
  check("compute capability (10 times major plus minor)", device.capability, real.capability);
  check("multiprocessors", device.multiprocessors, real.multiprocessors);
  device.shared_bytes = real.shared_bytes, device.patience = real.patience;
  for (int n = 1; n <= kMostBlocks; ++n)
    if (device.clusters[n] > real.clusters[n]) device.clusters[n] = real.clusters[n];
  return device;
}

void set_kernel(const std::string& name) { forced().store(parse(name.c_str())); }

void set_last_run(const char* op, const ResidentPlan& plan) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().last = {op, plan};
}

LastRun last_run() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  return state().last;
}

const char* kernel_name(const ResidentPlan& plan) {
  return plan.single ? kSingleName : kNames[is_resident(plan) ? kResident : kStepwise];
}

const char* team_name(const ResidentPlan& plan) {
  constexpr const char* names[] = {"block", "cluster", "grid"};
  return names[static_cast<int>(plan.team)];
}

std::string forced_kernel() { return kNames[forced().load()]; }

ResidentPlan choose_plan(const Shape& shape) {
  const Forced now = forced().load();
  Shape with_tiles = shape;
  if (now == kResident) with_tiles.steps = 0;
  const ResidentPlan plan = now == kStepwise ? stepwise_plan(shape) : plan_of(with_tiles, now == kResident);
  if (now == kResident && !is_resident(plan))
    throw std::runtime_error(
        "the resident CUDA kernel is forced, but it takes layers of bfloat16, float16 or (where TF32 is "
        "allowed) float32, with a projection only without lengths and resets, and no wider and with no "
        "larger a batch than the device's registers and shared memory hold");
  return plan;
}

ResidentPlan choose_plan(const DeepShape& shape) {
  const Forced now = forced().load();
  if (now == kFree) return make_deep_plan(shape);
  const ResidentPlan plan = now == kStepwise ? kOneLaunchAStep : deep_plan(shape).plan;
  if (now == kResident && !is_resident(plan))
    throw std::runtime_error(
        "the resident CUDA kernel is forced, but it takes a deep transition of bfloat16, float16 or (where "
        "torch's products are TF32) float32, of up to " +
        std::to_string(kMostDeep) + " layers whose weights the device's shared memory holds");
  return plan;
}

}  // namespace rnnfast::cuda
