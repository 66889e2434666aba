// Products of a few rows with W, and what is done with each sum: the kernels of all stepwise launches. Which
// product, a task says:
//   units(), rows(), length()    units of the output, rows of the batch, numbers of a sum
//   kSums, weights(unit, sum)    how many sums a unit has, and the row of W of each
//   row(b)                       of the batch
//   given(unit, b), Given        what else its unit is made of, which may be asked for early
//   finish(sums, given, unit, b) what is done with the sums of a unit
//   of_many_rows()               the task as block_tiles.cuh takes it, where it may have many rows
// Rows begin at multiples of 16 bytes, and their length is a multiple of them. A sum may have several parts
// (kParts): then weights, row and length take the part's number as a last argument. A row of the batch may be
// missing then (null: zeros); rows may be of any length and begin anywhere unless even(part) is true; and
// counts(sum, part) says whether a sum has that part at all.
#pragma once
#include "cuda/cells.cuh"

namespace rnnfast::cuda {

constexpr int kColumns = 4, kRows = kLanes / kColumns;  // of a warp's tile
constexpr int kWarps = 4;                               // of a block
constexpr int kMatrixWarps = 8;  // of a block that multiplies by the matrix instruction: most, and
constexpr int kMatrixTiles = 4;  // times 8 rows of the batch
// of the sums that a warp leaves for the others: 4 more, so that both sides meet all banks
constexpr int kMatrixStride = kMatrixTiles * 8 + 4;

// what load_matrices gives, as multiply_tile reads it
template <class W>
RNNFAST_INLINE void load_operands(uint32_t (&word)[4], const void* place) {
  load_matrices(word, place);
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = as_operand<W>(word[i]);
}

// Four words for multiply_tile, and zeros beyond the end of a row; floats become what W is.
template <class W>
struct Words {
  uint32_t word[4];
};
template <class W>
RNNFAST_INLINE Words<W> words_of(const Chunk<W>& chunk) {
  Words<W> words = __builtin_bit_cast(Words<W>, chunk);
#pragma unroll
  for (int i = 0; i < 4; ++i) words.word[i] = as_operand<W>(words.word[i]);
  return words;
}
template <class W, class R>
RNNFAST_INLINE Words<W> load_words(const R* p, bool present) {
  Words<W> words{};
  if (!present) return words;
  if constexpr (sizeof(R) == sizeof(W)) {
    words = words_of(load_chunk(p));
  } else {
    constexpr int kPerChunk = Chunk<R>::kNumbers;
    const Chunk<R> chunk[2] = {load_chunk(p), load_chunk(p + kPerChunk)};
    W number[2 * kPerChunk];
#pragma unroll
    for (int i = 0; i < 2 * kPerChunk; ++i) narrow(chunk[i / kPerChunk].number[i % kPerChunk], number[i]);
#pragma unroll
    for (int i = 0; i < 4; ++i) words.word[i] = word_of(number + 2 * i);
  }
  return words;
}

// 16 bytes of a row from number k on, of which so many are left; they may begin anywhere. Zeros beyond the
// end.
template <class E>
RNNFAST_INLINE Chunk<E> load_rest(const E* of, int64_t k, int64_t left) {
  Chunk<E> chunk{};
#pragma unroll
  for (int i = 0; i < Chunk<E>::kNumbers; ++i)
    if (i < left) chunk.number[i] = of[k + i];
  return chunk;
}

template <class Task>
constexpr int kParts = 1;

// A task whose units are made of their sums and little more
struct OfSumsAlone {
  struct Given {};
  RNNFAST_INLINE Given given(int64_t, int64_t) const { return {}; }
};

// One part of a task's sums
template <class Task>
struct PartOf {
  const Task& task;
  int part;

  RNNFAST_INLINE auto weights(int64_t unit, int sum) const {
    if constexpr (kParts<Task> == 1)
      return task.weights(unit, sum);
    else
      return task.weights(unit, sum, part);
  }
  RNNFAST_INLINE auto row(int64_t b) const {
    if constexpr (kParts<Task> == 1)
      return task.row(b);
    else
      return task.row(b, part);
  }
  RNNFAST_BOTH int64_t length() const {
    if constexpr (kParts<Task> == 1)
      return task.length();
    else
      return task.length(part);
  }
  RNNFAST_INLINE bool counts(int sum) const {
    if constexpr (kParts<Task> == 1)
      return true;
    else
      return Task::counts(sum, part);
  }

