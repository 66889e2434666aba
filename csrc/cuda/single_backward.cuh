// The only step of a call, backward, with every gradient: a launch for the cells, and one for all products
// with what they leave. Nothing is turned, padded, converted or set to zero before.
#pragma once
#include "cuda/single.cuh"

namespace rnnfast::cuda {

// Of the products: a block makes 8 rows of dx or dh0, as wide as so many loads of 16 bytes, and its warps
// share out the rows of W; a thread makes so many rows of dW, as wide as one.
constexpr int kTurnedWarps = 16, kTurnedLoads = 2, kTurnedRows = 4;

// Where da of gate row k and row b of the batch stands, of so many gate rows in all
RNNFAST_INLINE int64_t turned(int64_t b, int64_t k, int64_t K) {
  return (b / kSingleTile * K + k) * kSingleTile + b % kSingleTile;
}

// What passes the cell (b, unit): da and dg of each gate, dc of the step before in `dcell`; returns the part
// of dL/dh0 that does not pass W_hh.
template <class Cell, class E, class A>
RNNFAST_INLINE A past_cell(const SingleBackward<E>& p, int64_t b, int64_t unit, A& dcell, A* da, A* dg) {
  constexpr int S = Cell::kSlots;
  A state[S], c{}, c_before{}, before{};
#pragma unroll
  for (int j = 0; j < S; ++j) state[j] = p.gates[(b * S + j) * p.Hp + unit];
  if (Cell::kHasCell) {
    c = p.cells[b * p.Hp + unit];
    c_before = number(cell_before(p, b), unit);
    dcell = number(p.dcn, b * p.H + unit) + number(p.dcs, b * p.ldc + unit);
  }
  if (Cell::kBlends) before = number(hidden_before(p, b), unit);
  const A dvalue = number(p.dhn, b * p.H + unit) + number(p.dy, b * p.ldy + unit);
  return Cell::backward(state, before, c_before, c, dvalue, dcell, da, dg);
}

// A gradient of the state before goes to h0 (or c0) or, of a row that began anew, to the state it began from.
template <class E, class A>
RNNFAST_INLINE void hand_on(A gradient, bool anew, E* of_state, A* of_reset, int64_t i) {
  if (of_state) narrow(anew ? A(0) : gradient, of_state[i]);
  if (of_reset) of_reset[i] = anew ? gradient : A(0);
}

// A thread for each unit of a row, and for those that fill up the last tile.
template <class Cell, class E>
struct SingleCells {
  SingleBackward<E> p;
  int64_t numbers;  // rows, a multiple of a tile, times units
};
template <class Cell, class E>
RNNFAST_KERNEL void run_single_cells(SingleCells<Cell, E> task) {
  typedef typename ComputeType<E>::type A;
  constexpr int G = Cell::kGates;
  const SingleBackward<E>& p = task.p;
  let_next_begin();
  wait_for_previous();
  const int64_t i = block_index() * block_size() + thread_index();
  if (i >= task.numbers) return;
  const int64_t b = i / p.H, unit = i % p.H;
  A da[G] = {}, dg[G] = {}, dcell{};
  if (b < p.B) {
    past_cell<Cell>(p, b, unit, dcell, da, dg);
    if (Cell::kHasCell) hand_on(dcell, begins_anew(p, b), p.dc0, p.dreset_c, i);
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t at = turned(b, g * p.H + unit, G * p.H);
    p.da[at] = da[g];
    if (Cell::kSlots > G) p.dg[at] = dg[g];
  }
}

// The products: blocks of dx, of dh0, and then of all weights and biases.
template <class Cell, class E>
struct SingleProducts {
  typedef typename ComputeType<E>::type A;
  static constexpr int G = Cell::kGates, kNumbers = Chunk<E>::kNumbers, kColumns = kTurnedLoads * kNumbers;
  enum Part { kOfInput, kOfHidden };

  SingleBackward<E> p;
  bool whole[2];                 // of each part: rows begin at multiples of 16 bytes
  int64_t of_input, of_hidden;   // blocks of dx, of dh0
  int64_t chunks_ih, chunks_hh;  // threads of a row of dW_ih, of dW_hh

