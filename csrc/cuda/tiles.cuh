// Products of a few rows with W, and what is done with each sum: the one kernel of all stepwise launches.
// A warp makes a tile of 4 columns (rows of W) times 8 rows of the batch: its lanes share out the sum over K,
// so that both operands are read 16 bytes a lane from consecutive addresses, and at the end each lane holds
// one of the 32 sums. What it does with it is the task's.
#pragma once
#include "cuda/cells.cuh"

namespace rnnfast::cuda {

constexpr int kColumns = 4, kRows = kLanes / kColumns;  // of a tile
constexpr int kWarps = 4;                               // of a block

// sum[0] = what all lanes have in sum[lane], for 2 kWidth sums: each exchange adds up two halves of the sums
// in two halves of the lanes
template <int kWidth, class A>
RNNFAST_INLINE void fold(A* sum, int lane) {
  const bool upper = lane & kWidth;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const A kept = upper ? sum[i + kWidth] : sum[i], given = upper ? sum[i] : sum[i + kWidth];
    sum[i] = kept + shuffle_xor(given, kWidth);
  }
  if constexpr (kWidth > 1) fold<kWidth / 2>(sum, lane);
}

// The sums over k of w[column][k] row[r][k], of lane column * kRows + r. K is a multiple of a chunk.
template <class A, class W, class R>
RNNFAST_INLINE A tile_sums(const W* const* w, const R* const* row, int64_t K, int lane) {
  constexpr int kChunk = Chunk<W>::kNumbers, kPerRow = Chunk<R>::kNumbers;
  A sum[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) sum[i] = 0;
  for (int64_t k = lane * kChunk; k < K; k += kLanes * kChunk) {
    Chunk<W> column[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) column[c] = load_chunk(w[c] + k);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int part = 0; part < kChunk; part += kPerRow) {
        const Chunk<R> numbers = load_chunk(row[r] + k + part);
#pragma unroll
        for (int i = 0; i < kPerRow; ++i)
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            sum[c * kRows + r] = fma(A(widened(column[c].number[part + i])), A(widened(numbers.number[i])),
                                     sum[c * kRows + r]);
      }
    }
  }
  fold<kLanes / 2>(sum, lane);
  return sum[0];
}

// Every tile of a task: Task::groups() times Task::rows() / kRows of them.
template <class Task>
RNNFAST_KERNEL void run_tiles(Task task) {
  const int lane = thread_index() % kLanes;
  const int64_t warp = block_index() * kWarps + thread_index() / kLanes;
  const int64_t group = warp % task.groups(), first = warp / task.groups() * kRows, rows = task.rows();
  if (first >= rows) return;
  const typename Task::W* w[kColumns];
  const typename Task::R* row[kRows];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) w[c] = task.column(group, c);
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = task.row(least<int64_t>(first + r, rows - 1));
  const auto sum = tile_sums<typename Task::A>(w, row, task.length(), lane);
  task.finish(sum, group, first + lane % kRows, lane / kRows);
}

template <class Task>
const char* launch_tiles(const Task& task, void* stream) {
  const int64_t warps = task.groups() * divide_up(task.rows(), kRows);
  return launch(run_tiles<Task>, divide_up(warps, kWarps), kWarps * kLanes, stream, task);
}

}  // namespace rnnfast::cuda
