// Which of the kernels that make tiles of sums takes a task.
#pragma once
#include "cuda/block_tiles.cuh"
#include "cuda/plan.h"

namespace rnnfast::cuda {

// `follows`: the launch before it in the stream was one of these, and did not make W; see launch_blocks.
template <class Task>
const char* launch_tiles(const Task& task, bool follows, void* stream) {
  typedef typename Task::W W;
  if constexpr (sizeof(W) <= 4) {
    if (sizeof(W) == 2 || task.p.tf32) {
      if constexpr (requires { task.of_many_rows(); }) {
        const int64_t bytes = task.length() * static_cast<int64_t>(sizeof(W));
        const Device device = planned_device(current_device());
        const int split = block_split(task.units(), Task::kSums, task.rows(), bytes, device);
        if (split > 0) return launch_block_tiles(task.of_many_rows(), split, follows, stream);
      }
      const int64_t blocks =
          divide_up(task.units(), kMatrixUnits<Task>) * divide_up(task.rows(), kMatrixTiles * 8);
      int64_t length = 0;
      for (int i = 0; i < kParts<Task>; ++i) length = most(length, PartOf<Task>{task, i}.length());
      const int64_t pieces = divide_up(length, 4 * Chunk<W>::kNumbers);
      const int warps = static_cast<int>(pieces == 0 ? 1 : least<int64_t>(pieces, kMatrixWarps));
      const size_t bytes = sizeof(float) * warps * kMatrixSlots<Task> * 8 * kMatrixStride;
      return launch_blocks(run_matrix_tiles<Task>, blocks, warps * kLanes, bytes, follows, stream, task);
    }
  }
  if constexpr (sizeof(W) == 2) {
    return nullptr;
  } else {
    const int64_t warps =
        divide_up(task.units(), Task::kSums == 1 ? kColumns : 1) * divide_up(task.rows(), kRows);
    return launch_blocks(run_tiles<Task>, divide_up(warps, kWarps), kWarps * kLanes, 0, follows, stream,
                         task);
  }
}

}  // namespace rnnfast::cuda
