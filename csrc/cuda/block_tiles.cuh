// Products of many rows with W: the tasks of tiles.cuh by tiles that are a block's, from shared memory, where
// a number of W or of a row is read once for many sums. A cluster shares out the numbers of a sum where there
// are fewer tiles than multiprocessors. For rows of the same dtype as W.
#pragma once
#include "cuda/tiles.cuh"

namespace rnnfast::cuda {

constexpr int kBlockThreads = kBlockWarps * kLanes;
constexpr int kStages = 4;  // of what is read: one is multiplied while the others are on their way
constexpr int kStageChunks = 4, kStageWords = 4 * kStageChunks;  // of each row
constexpr int kAtOnce = 4;  // cells of a thread whose numbers are asked for at the same time

template <class Task>
struct BlockTiles {
  Task task;
  int split;  // blocks of a cluster, each with a part of every sum of the same tile
};

// The 16 bytes of a row in a stage, so placed that any 8 rows' (from a multiple of 8 on) lie in all banks
RNNFAST_INLINE int chunk_place(int row, int chunk) { return row * kStageChunks + (chunk ^ (row / 2 % 4)); }

template <class Task>
struct BlockThread {
  typedef typename Task::W W;
  typedef typename Task::A A;
  static_assert(sizeof(typename Task::R) == sizeof(W) && kParts<Task> == 1);
  static constexpr int kUnits = block_units(Task::kSums), kRowsOfW = kUnits * Task::kSums;
  static constexpr int kNumbers = kStageWords * kWord<W>;  // of a row in a stage
  static constexpr int kAll = kRowsOfW + kBlockRows, kOfStage = kAll * kStageChunks;
  static constexpr int kCopies = (kOfStage + kBlockThreads - 1) / kBlockThreads;
  static constexpr int kOwn = kRowsOfW / 32;  // times 16 rows of W, and 32 of the batch: a warp's sums
  static constexpr int kStageBytes = kStages * kOfStage * 16;
  // From the sums of a row of the batch to those of the next, in shared memory: they stand one after the
  // other, so that another block's come as whole segments, and a warp that leaves some meets each bank once.
  static constexpr int kSumStride = kRowsOfW + 4;
  static constexpr int kSumBytes = kBlockRows * kSumStride * static_cast<int>(sizeof(A));
  static constexpr int kBytes = kStageBytes > kSumBytes ? kStageBytes : kSumBytes;

  const Task& task;
  const int split;
  const int thread = thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  const int half = warp % 2, quarter = warp / 2;  // of the rows of W, and of those of the batch
  const int rank = cluster_rank();
  const int units = static_cast<int>(task.units()), rows = static_cast<int>(task.rows());
  const int K = static_cast<int>(task.length());
  const int groups = (units + kUnits - 1) / kUnits, tile = static_cast<int>(block_index()) / split;
  const int group = tile % groups * kUnits, first = tile / groups * kBlockRows;

  // this block's part of a sum, in stages; and what is left of it from this thread's first number on
  const int all = (K + kNumbers - 1) / kNumbers, begin = all * rank / split;
  const int stages = all * (rank + 1) / split - begin;
  const int left = K - begin * kNumbers - thread % kStageChunks * Chunk<W>::kNumbers;

  // where the i-th stage of this block stands
  RNNFAST_INLINE Chunk<W>* stage(int i) const { return shared_memory<Chunk<W>>() + i % kStages * kOfStage; }

  // Row r of a stage, from this thread's numbers on: the gates' rows of W, one after the other, then those of
  // the batch; null where there is none, so that its sums are nobody's
  RNNFAST_INLINE const W* source(int r) const {
    const int k = begin * kNumbers + thread % kStageChunks * Chunk<W>::kNumbers;
    if (r < kRowsOfW) return task.weights(least(group + r % kUnits, units - 1), r / kUnits) + k;
    const int b = first + r - kRowsOfW;
    return r < kAll && b < rows ? task.row(b) + k : nullptr;
  }
  RNNFAST_INLINE static int row_of_copy(int i) {
    return thread_index() / kStageChunks + i * (kBlockThreads / kStageChunks);
  }
  // of the i-th stage the rows of W, or the others, or both
  RNNFAST_INLINE void copy(const W* const (&from)[kCopies], int i, bool of_w, bool of_rows) const {
    const bool present = i * kNumbers < left;
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      const int r = row_of_copy(j);
      if (from[j] && (r < kRowsOfW ? of_w : of_rows))
        copy_async(stage(i) + chunk_place(r, thread % kStageChunks), from[j] + i * kNumbers, present);
    }
  }

