// Whole sequences in one launch: W stays in the registers of the threads that use it, as operands of the
// matrix instruction, and only h (backward: dL/d(pre-activations)) travels, through shared memory. A cluster
// of blocks, or one, works on 8 rows of the batch, the columns of the instruction; the units are shared out
// among its warps. Each thread ends up with all gates of a unit for two rows, and does their cells.
#pragma once
#include "cuda/cells.cuh"
#include "cuda/kernels.h"

namespace rnnfast::cuda {

constexpr int kBatch = 8;      // rows of a cluster
constexpr int kWarpUnits = 8;  // units of a warp, for each of its slots
constexpr int kSkew = 8;       // numbers between shared rows, so that a warp's loads meet all banks

// how many threads a block may have, so that W and what else a thread needs fit its registers
constexpr int most_threads(int tiles) { return tiles <= 8 ? 512 : 256; }

// Sums of a thread for each row: the gates of a unit, or two units of a cell with one gate
template <class Cell>
constexpr int kSlots = Cell::kGates == 1 ? 2 : 4;

// which gate's product with h goes to a slot, and which gate's with x; -1: none
template <class Cell>
RNNFAST_INLINE constexpr int hidden_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  if (Cell::kSlots == Cell::kGates) return slot < Cell::kGates ? slot : -1;
  return slot < Cell::kGates - 1 ? slot : slot == Cell::kSlots - 1 ? Cell::kGates - 1 : -1;
}
template <class Cell>
RNNFAST_INLINE constexpr int input_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  return slot < Cell::kGates ? slot : -1;
}

// Everything that the threads of a cluster have written before is there after it.
RNNFAST_INLINE void meet(int cluster) {
  if (cluster > 1)
    cluster_barrier();
  else
    block_barrier();
}

// to this place in the shared memory of every block of the cluster
template <class E>
RNNFAST_INLINE void broadcast(E* place, E value, int cluster) {
  if (cluster == 1)
    *place = value;
  else
    for (int rank = 0; rank < cluster; ++rank) *peer(place, rank) = value;
}

template <class Cell, class E, int kTiles>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_forward(ResidentForward<E> p) {
  typedef typename ComputeType<E>::type A;
  constexpr int G = Cell::kGates, S = Cell::kSlots;
  constexpr int kSums = kSlots<Cell>, kBlocks = G == 1 ? kSums : 1;  // one gate: each slot is another unit
  constexpr int ld = kTiles * kTile + kSkew;
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
  const int column = lane % 4 * 2, row = lane / 4;  // of this thread's sums
  const int64_t first = block_index() / p.cluster * kBatch;
  const int rank = static_cast<int>(block_index() % p.cluster);
  const int base = (rank * warps + warp) * kWarpUnits * kBlocks + row;
  const auto unit_of = [&](int slot) { return base + (G == 1 ? slot * kWarpUnits : 0); };
  E* const shared = shared_memory<E>();  // [2, kBatch, ld]: a step reads one h and writes the other
  // [warps, kSums, kWarpUnits], from this thread's on: registers are for W
  A* const bias = reinterpret_cast<A*>(shared + 2 * kBatch * ld) + warp * kSums * kWarpUnits + row;

  uint32_t w[kSums / 2][kTiles][4];
#pragma unroll
  for (int slot = 0; slot < kSums; ++slot) {
    const int unit = unit_of(slot);
    const int hidden = hidden_gate<Cell>(slot), input = input_gate<Cell>(slot);
    // a unit beyond the last computes what nobody stores
    const E* from = p.w_hh + (hidden * p.H + least<int64_t>(unit, p.H - 1)) * p.ldw + column;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int at = slot % 2 + 2 * high;
        w[slot / 2][t][at] = hidden >= 0 ? load_pair(from + t * kTile + high * 8) : 0;
      }
    A sum = 0;
    if (unit < p.H && input >= 0 && p.b_ih) sum += widened(p.b_ih[input * p.H + unit]);
    if (unit < p.H && hidden >= 0 && p.b_hh) sum += widened(p.b_hh[hidden * p.H + unit]);
    if (lane % 4 == 0) bias[slot * kWarpUnits] = sum;
  }

  for (int i = thread_index(); i < 2 * kBatch * ld; i += block_size()) {
    const int64_t b = first + i / ld, k = i % ld;
    narrow(i < kBatch * ld && b < p.batch && k < p.H ? p.h[b * p.Hp + k] : A(0), shared[i]);
  }
  A h[kBlocks][2], c[kBlocks][2];
  bool mine[kBlocks][2];