  // 16 bytes of a row from number k < length() on, zeros beyond the end
  template <class E>
  RNNFAST_INLINE Chunk<E> load(const E* of, int64_t k) const {
    if constexpr (kParts<Task> == 1) {
      return load_chunk(of + k);
    } else {
      if (of && task.even(part)) return load_chunk(of + k);
      return load_rest(of, k, of ? task.length(part) - k : 0);
    }
  }
  template <class W, class R>
  RNNFAST_INLINE Words<W> words(const R* of, int64_t k, bool present) const {
    if constexpr (kParts<Task> == 1)
      return load_words<W>(of + k, present);
    else
      return present ? words_of(load(of, k)) : Words<W>{};
  }
};

// Of so many sums each group of kApart lanes gets its share, added up over all groups: group i has in sum[0]
// and on what all have in sum[i share] and on. Each exchange adds up two halves of the sums in two halves of
// the lanes.
template <int kSums, int kApart, int kMask = kLanes / 2, class A>
RNNFAST_INLINE void fold(A* sum, int lane) {
  constexpr int kHalf = kSums / 2;
  const bool upper = lane & kMask;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const A kept = upper ? sum[i + kHalf] : sum[i], given = upper ? sum[i] : sum[i + kHalf];
    sum[i] = kept + shuffle_xor(given, kMask);
  }
  if constexpr (kMask > kApart) fold<kHalf, kApart, kMask / 2>(sum, lane);
}

// sum[column * kRows + r] += the sum over k of w[column][k] row[r][k]. The lanes share out the sum over K, so
// that both are read 16 bytes a lane from consecutive addresses.
template <class Part, class A>
RNNFAST_INLINE void add_products(A* sum, const Part& part, const A* const* w, const A* const* row, int lane) {
  constexpr int kChunk = Chunk<A>::kNumbers;
  const int64_t K = part.length();
  for (int64_t k = lane * kChunk; k < K; k += kLanes * kChunk) {
    Chunk<A> column[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (part.counts(c)) column[c] = part.load(w[c], k);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Chunk<A> numbers = part.load(row[r], k);
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (part.counts(c))
            sum[c * kRows + r] = fma(column[c].number[i], numbers.number[i], sum[c * kRows + r]);
    }
  }
}

// Waits for what the kernel before has made, while the numbers k, k + apart .. < K of rows of W, which is
// there, come into the nearest cache.
template <class W, int n>
RNNFAST_INLINE void wait_with(const W* const (&rows)[n], int64_t apart, int64_t k, int64_t K) {
  for (; kHopper && k < K; k += apart)
#pragma unroll
    for (int i = 0; i < n; ++i) prefetch(rows[i] + k);
  wait_for_previous();
}

// float64, and float32 to its last bit: a warp makes a tile of 4 columns (rows of W: those of a unit, or one
// of four units each) times 8 rows of the batch.
template <class Task>
RNNFAST_KERNEL void run_tiles(Task task) {
  typedef typename Task::A A;
  constexpr bool kOne = Task::kSums == 1;
  constexpr int kUnits = kOne ? kColumns : 1;
  const int lane = thread_index() % kLanes;
  const int64_t warp = block_index() * kWarps + thread_index() / kLanes;
  const int64_t units = task.units(), rows = task.rows(), groups = divide_up(units, kUnits);
  const int64_t group = warp % groups * kUnits, first = warp / groups * kRows;
  let_next_begin();
  wait_for_previous();
  if (first >= rows) return;
  A sum_of[kLanes] = {};
#pragma unroll
  for (int i = 0; i < kParts<Task>; ++i) {
    const PartOf<Task> part{task, i};
    const A *w[kColumns], *row[kRows];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      w[c] = part.weights(least(group + (kOne ? c : 0), units - 1), kOne ? 0 : least(c, Task::kSums - 1));
#pragma unroll
    for (int r = 0; r < kRows; ++r) row[r] = part.row(least<int64_t>(first + r, rows - 1));
    add_products(sum_of, part, w, row, lane);
  }
  fold<kLanes, 1>(sum_of, lane);
  const A sum = sum_of[0];
  // one lane finishes a unit of a row
  A sums[Task::kSums];
#pragma unroll
  for (int i = 0; i < Task::kSums; ++i) sums[i] = kOne ? sum : shuffle(sum, i * kRows + lane % kRows);
  const int64_t unit = group + (kOne ? lane / kRows : 0), b = first + lane % kRows;
  if (unit < units && b < rows && (kOne || lane < kRows)) task.finish(sums, task.given(unit, b), unit, b);
}

// How a lane's rows of W (two halves of each instruction) become units: 8 with all of their sums, or 16 with
// one
template <class Task>
constexpr int kMatrixSlots = Task::kSums == 1 ? 2 : 4;
template <class Task>
constexpr int kMatrixUnits = Task::kSums == 1 ? 16 : 8;