  // sum += W times the rows of a stage; two instructions of a sum
  RNNFAST_INLINE void multiply(int of, A (&sum)[kOwn][4][4]) const {
    const Chunk<W>* const here = stage(of);
#pragma unroll
    for (int k = 0; k < kStageChunks; k += 2) {
      uint32_t b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = kRowsOfW + quarter * 32 + n * 16 + lane / 16 * 8 + lane % 8;
        load_operands<W>(b[n], here + chunk_place(row, k + lane / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < kOwn; ++m) {
        uint32_t a[4];
        load_operands<W>(a, here + chunk_place(half * (kRowsOfW / 2) + m * 16 + lane % 16, k + lane / 16));
#pragma unroll
        for (int n = 0; n < 4; ++n)
          multiply_tile<W>(sum[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }

  RNNFAST_INLINE static int sum_place(int row, int column) { return column * kSumStride + row; }
  RNNFAST_INLINE void leave(const A (&sum)[kOwn][4][4]) const {
    A* const sums = shared_memory<A>();
#pragma unroll
    for (int m = 0; m < kOwn; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = half * (kRowsOfW / 2) + m * 16 + i / 2 * 8 + lane / 4;
          sums[sum_place(row, quarter * 32 + n * 8 + lane % 4 * 2 + i % 2)] = sum[m][n][i];
        }
  }
  RNNFAST_INLINE void meet() const {
    if (split > 1)
      cluster_barrier();
    else
      block_barrier();
  }

  // This block's share of the cells, whose sums are added up in the order of the blocks
  RNNFAST_INLINE void finish() const {
    const int share = kBlockRows / split, cells = kUnits * share;
    for (int cell = thread; cell < cells; cell += kAtOnce * kBlockThreads) {
      typename Task::Given given[kAtOnce];
      const auto unit_of = [&](int i) { return least(cell + i * kBlockThreads, cells - 1) % kUnits; };
      const auto column_of = [&](int i) {
        return rank * share + least(cell + i * kBlockThreads, cells - 1) / kUnits;
      };
      const auto row_of = [&](int i) { return first + column_of(i); };
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        given[i] = task.given(least(group + unit_of(i), units - 1), least(row_of(i), rows - 1));
      A sums[kAtOnce][Task::kSums];
      const auto each_sum = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int j = 0; j < Task::kSums; ++j)
            f(sums[i][j], shared_memory<A>() + sum_place(j * kUnits + unit_of(i), column_of(i)));
      };
      if (split == 1) {
        each_sum([](A& sum, const A* place) { sum = *place; });
      } else {
        each_sum([](A& sum, const A* place) { sum = load_of_block(place, 0); });
#pragma unroll 1
        for (int other = 1; other < split; ++other)
          each_sum([&](A& sum, const A* place) { sum += load_of_block(place, other); });
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int unit = group + unit_of(i), b = row_of(i);
        if (cell + i * kBlockThreads < cells && unit < units && b < rows)
          task.finish(sums[i], given[i], unit, b);
      }
    }
  }
};

template <class Task>
RNNFAST_KERNEL void __launch_bounds__(kBlockThreads, 2) run_block_tiles(BlockTiles<Task> tiles) {
  typedef BlockThread<Task> Thread;
  const Thread my{tiles.task, tiles.split};
  let_next_begin();

  const typename Thread::W* from[Thread::kCopies];
#pragma unroll
  for (int i = 0; i < Thread::kCopies; ++i) from[i] = my.source(Thread::row_of_copy(i));
  for (int i = 0; i < kStages - 1; ++i)
    if (i < my.stages) my.copy(from, i, true, false);
  wait_for_previous();
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < my.stages) my.copy(from, i, false, true);
    commit_copies();
  }
  typename Thread::A sum[Thread::kOwn][4][4] = {};
  const bool has_rows = my.first + my.quarter * 32 < my.rows;
  for (int i = 0; i < my.stages; ++i) {
    wait_for_copies<kStages - 2>();
    block_barrier();
    if (i + kStages - 1 < my.stages) my.copy(from, i + kStages - 1, true, true);
    commit_copies();
    if (has_rows) my.multiply(i, sum);
  }
  block_barrier();  // what was read nobody reads any more
  my.leave(sum);
  my.meet();
  my.finish();
  if (my.split > 1) cluster_barrier();  // others may still read this block's sums
}

template <class Task>
const char* launch_block_tiles(const Task& task, int split, bool follows, void* stream) {
  typedef BlockThread<Task> Thread;
  const int64_t blocks = divide_up(task.units(), Thread::kUnits) * divide_up(task.rows(), kBlockRows) * split;
  return launch_blocks(run_block_tiles<Task>, blocks, kBlockThreads, Thread::kBytes, follows, stream,
                       BlockTiles<Task>{task, split}, split);
}

}  // namespace rnnfast::cuda