#pragma unroll
  for (int k = 0; k < kBlocks; ++k)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int64_t b = first + column + n;
      const int unit = unit_of(k);
      mine[k][n] = b < p.batch && unit < p.H;
      h[k][n] = Cell::kBlends && mine[k][n] ? p.h[b * p.Hp + unit] : A(0);
      c[k][n] = Cell::kHasCell && mine[k][n] ? p.c[b * p.Hp + unit] : A(0);
    }

  // what x adds to the slots in the next step
  A next[kSums][2];
  const A* input = p.input + (p.input_row + first + column) * G * p.H;
  const auto each_input = [&](const auto& f) {
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int gate = input_gate<Cell>(slot);
        if (mine[G == 1 ? slot : 0][n] && gate >= 0)
          f(input + (n * G + gate) * p.H + unit_of(slot), next[slot][n]);
        else
          next[slot][n] = 0;
      }
  };
  const auto load_input = [&] {
    each_input([](const A* from, A& to) { to = *from; });
    input += p.input_step * G * p.H;
  };
  load_input();
  meet(p.cluster);

  int reads = 0;  // where in `shared` this step's h begins
  for (int s = 0; s < p.steps; ++s) {
    A sum[kSums / 2][4];
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n) sum[slot / 2][slot % 2 * 2 + n] = bias[slot * kWarpUnits] + next[slot][n];
    // into the cache only: while the product runs, registers are for W
    if (s + 1 < p.steps) each_input([](const A* from, A&) { prefetch(from); });
    const E* const from = shared + reads + row * ld + column;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint32_t low = load_pair(from + t * kTile), high = load_pair(from + t * kTile + 8);
#pragma unroll
      for (int i = 0; i < kSums / 2; ++i) multiply_tile<E>(sum[i], w[i][t], low, high);
    }
    if (s + 1 < p.steps) load_input();
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        A state[S];
#pragma unroll
        for (int j = 0; j < S; ++j) {
          const int slot = G == 1 ? k : j;
          state[j] = sum[slot / 2][slot % 2 * 2 + n];
        }
        const A value = Cell::forward(state, c[k][n], h[k][n]);
        if (!mine[k][n]) continue;
        h[k][n] = value;
        const int unit = unit_of(k);
        const int64_t at = p.row + s * p.row_step + (first + column + n) * p.stride;
        E stored;
        narrow(value, stored);
        broadcast(shared + kBatch * ld - reads + (column + n) * ld + unit, stored, p.cluster);
        p.y[at * p.ldy + unit] = stored;
        if (p.gates) {
#pragma unroll
          for (int j = 0; j < S; ++j) p.gates[(at * S + j) * p.Hp + unit] = state[j];
        }
        if (Cell::kHasCell && p.cells) p.cells[at * p.Hp + unit] = c[k][n];
      }
    meet(p.cluster);
    reads = kBatch * ld - reads;
  }
#pragma unroll
  for (int k = 0; k < kBlocks; ++k)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!mine[k][n]) continue;
      const int64_t at = (first + column + n) * p.Hp + unit_of(k);
      // only a cell that blends h has it unrounded
      p.h[at] = Cell::kBlends ? h[k][n] : A(widened(shared[reads + (column + n) * ld + unit_of(k)]));
      if (Cell::kHasCell) p.c[at] = c[k][n];
    }
}

// dL/dh of 16 units is made by two warps, each over half of the sum; then each has the whole of 8 units.
template <class Cell, class E, int kTiles>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_backward(ResidentBackward<E> p) {
  typedef typename ComputeType<E>::type A;
  constexpr int G = Cell::kGates, S = Cell::kSlots;
  constexpr int kHalf = G * kTiles / 2;  // instructions of a warp
  constexpr int ld = G * kTiles * kTile + kSkew;
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
  const int column = lane % 4 * 2, row = lane / 4, half = warp % 2;
  const int64_t first = block_index() / p.cluster * kBatch, rank = block_index() % p.cluster;
  const int64_t base = (rank * warps + warp - half) * kWarpUnits + row;
  const int64_t unit = base + half * kWarpUnits;

  uint32_t w[kHalf][4];
#pragma unroll
  for (int t = 0; t < kHalf; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t of = base + i % 2 * kWarpUnits, k = (half * kHalf + t) * kTile + column + i / 2 * 8;
      w[t][i] = of < p.H && k < p.Kp ? load_pair(p.w_hh_t + of * p.Kp + k) : 0;
    }

  E* const shared = shared_memory<E>();  // [2, kBatch, ld]: da of the later step and of this one
  A* const halves = reinterpret_cast<A*>(shared + 2 * kBatch * ld);  // [threads, 2]
  for (int i = thread_index(); i < 2 * kBatch * ld; i += block_size()) narrow(A(0), shared[i]);

  bool mine[2];
  A dh[2], dc[2], direct[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int64_t b = first + column + n;
    mine[n] = b < p.batch && unit < p.H;
    dh[n] = mine[n] && p.dhn ? p.dhn[b * p.H + unit] : A(0);
    dc[n] = mine[n] && p.dcn ? p.dcn[b * p.H + unit] : A(0);
    direct[n] = 0;
  }

  // what was saved of step s
  struct Saved {
    A state[S], c, before, dy;
  } next[2] = {};
  const auto load_saved = [&](int64_t s) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!mine[n]) continue;
      const int64_t b = first + column + n, at = p.row + s * p.row_step + b * p.stride;
      Saved& of = next[n];