  RNNFAST_BOTH int64_t gate_rows() const { return G * p.H; }
  RNNFAST_BOTH int64_t tiles() const { return divide_up(p.B, kSingleTile); }
  RNNFAST_BOTH int64_t weight_threads() const {
    return divide_up(gate_rows(), kTurnedRows) * (chunks_ih + chunks_hh);
  }
  RNNFAST_BOTH bool has_biases() const { return p.db_ih || p.db_hh; }

  RNNFAST_INLINE Chunk<E> load(const E* row, int64_t k, int64_t n, int part) const {
    return whole[part] && k < n ? load_chunk(row + k) : load_rest(row, k, n - k);
  }

  // dx or dh0 of 8 rows and kColumns columns, block `at` of its part: sum[r] = the sum over k of
  // da[k][r] W[k][column]
  RNNFAST_INLINE void states(int part, int64_t at) const {
    constexpr int kApart = kTurnedLoads, kLanesOfK = kLanes / kApart, kSums = kSingleTile * kNumbers;
    const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
    const int64_t K = gate_rows(), n = part == kOfInput ? p.I : p.H, tile = at % tiles();
    const int64_t first = at / tiles() * kColumns, column = first + lane % kApart * kNumbers;
    const E* const w = part == kOfInput ? p.w_ih : p.w_hh;
    const A* const d = (part == kOfInput ? p.dg : p.da) + tile * K * kSingleTile;
    A sum[kSums] = {};
#pragma unroll 2
    for (int64_t k = warp * kLanesOfK + lane / kApart; k < K; k += warps * kLanesOfK) {
      const Chunk<E> columns = load(w + k * n, column, n, part);
      constexpr int kOfChunk = Chunk<A>::kNumbers;
#pragma unroll
      for (int r = 0; r < kSingleTile; r += kOfChunk) {
        const Chunk<A> rows = load_chunk(d + k * kSingleTile + r);
#pragma unroll
        for (int j = 0; j < kOfChunk; ++j)
#pragma unroll
          for (int i = 0; i < kNumbers; ++i) {
            A& to = sum[(r + j) * kNumbers + i];
            to = fma(rows.number[j], A(widened(columns.number[i])), to);
          }
      }
    }
    // a lane is left with so many sums of one row, in the order of the lanes
    fold<kSums, kApart>(sum, lane);
    constexpr int kLeft = kSums / kLanesOfK;
    A* const parts = shared_memory<A>();
    const int half = lane / kApart % (kNumbers / kLeft), row = lane / kApart / (kNumbers / kLeft);
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
      parts[(warp * kSingleTile + row) * kColumns + lane % kApart * kNumbers + half * kLeft + i] = sum[i];
    block_barrier();
    for (int i = thread_index(); i < kSingleTile * kColumns; i += block_size()) {
      const int64_t b = tile * kSingleTile + i / kColumns, unit = first + i % kColumns;
      if (b >= p.B || unit >= n) continue;
      A all{};
      for (int other = 0; other < warps; ++other) all += parts[other * kSingleTile * kColumns + i];
      finish(part, all, b, unit);
    }
  }
  RNNFAST_INLINE void finish(int part, A sum, int64_t b, int64_t unit) const {
    if (part == kOfInput) {
      const int64_t at = b * p.I + unit;
      if (p.adds) sum += A(widened(p.dx[at]));
      return narrow(sum, p.dx[at]);
    }
    if (Cell::kBlends) {
      A da[G], dg[G], dcell{};
      sum += past_cell<Cell>(p, b, unit, dcell, da, dg);
    }
    hand_on(sum, begins_anew(p, b), p.dh0, p.dreset_h, b * p.H + unit);
  }

