// What a torch caller and the kernels of every instruction set agree on: plain structs, no torch, no vector
// types.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/target.h"
#include "types.h"

namespace rnnfast {

enum class Split { kSerial, kUnits, kRows, kDirections };

// The rows of x and y. Row (t, b) is offsets[t] + sequence(b) * row_stride; time step t has those of b = 0 ..
// sizes[t] - 1. Dense time-major, batch-first, packed and reversed input differ in nothing else; and
// sequences of unlike lengths in that b counts them from the longest on.
struct Walk {
  int64_t steps;           // T
  int64_t batch;           // B
  int64_t total;           // N, the rows of all steps together
  int64_t row_stride;      // 1 (time-major, packed) or T (batch-first)
  const int64_t* offsets;  // [T]
  const int64_t* sizes;    // [T], non-increasing
  bool reverse;            // walk from T - 1 to 0
  // of unlike lengths, else null: which sequence of the batch each b is, [B], and where the rows of each step
  // begin in what has only rows that take part, [T]
  const int64_t *order = nullptr, *kept = nullptr;

  // of h0, hn and their likes: the row that is b's
  RNNFAST_INLINE int64_t sequence(int64_t b) const { return order ? order[b] : b; }
  RNNFAST_INLINE int64_t row(int64_t t, int64_t b) const { return offsets[t] + sequence(b) * row_stride; }
  // of what is saved, and of gradients: total rows
  RNNFAST_INLINE int64_t kept_row(int64_t t, int64_t b) const { return kept ? kept[t] + b : row(t, b); }
  RNNFAST_INLINE int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  // the rows of t that begin here (from h0) or end here (into hn), counted in walking order: b >= the result
  RNNFAST_INLINE int64_t first_without(int64_t t, bool neighbour_after) const {
    const int64_t other = neighbour_after ? t + 1 : t - 1;
    return other < 0 || other >= steps ? 0 : (sizes[other] < sizes[t] ? sizes[other] : sizes[t]);
  }
  RNNFAST_INLINE int64_t begins(int64_t t) const { return first_without(t, reverse); }
  RNNFAST_INLINE int64_t ends(int64_t t) const { return first_without(t, !reverse); }
  // the rows of the first so many sequences of the batch, and the fewest that have n rows or more
  RNNFAST_INLINE int64_t rows_of(int64_t sequences) const {
    int64_t sum = 0;
    for (int64_t t = 0; t < steps; ++t) sum += sequences < sizes[t] ? sequences : sizes[t];
    return sum;
  }
  RNNFAST_INLINE int64_t sequences_with(int64_t n) const {
    int64_t low = 0, high = batch;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (rows_of(middle) < n)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  // the step whose state a row of t goes on from, if it does not begin here
  RNNFAST_INLINE int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
};

// whether row b of step t, which has it, begins anew there
template <class A>
RNNFAST_INLINE bool has(const Resets<A>& resets, const Walk& walk, int64_t t, int64_t b) {
  return resets.at && resets.at[walk.row(t, b)];
}

// Where rows begin that stand so many bytes apart
struct RowsOfBytes {
  const char* first;
  int64_t bytes;

  const void* row(int64_t n) const { return first + n * bytes; }
};

// rows[n] = the state that kept row n began from, a row of y, of h0 or, where resets say so, of reset_h: what
// dW_hh is made of
inline void previous_states(const Walk& walk, RowsOfBytes h0, RowsOfBytes y, const bool* resets,
                            RowsOfBytes reset_h, const void** rows) {
  for (int64_t t = 0; t < walk.steps; ++t) {
    const int64_t begins = walk.begins(t);
    for (int64_t b = 0; b < walk.sizes[t]; ++b)
      rows[walk.kept_row(t, b)] = resets && resets[walk.row(t, b)] ? reset_h.row(walk.sequence(b))
                                  : b < begins                     ? y.row(walk.row(walk.before(t), b))
                                                                   : h0.row(walk.sequence(b));
  }
}

// How one call is shared out: `parts` slices of hidden units or of rows, or both directions of a layer, each
// whole; a team smaller than that takes several each.
struct Plan {
  Split split;
  int parts;