#pragma unroll
      for (int j = 0; j < S; ++j) of.state[j] = p.gates[(at * S + j) * p.Hp + unit];
      of.c = Cell::kHasCell ? p.cells[at * p.Hp + unit] : A(0);
      if (Cell::kBlends)
        of.before = s == 0 ? p.h0[b * p.H + unit] : A(widened(p.y[(at - p.row_step) * p.ldy + unit]));
      of.dy = p.dy ? A(widened(p.dy[at * p.ldy + unit])) : A(0);
    }
  };
  load_saved(p.steps - 1);
  meet(p.cluster);

  // dL/dh += da W_hh, from the da that `from` holds
  const auto carry = [&](const E* from) {
    A sum[2][4] = {};
    from += row * ld + half * kHalf * kTile + column;
#pragma unroll
    for (int t = 0; t < kHalf; ++t)  // two chains, for the instruction's latency
      multiply_tile<E>(sum[t % 2], w[t], load_pair(from + t * kTile), load_pair(from + t * kTile + 8));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const A low = sum[0][n] + sum[1][n], high = sum[0][2 + n] + sum[1][2 + n];
      halves[thread_index() * 2 + n] = half ? low : high;
      dh[n] = half ? high : low;
    }
    block_barrier();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const A other = halves[(thread_index() ^ kLanes) * 2 + n];
      dh[n] = (half ? other + dh[n] : dh[n] + other) + direct[n];
    }
  };

  for (int64_t s = p.steps - 1; s >= 0; --s) {
    Saved saved[2] = {next[0], next[1]};
    if (s > 0) load_saved(s - 1);
    if (s + 1 < p.steps) carry(shared + ((s + 1) & 1) * kBatch * ld);
    E* const writes = shared + (s & 1) * kBatch * ld;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!mine[n]) continue;
      const Saved& of = saved[n];
      const int64_t b = first + column + n, at = p.row + s * p.row_step + b * p.stride;
      const A c_before = !Cell::kHasCell ? A(0) : s == 0 ? p.c0[b * p.H + unit] : next[n].c;
      A da[G], dx[G];
      direct[n] = Cell::backward(of.state, of.before, c_before, of.c, dh[n] + of.dy, dc[n], da, dx);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        E stored;
        narrow(da[g], stored);
        broadcast(writes + (column + n) * ld + g * p.H + unit, stored, p.cluster);
        p.da[at * p.Kp + g * p.H + unit] = stored;
        if (S > G) narrow(dx[g], p.dx[at * p.Kp + g * p.H + unit]);
      }
    }
    meet(p.cluster);
  }
  carry(shared);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (!mine[n]) continue;
    p.dh0[(first + column + n) * p.H + unit] = dh[n];
    if (Cell::kHasCell) p.dc0[(first + column + n) * p.H + unit] = dc[n];
  }
}

// f(a kernel's tiles as a constant)
template <class F>
const char* with_tiles(int tiles, const F& f) {
  switch (tiles) {
    case 4:
      return f(std::integral_constant<int, 4>());
    case 8:
      return f(std::integral_constant<int, 8>());
    case 16:
      return f(std::integral_constant<int, 16>());
  }
  return "no resident kernel is that wide";
}

template <class E>
const char* resident_forward(Mode mode, const ResidentForward<E>& layer, const ResidentPlan& plan,
                             void* stream) {
  const int64_t clusters = divide_up(layer.batch, kBatch);
  return with_cell(mode, [&](auto cell) {
    return with_tiles(plan.tiles, [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      typedef decltype(cell) Cell;
      const size_t bytes = sizeof(E) * 2 * kBatch * (kTiles * kTile + kSkew) +
                           sizeof(typename ComputeType<E>::type) * plan.warps * kSlots<Cell> * kWarpUnits;
      return launch_clusters(resident_forward<Cell, E, kTiles>, clusters, plan.cluster, plan.warps * kLanes,
                             bytes, stream, layer);
    });
  });
}

template <class E>
const char* resident_backward(Mode mode, const ResidentBackward<E>& layer, const ResidentPlan& plan,
                              void* stream) {
  const int64_t clusters = divide_up(layer.batch, kBatch);
  return with_cell(mode, [&](auto cell) {
    return with_tiles(plan.tiles, [&](auto tiles) {
      typedef decltype(cell) Cell;
      constexpr int kTiles = decltype(tiles)::value;
      const int threads = plan.warps * kLanes;
      const size_t bytes = sizeof(E) * 2 * kBatch * (Cell::kGates * kTiles * kTile + kSkew) +
                           sizeof(typename ComputeType<E>::type) * 2 * threads;
      return launch_clusters(resident_backward<Cell, E, kTiles>, clusters, plan.cluster, threads, bytes,
                             stream, layer);
    });
  });
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT(E)                                                                           \
  template const char* resident_forward(Mode, const ResidentForward<E>&, const ResidentPlan&, void*); \
  template const char* resident_backward(Mode, const ResidentBackward<E>&, const ResidentPlan&, void*);