  // kTurnedRows rows of dW, 16 bytes of each: the sums over b of da[k][b] x[b][column]
  RNNFAST_INLINE void weights(int64_t thread) const {
    const int64_t chunks = chunks_ih + chunks_hh, K = gate_rows();
    const int64_t k = thread / chunks * kTurnedRows, chunk = thread % chunks;
    const int part = chunk < chunks_ih ? kOfInput : kOfHidden;
    const int64_t n = part == kOfInput ? p.I : p.H,
                  column = (part == kOfInput ? chunk : chunk - chunks_ih) * kNumbers;
    const A* const d = part == kOfInput ? p.dg : p.da;
    A sum[kTurnedRows][kNumbers] = {};
#pragma unroll 4
    for (int64_t b = 0; b < p.B; ++b) {
      const E* const from = part == kOfInput ? p.x + b * n : hidden_before(p, b);
      const Chunk<E> columns = from ? load(from, column, n, part) : Chunk<E>{};
#pragma unroll
      for (int j = 0; j < kTurnedRows; ++j) {
        const A of_row = d[turned(b, least(k + j, K - 1), K)];
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) sum[j][i] = fma(of_row, A(widened(columns.number[i])), sum[j][i]);
      }
    }
    E* const to = (part == kOfInput ? p.dw_ih : p.dw_hh) + k * n + column;
#pragma unroll
    for (int j = 0; j < kTurnedRows; ++j) {
      if (k + j >= K) break;
      Chunk<E> row;
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) narrow(sum[j][i], row.number[i]);
      if (whole[part]) {
        store_chunk(to + j * n, row);
      } else {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i)
          if (column + i < n) to[j * n + i] = row.number[i];
      }
    }
  }

  // the sums over the batch of gate row k
  RNNFAST_INLINE void biases(int64_t k) const {
    const auto sum = [&](const A* d, E* to) {
      A all{};
      for (int64_t b = 0; b < p.B; ++b) all += d[turned(b, k, gate_rows())];
      if (to) narrow(all, to[k]);
    };
    sum(p.dg, p.db_ih);
    sum(p.da, p.db_hh);
  }
};

template <class Cell, class E>
RNNFAST_KERNEL void __launch_bounds__(kTurnedWarps* kLanes, 1)
    run_single_products(const RNNFAST_READ_ONLY SingleProducts<Cell, E> task) {
  typedef SingleProducts<Cell, E> Task;
  wait_for_previous();
  const int64_t block = block_index(), of_states = task.of_input + task.of_hidden;
  if (block < task.of_input) return task.states(Task::kOfInput, block);
  if (block < of_states) return task.states(Task::kOfHidden, block - task.of_input);
  const int64_t thread = (block - of_states) * block_size() + thread_index();
  if (thread < task.weight_threads()) return task.weights(thread);
  const int64_t k = thread - task.weight_threads();
  if (task.has_biases() && k < task.gate_rows()) task.biases(k);
}

template <class E>
const char* single_backward(Mode mode, const SingleBackward<E>& p, void* stream) {
  typedef typename ComputeType<E>::type A;
  return with_cell(mode, [&](auto cell) {
    typedef decltype(cell) Cell;
    typedef SingleProducts<Cell, E> Products;
    const int64_t numbers = divide_up(p.B, kSingleTile) * kSingleTile * p.H;
    constexpr int kThreads = 128;
    const char* const error = launch_blocks(run_single_cells<Cell, E>, divide_up(numbers, kThreads), kThreads,
                                            0, false, stream, SingleCells<Cell, E>{p, numbers});
    if (error) return error;
    Products task{p, {}, 0, 0, 0, 0};
    task.whole[0] = all_even<E>(p.I, {p.x, p.w_ih, p.dw_ih});
    task.whole[1] = all_even<E>(p.H, {p.h0, p.w_hh, p.reset_h, p.dw_hh});
    if (p.dx) task.of_input = divide_up(p.I, Products::kColumns) * task.tiles();
    if (p.dh0 || p.dreset_h) task.of_hidden = divide_up(p.H, Products::kColumns) * task.tiles();
    if (p.dw_ih) task.chunks_ih = divide_up(p.I, Products::kNumbers);
    if (p.dw_hh) task.chunks_hh = divide_up(p.H, Products::kNumbers);
    const int warps =
        static_cast<int>(least<int64_t>(divide_up(task.gate_rows(), kLanes / kTurnedLoads), kTurnedWarps));
    const int64_t threads = task.weight_threads() + (task.has_biases() ? task.gate_rows() : 0);
    const int64_t blocks = task.of_input + task.of_hidden + divide_up(threads, warps * kLanes);
    const size_t bytes = sizeof(A) * warps * kSingleTile * Products::kColumns;
    return launch_blocks(run_single_products<Cell, E>, blocks, warps * kLanes, bytes, true, stream, task);
  });
}

}  // namespace rnnfast::cuda