// The same by the matrix instruction: halves, and floats as TF32. A block makes a tile of 8 units with up to
// four sums, or of 16 with one, times up to 32 rows of the batch; its warps share out the sum over K. A lane
// reads 16 bytes in a row where the instruction would have two words 16 bytes apart: both operands are
// permuted alike, so the sums are the same.
template <class Task>
RNNFAST_KERNEL void __launch_bounds__(kMatrixWarps* kLanes, 2) run_matrix_tiles(Task task) {
  typedef typename Task::W W;
  typedef typename Task::A A;
  constexpr bool kOne = Task::kSums == 1;
  constexpr int kSlots = kMatrixSlots<Task>, kUnits = kMatrixUnits<Task>, kChunk = Chunk<W>::kNumbers;
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
  const int64_t units = task.units(), rows = task.rows(), groups = divide_up(units, kUnits);
  const int64_t group = block_index() % groups * kUnits, first = block_index() / groups * kMatrixTiles * 8;
  const int tiles = static_cast<int>(least<int64_t>(divide_up(rows - first, 8), kMatrixTiles));
  let_next_begin();

  A sum[kSlots / 2][kMatrixTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kParts<Task>; ++i) {
    const PartOf<Task> part{task, i};
    const W* w[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      w[slot] = part.weights(least(group + (kOne ? slot * 8 : 0) + lane / 4, units - 1),
                             kOne ? 0 : least(slot, Task::kSums - 1));
    const typename Task::R* row[kMatrixTiles];
#pragma unroll
    for (int tile = 0; tile < kMatrixTiles; ++tile)
      row[tile] = part.row(least<int64_t>(first + tile * 8 + lane / 4, rows - 1));
    if (i == 0) wait_with(w, warps * 4 * kChunk, warp * 4 * kChunk + lane % 4 * kChunk, part.length());

    // what a sum that does not count this part adds up meanwhile is forgotten: 0 times infinity is not 0
    A kept[kSlots][kMatrixTiles][2];
    const auto each_kept = [&](const auto& f) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot)
        if (!kOne && !part.counts(slot))
#pragma unroll
          for (int tile = 0; tile < kMatrixTiles; ++tile)
#pragma unroll
            for (int n = 0; n < 2; ++n) f(kept[slot][tile][n], sum[slot / 2][tile][slot % 2 * 2 + n]);
    };
    each_kept([](A& to, const A& from) { to = from; });
    const int64_t K = part.length();
    for (int64_t begin = warp * 4 * kChunk; begin < K; begin += warps * 4 * kChunk) {
      const int64_t k = begin + lane % 4 * kChunk;
      // all loads first: they take longest
      Words<W> a[kSlots], b[kMatrixTiles];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot)
        a[slot] =
            part.template words<W>(w[slot], k, k < K && (kOne || (slot < Task::kSums && part.counts(slot))));
#pragma unroll
      for (int tile = 0; tile < kMatrixTiles; ++tile)
        b[tile] = part.template words<W>(row[tile], k, k < K && tile < tiles);
#pragma unroll
      for (int tile = 0; tile < kMatrixTiles; ++tile)
        if (tile < tiles)
#pragma unroll
          for (int slot = 0; slot < kSlots; slot += 2)
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
              const uint32_t both[4] = {a[slot].word[j], a[slot + 1].word[j], a[slot].word[j + 1],
                                        a[slot + 1].word[j + 1]};
              multiply_tile<W>(sum[slot / 2][tile], both, b[tile].word[j], b[tile].word[j + 1]);
            }
    }
    each_kept([](const A& from, A& to) { to = from; });
  }

  // [warps, kSlots, 8 units, rows]
  A* const parts = shared_memory<A>();
  const auto place = [](int of_warp, int slot, int unit, int b) {
    return ((of_warp * kSlots + slot) * 8 + unit) * kMatrixStride + b;
  };
#pragma unroll
  for (int tile = 0; tile < kMatrixTiles; ++tile)
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        parts[place(warp, slot, lane / 4, tile * 8 + lane % 4 * 2 + n)] =
            sum[slot / 2][tile][slot % 2 * 2 + n];
  block_barrier();
  for (int i = thread_index(); i < tiles * 8 * kUnits; i += block_size()) {
    const int64_t unit = group + i % kUnits, b = first + i / kUnits;
    if (unit >= units || b >= rows) continue;
    A sums[Task::kSums] = {};
    for (int other = 0; other < warps; ++other)
#pragma unroll
      for (int j = 0; j < Task::kSums; ++j)
        sums[j] += parts[place(other, kOne ? i % kUnits / 8 : j, i % 8, i / kUnits)];
    task.finish(sums, task.given(unit, b), unit, b);
  }
}

}  // namespace rnnfast::cuda
