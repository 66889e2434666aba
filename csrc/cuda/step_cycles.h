// What a launch a step takes, reckoned for plan.cpp.
#pragma once
#include "cells/facts.h"
#include "cuda/plan.h"

namespace rnnfast::cuda {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t kLaunch = 4400;  // cycles until the next one runs, an estimate

// A launch a step, as tiles.cuh makes its products or (split > 0) block_tiles.cuh, a tile by so many blocks:
// `rows` of W and of the batch, `bytes` of each, are read for each block from the second cache, which gives a
// multiprocessor 24 bytes a cycle while all read; before the first block some time passes, and `cells` after
// each, in which the blocks of a cluster give each other sums, at 14 bytes a cycle. All of these are
// estimates.
inline int64_t cycles_of_tiles(int64_t blocks, int64_t rows, int64_t bytes, int64_t cells,
                               const Device& device) {
  return 1500 + divide_up(blocks, device.multiprocessors) * (rows * bytes / 24 + cells);
}
struct StepCycles {
  int split;
  int64_t cycles;
};
inline StepCycles cycles_of_step(int64_t units, int64_t sums, int64_t rows, int64_t bytes,
                                 const Device& device) {
  constexpr int64_t kSmallRows = 32, kStageBytes = 64, kLeastStages = 4, kMostParts = 8;
  const int64_t small_units = sums == 1 ? 16 : 8, small_rows = least(rows, kSmallRows);
  const int64_t small = divide_up(units, small_units) * divide_up(rows, kSmallRows);
  StepCycles best{0, cycles_of_tiles(small, small_units * sums + small_rows, bytes, 0, device)};
  if (device.capability < 80 || rows <= kSmallRows) return best;  // else W is read once either way
  const int64_t wide = block_units(static_cast<int>(sums)), read = wide * sums + least(rows, kBlockRows);
  const int64_t tiles = divide_up(units, wide) * divide_up(rows, kBlockRows);
  for (int split = 1; split <= kMostParts; split *= 2) {
    if (split > 1 && (device.clusters[split] == 0 || bytes < split * kLeastStages * kStageBytes)) break;
    const int64_t sums_of_others = kBlockRows * wide * sums * 4 * (split - 1) / split;
    const int64_t cells = 1000 + sums_of_others / 14;
    const int64_t cycles = cycles_of_tiles(tiles * split, read, bytes / split, cells, device);
    if (cycles < best.cycles) best = {split, cycles};
  }
  return best;
}

// The same of a layer, whose largest step may be of so many rows
inline StepCycles cycles_of_step(const Shape& s) {
  const int64_t gates = facts_of(s.mode).gates, sums = s.backward ? 1 : gates;
  const int64_t numbers = divide_up(s.backward ? gates * s.H : s.H, kPad) * kPad;
  const StepCycles found = cycles_of_step(s.H, sums, s.B, numbers * s.bytes, s.device);
  return {found.split, found.cycles < kLaunch ? kLaunch : found.cycles};
}

}  // namespace rnnfast::cuda