  // how many directions one call makes, side by side
  int directions() const { return split == Split::kDirections ? parts : 1; }
  // how each of them is shared
  Plan of_direction() const { return split == Split::kDirections ? Plan{Split::kSerial, 1} : *this; }
};

// kPad is a whole number of vectors of every instruction set, so that what is saved suits them all.
RNNFAST_INLINE constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Where some values of each unit and row stand: value s of unit u of row n at
// n row + s value + u / kPad block + u % kPad.
struct Layout {
  int64_t row, value, block;
};

// [rows, values, padded(units)]; of a batch of one [units / kPad, rows, values, kPad], because it is the
// units that its threads share, and those that write side by side disturb each other.
RNNFAST_INLINE constexpr Layout layout_of(int64_t batch, int64_t rows, int64_t values, int64_t units) {
  return batch == 1 ? Layout{values * kPad, kPad, rows * values * kPad}
                    : Layout{values * padded(units), padded(units), kPad};
}

// After the gates of N rows comes a row of the biases, from which the others begin, or which cells add.
RNNFAST_INLINE constexpr int64_t gate_rows(int64_t N) { return N + 1; }

// how long a row is that a product reads: of bfloat16 whole lines of 64 bytes, which is what a matrix unit
// reads
template <class E>
RNNFAST_INLINE constexpr int64_t whole_lines(int64_t n) {
  constexpr int64_t kLine = sizeof(E) < sizeof(typename ComputeType<E>::type) ? 64 / sizeof(E) : 1;
  return (n + kLine - 1) / kLine * kLine;
}

// What a weight is in memory that a product reads as E: an E; or, of floats, 16 bits, or a float that is
// rounded to 16 bits first, of bfloat16 too, where a row has an even number of them
enum class Stored { kAsRead, kBfloat16, kHalf, kFloatForBfloat16, kFloatForHalf };

// A dense matrix of weights, or none
struct WeightMatrix {
  const void* numbers = nullptr;
  Stored stored = Stored::kAsRead;
};

// One direction of one layer, forward. Every pointer is dense unless a leading dimension stands beside it.
// Rows of bfloat16 that a product reads (x, w_ih, w_hh, w_hr) are padded with zeros to whole lines, and the
// first begins at a multiple of 4 bytes: they are read by pairs. Weights that are stored otherwise are dense.
template <class E>
struct ForwardParams {
  typedef typename ComputeType<E>::type A;
  Walk walk;
  int64_t I, H, P;     // input, hidden and output width; P = H without a projection
  const E* x;          // [N, I]
  WeightMatrix w_ih;   // [G H, I]
  WeightMatrix w_hh;   // [G H, P]
  const A* b_ih;       // [G H] or null
  const A* b_hh;       // [G H] or null
  WeightMatrix w_hr;   // [P, H] or none
  const void* frozen;  // what LayerKernels::freeze made of w_ih and w_hh, or null; not with a projection
  const A* h0;         // [B, P]
  const A* c0;         // [B, H] or null
  Resets<A> resets;
  E* y;  // [N, P], leading dimension ldy
  int64_t ldy;
  E* cs;  // [N, H], leading dimension ldc: c of every step; or null
  int64_t ldc;
  A* hn;     // [B, P]
  A* cn;     // [B, H] or null
  A* gates;  // S values of gate_rows(N) in the order of layout_of, or null: inference saves nothing
  A* cells;  // 1 value of N rows, or null
};

// One direction of one layer, backward through time. The caller makes the weight gradients from what this
// leaves. Rows of da, dx and dprojected are whole lines; whoever allocates them has zeroed what that adds.
template <class E>
struct BackwardParams {
  typedef typename ComputeType<E>::type A;
  Walk walk;
  int64_t H, P;
  const E* w_hh;  // [G H, P]
  const E* w_hr;  // [P, H] or null
  const A* h0;    // [B, P]
  const A* c0;    // [B, H] or null
  Resets<A> resets;
  const E* y;   // [N, P], leading dimension ldy
  const E* dy;  // the same, or null
  int64_t ldy;
  const E* dcs;  // [N, H], leading dimension ldc; or null
  int64_t ldc;
  const A* dhn;    // [B, P] or null
  const A* dcn;    // [B, H] or null
  const A* gates;  // as forward saved them, or null: y is the only one, and not rounded
  const A* cells;  // as forward saved them, or null
  E* da;           // [N, G H]: dL/d(W_hh h + b_hh)
  E* dx;           // [N, G H]: dL/d(W_ih x + b_ih); null where it equals da
  E* dprojected;   // [N, P] or null: dL/dh before the projection
  E* hidden;       // [N, H] or null: o tanh(c), what the projection multiplies
  A* dh0;          // [B, P]
  A* dc0;          // [B, H] or null
};

// C = A B, or C += A B, for one or two B: the products that gradients are made of. Rows of A that is not
// turned are whole lines.
template <class E>
struct GradientParams {
  typedef typename ComputeType<E>::type A;
  struct Product {
    int64_t N;
    const E* b;  // [K, N], leading dimension ldb
    int64_t ldb;
    const void* const* rows;  // [K] or null: where each row of b stands, which then is not read from b
    A* c;                     // [M, padded(N)], leading dimension ldc
    int64_t ldc;
    A* sums;  // [M] or null: becomes the sums over k of A, which is turned
  };
  int64_t M, K;
  const E* a;  // [M, K], or turned [K, M]; leading dimension lda
  int64_t lda;
  bool turned;
  int products;
  Product product[2];
  bool accumulate;
};

constexpr int kMaxDepth = 64;

// The deep-transition RNN: layer 0 reads [x_t, h], layer l reads what layer l - 1 gave, the last one gives h.
template <class A>
struct DeepParams {
  Walk walk;
  int64_t I, H;
  int depth;
  int64_t width[kMaxDepth];  // output width of each layer; the last one is H
  const A* w[kMaxDepth];     // [width[0], I + H], then [width[l], width[l - 1]]
  const A* b[kMaxDepth];     // [width[l]] or null
  A slope;                   // of LeakyReLU, which stands between the layers
  const A* x;                // [N, I]
  const A* h0;               // [B, H]
  A* y;                      // [N, H]  (read by backward)
  A* hn;                     // [B, H]
  A* acts[kMaxDepth];        // [N, padded(width[l])] for the inner layers, or null in inference
  // backward
  const A* dy;       // [N, H] or null
  const A* dhn;      // [B, H] or null
  A* da[kMaxDepth];  // [N, width[l]]: dL/d(pre-activation) of each layer
  A* dh0;            // [B, H]
};

}  // namespace rnnfast
