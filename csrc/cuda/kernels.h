// The kernels of one GPU as plain functions: what csrc/ops/cuda_layer.cpp calls and csrc/cuda/*.cu implement.
// No torch, no CUDA header. All pointers are device memory; each function only puts work on the stream, and
// returns null or what went wrong.
#pragma once
#include <cstdint>

#include "cuda/single.h"
#include "types.h"

namespace rnnfast::cuda {

// One direction of one layer, forward. Rows whose length is padded end in zeros and begin at multiples of 16
// bytes: that is how a product reads them.
template <class E>
struct ForwardLayer {
  typedef typename ComputeType<E>::type A;
  int64_t H, P;            // hidden and output width; P = H without a projection
  int64_t Hp, Pp;          // the same, padded
  const E* w_hh;           // [G H, Pp]
  const E* w_hr;           // [P, Hp] or null
  const E* b_ih;           // [G H] or null
  const E* b_hh;           // [G H] or null
  bool tf32;               // products may read floats as TF32
  const int64_t* lengths;  // [B]: sequence b has the time steps t < lengths[b]; or null: all
  Resets<A> resets;
  const E* anew;  // [B, Pp]: resets.h as a product reads it
  E* h[2];        // [B, Pp]: a step reads one and writes the other; both begin as h0, for who begins later
  A* state;       // [B, Pp]: h before it was rounded, for a cell that blends it
  A* c;           // [B, Hp] or null
  E* m;           // [B, Hp]: o tanh(c), what the projection multiplies; or null
  A* hn;          // [B, P]; where there are lengths it holds h0, for sequences without a step
  E* y;           // [N, P], leading dimension ldy; where there are lengths, zeros
  int64_t ldy;
  E* cs;  // [N, H], leading dimension ldc, likewise: c of every step; or null
  int64_t ldc;
  A* gates;  // [N, S, Hp] or null: inference saves nothing
  A* cells;  // [N, Hp] or null
};

// Row (t, b) of x, y and what is saved is row + b stride.
struct ForwardStep {
  int64_t row, stride;
  int64_t n;        // rows of this step, where there are no lengths
  int64_t ends;     // rows from here on have their last step now
  int64_t t, next;  // this time step and, where it is not the last of the walk, the next one: for lengths
  int parity;       // reads h[parity]
  bool follows;     // the launch before it in the stream was that of another step: it begins as that one ends
};

// One step; input [n, G H] is W_ih x.
template <class E>
const char* forward_step(Mode mode, const ForwardLayer<E>& layer, const ForwardStep& step,
                         const typename ComputeType<E>::type* input, void* stream);

// One direction of one layer, backward through time. The caller makes the weight gradients from what this
// leaves.
template <class E>
struct BackwardLayer {
  typedef E Element;
  typedef typename ComputeType<E>::type A;
  int64_t H, P, Hp, Pp;
  int64_t Kp;              // G H, padded
  const E* w_hh_t;         // [P, Kp]: W_hh turned
  const E* w_hr_t;         // [H, Pp] or null
  bool tf32;               // as in ForwardLayer
  const int64_t* lengths;  // as in ForwardLayer
  Resets<A> resets;
  const A* h0;  // [B, P]
  const A* c0;  // [B, H] or null
  const E* y;   // [N, P], leading dimension ldy
  const E* dy;  // the same, or null
  int64_t ldy;
  const E* dcs;  // [N, H], leading dimension ldc; or null
  int64_t ldc;
  const A* dhn;    // [B, P] or null
  const A* dcn;    // [B, H] or null
  const A* gates;  // [N, S, Hp]
  const A* cells;  // [N, Hp] or null
  A* direct;       // [B, Pp]: the part of dL/dh that does not pass W_hh; zeros
  A* dc;           // [B, Hp] or null
  // rows of x; where there are lengths they are zeros
  E* da;          // [N, Kp]: dL/d(W_hh h + b_hh)
  E* dx;          // [N, Kp]: dL/d(W_ih x + b_ih); null where it equals da
  E* h_previous;  // [N, P] or null: the state each row started from
  E* dprojected;  // [N, Pp] or null: dL/dh before the projection
  E* hidden;      // [N, H] or null: o tanh(c), what the projection multiplies
  // where there are lengths they hold dhn and dcn, for sequences without a step
  A* dh0;  // [B, P]
  A* dc0;  // [B, H] or null
};

// Carries dL/dh from the step before in this order (which is the later one of the walk) to this one.
struct BackwardStep {
  int64_t row, stride;
  int64_t n;                     // rows of this step; 0 after the last: what is left goes to dh0 and dc0
  int64_t begins;                // rows from here on started from h0
  int64_t previous;              // `row` of the step that the others started from
  int64_t later;                 // `row` of the step that dL/dh comes from, and
  int64_t later_n;               // its rows; those beyond start from dhn
  int64_t t, before_t, later_t;  // the time steps of these three: for lengths
  bool follows;                  // as in ForwardStep
};

template <class E>
const char* backward_step(Mode mode, const BackwardLayer<E>& layer, const BackwardStep& step, void* stream);

// A step of many rows, in halves or as TF32, is made in tiles of so many rows of the batch by the sums of so
// many units, a block each, or a cluster of blocks that each have a part of every sum.
constexpr int kBlockRows = 128, kBlockWarps = 8;
constexpr int block_units(int sums) { return sums == 1 ? 128 : 32; }

// How a resident kernel cuts a layer: one matrix instruction takes 8 rows of the batch and 8 words of a sum
// (16 halves, or 8 floats, of which it reads TF32); a warp has 8 units for each sum of a thread; shared rows
// are 16 bytes apart, so that a warp's loads meet all banks.
constexpr int kBatch = 8, kWords = 8, kWarpUnits = 8, kSkewBytes = 16;
constexpr int kMostTiles = 11;  // instructions of a warp whose part of W its registers hold, which leaves
constexpr int kMostWarps = 12;  // room for so many warps in a block
// Pairs of packets that a thread of a grid asks for at once: as many as its registers hold beside W. Backward
// they hold more as compiled for Hopper; forward in halves, where the walk is plain (is_plain).
constexpr int packet_pairs(int64_t bytes, bool backward, bool plain, bool hopper) {
  return (backward ? hopper : plain && bytes == 2) ? 6 : 4;
}
template <class E>
constexpr int kWord = 4 / static_cast<int>(sizeof(E));  // numbers
template <class E>
constexpr int kTile = kWords * kWord<E>;
template <class E>
constexpr int kSkew = kSkewBytes / static_cast<int>(sizeof(E));
// units of the warps that share a sum: with one gate each slot is another unit
constexpr int64_t units_of_group(int64_t gates, bool backward) {
  return backward || gates == 1 ? 2 * kWarpUnits : kWarpUnits;
}
// what travels of the H numbers of a row, or of each gate's: a warp sends all of its units or none
constexpr int64_t travelling(int64_t H, int64_t gates, bool backward) {
  const int64_t units = units_of_group(gates, backward);
  return (H + units - 1) / units * units;
}

// Backward in a cluster whose blocks exchange sums, parts of dL/dh of 16 units each: what a block of 32 or 64
// units has of them. A warp has up to 8 sums, of as many instructions as the block's own numbers take, with W
// in its registers.
constexpr int kScatterWarps = 8, kScatterOwn = 32, kScatterSums = 8;
constexpr int kLongestSum = 24;  // a longer one leaves no registers for two cells
constexpr int scatter_length(int64_t gates, int64_t units, int64_t bytes) {
  return static_cast<int>(gates * units * bytes / (4 * kWords));
}
constexpr int scatter_sums(int length) {
  return length * kScatterSums <= kScatterOwn ? kScatterSums : kScatterOwn / length;
}

// How it lies on the device: see plan.h. A team of blocks works on 8 rows of the batch, or on `batches`
// times 8.
enum class Team { kBlock, kCluster, kGrid };  // one block; a cluster; a part of a grid that runs all at once
struct ResidentPlan {
  int tiles;    // instructions of a warp for two gates (slots) forward, whose W its registers hold: 4 or 8
                // of one block, kMostTiles of larger teams; 0 of a deep transition. Where there are
                // `units`: all instructions of a warp whose W its registers hold
  int held;     // instructions of a warp more, whose W is in shared memory; without both: one launch a step
  int blocks;   // of a team
  int warps;    // of a block
  int split;    // warps that share a sum
  int batches;  // 1 for a team of one block
  Team team;
  int64_t bytes;   // shared memory of a block
  int directions;  // in one launch: 2 where the layer's are side by side
  bool single;     // no tiles, but the call's only step in one launch: SingleStep
  int units;       // of a block, where a cluster exchanges sums (backward); else 0
};

// What ties the blocks of a team
struct Links {
  int blocks, split, batches, held;
  int first_block;     // of this direction's teams
  int64_t first_step;  // of the walk, in this launch; on a grid: what a packet's number is counted from
  uint64_t* places;  // of a grid: zeros before the first launch, [teams, 2, words of 8 batches rows, numbers]
  int64_t patience;  // nanoseconds of waiting for another block
  volatile uint32_t* failed;  // becomes 1 when a block waited in vain
};

constexpr int kMostBlocks = 16;               // of a cluster
constexpr int64_t kPatience = 2'000'000'000;  // nanoseconds
struct Device {
  int capability;  // 10 times major plus minor
  int multiprocessors;
  int64_t shared_bytes;           // that a block may have
  int64_t patience;               // nanoseconds of waiting for another block before one gives up
  int clusters[kMostBlocks + 1];  // [n]: how many clusters of n blocks run at once
};
// the current one
Device current_device();
// whether a CUDA graph is being captured from this stream
bool capturing(void* stream);
// a word that host and device see, for Links::failed; null where there is none
uint32_t* failure_word();
// whether a kernel that has ended waited in vain, since this was asked last
inline bool take_failure() {
  volatile uint32_t* const word = failure_word();
  if (!word || !*word) return false;
  *word = 0;
  return true;
}

// Where the rows of a walk stand: row b of its step s. Sequences of equal length: first + s step + b stride.
// Others, longest first: first + offsets[t] + b for the b below sizes[t], t being s, or steps - 1 - s in
// reverse; `stride` is 1 then.
struct Rows {
  int64_t first, step, stride;
  int64_t batch, steps;    // of the whole walk
  const int64_t* offsets;  // [steps] on the device, or null: equal lengths
  const int64_t* sizes;    // [steps], non-increasing
  const int64_t* lengths;  // as in ForwardLayer, beside equal lengths
  bool reverse;
};

// What a resident kernel reads: a direction of a layer and, in blocks behind those of the first, the other
// one. `directions` of the functions below are as many as the plan has.
template <class Params>
struct Directions {
  Params of[2];
};

// Whole sequences, or a part of their steps, of a layer without projection.
template <class E>
struct ResidentForward {
  typedef typename ComputeType<E>::type A;
  int64_t H, Hp, Hw, steps, batch;  // Hw: what travels of H numbers
  Links links;
  Rows rows, input_rows;  // fewer than 2^31; the input of a step row after row
  Resets<A> resets;
  const E* w_hh;  // [G H, H], leading dimension ldw: the tiles of all that share a sum, the rest zeros
  int64_t ldw;
  const E* b_ih;      // [G H] or null
  const E* b_hh;      // [G H] or null
  const A* h_before;  // [B, Hp]: the state before; of a grid not where h is: some of its blocks begin when
                      // others have written
  A* h;               // [B, Hp]: the state after
  A* c;               // [B, Hp] or null: before, and after
  const A* input;     // [inputs, G H]: W_ih x
  int64_t inputs;
  E* y;  // [N, H], leading dimension ldy; where there are lengths, zeros
  int64_t ldy;
  E* cs;  // as in ForwardLayer
  int64_t ldc;
  A* gates;  // [N, S, Hp] or null
  A* cells;  // [N, Hp] or null
};
template <class E>
const char* resident_forward(Mode mode, const ResidentForward<E>* directions, const ResidentPlan& plan,
                             void* stream);

template <class E>
struct ResidentBackward {
  typedef E Element;
  typedef typename ComputeType<E>::type A;
  int64_t H, Hp, Hw, Kp, steps, batch, N;  // Hw: as in ResidentForward, of each gate,
                                           // or units of all blocks; N: rows of y
  Links links;
  Rows rows;
  Resets<A> resets;
  const E* w_hh_t;  // [H, G Hw], leading dimension ldw: W_hh turned, gate after gate; the rest zeros
  int64_t ldw;
  const A* h0;  // [B, H]
  const A* c0;  // [B, H] or null
  const E* y;   // [N, H], leading dimension ldy
  const E* dy;  // the same, or null
  int64_t ldy;
  const E* dcs;  // [N, H], leading dimension ldc; or null
  int64_t ldc;
  const A* dhn;    // [B, H] or null
  const A* dcn;    // [B, H] or null
  const A* gates;  // [N, S, Hp]
  const A* cells;  // [N, Hp] or null
  E* da;           // as in BackwardLayer
  E* dx;
  A* dh0;
  A* dc0;
};
template <class E>
const char* resident_backward(Mode mode, const ResidentBackward<E>* directions, const ResidentPlan& plan,
                              void* stream);

// Where a cluster exchanges sums (plan.units)
template <class E>
const char* resident_scatter(Mode mode, const ResidentBackward<E>* directions, const ResidentPlan& plan,
                             void* stream);

// One layer of the deep transition in one step, forward: W a + b + input, through LeakyReLU or, in the last
// layer, to the next state and y.
template <class E>
struct DeepLayer {
  typedef typename ComputeType<E>::type A;
  int64_t n, units, K;  // rows, output width, and input width, padded
  bool tf32;            // as in ForwardLayer
  const E* w;           // [units, K]
  const E* bias;        // [units] or null
  const A* rows;        // [n, K], leading dimension ld
  int64_t ld;
  const A* input;  // [n, units]: what x adds, or null
  A slope;
  A* out;  // [n, units], leading dimension ldo: activations, or the next state
  int64_t ldo;
  E* y;  // [n, units], leading dimension ldy; null: an inner layer
  int64_t ldy;
  A* hn;         // [n, units] or null
  bool follows;  // as in ForwardStep
};
template <class E>
const char* deep_layer(const DeepLayer<E>& layer, void* stream);

// dL/d(pre-activations) of an inner layer from those of the layer above it
template <class E>
struct DeepInnerBackward {
  typedef typename ComputeType<E>::type A;
  int64_t n, units, K;  // rows, this layer's width, and that of the layer above, padded
  bool tf32;            // as in ForwardLayer
  const E* w_t;         // [units, K]: W of the layer above, turned
  const E* above;       // [n, K], leading dimension ld
  int64_t ld;
  const A* acts;  // [n, units], leading dimension lda
  int64_t lda;
  A slope;
  E* da;  // [n, units], leading dimension ldd
  int64_t ldd;
};
template <class E>
const char* deep_inner_backward(const DeepInnerBackward<E>& layer, void* stream);

// dL/dh from layer 0 of the step after, or from dhn; with dy it is dL/d(pre-activations) of the last layer
template <class E>
struct DeepStateBackward {
  typedef typename ComputeType<E>::type A;
  int64_t n, units, K;  // rows, H, and the width of layer 0, padded; K = 0 begins from dhn
  bool tf32;            // as in ForwardLayer
  const E* w_t;         // [units, K]: the h columns of W of layer 0, turned
  const E* below;       // [n, K], leading dimension ld: da of layer 0 of the step after
  int64_t ld;
  const A* dhn;  // [n, units] or null
  const E* dy;   // [n, units], leading dimension ldy; or null
  int64_t ldy;
  E* da;  // [n, units], leading dimension ldd; null before the first step: the rest goes to dh0
  int64_t ldd;
  A* dh0;        // [n, units]
  bool follows;  // as in ForwardStep
};
template <class E>
const char* deep_state_backward(const DeepStateBackward<E>& layer, void* stream);

// What a resident kernel reads of a deep transition, forward or backward: a product for each layer, in this
// order. Row (t, b) of y, of what is saved and of their gradients is b * times + t.
constexpr int kMostDeep = 8;        // layers
constexpr int kMostDeepWarps = 16;  // of a block
template <class E>
struct ResidentDeep {
  typedef typename ComputeType<E>::type A;
  int products;
  int64_t units[kMostDeep];  // of what each product makes
  int64_t width;             // of the widest layer, padded
  int64_t H, batch, times;
  Links links;
  const E* w;  // [products, width, ldw]: rows of zeros beyond a layer's units, and columns
  int64_t ldw;
  A slope;
};

template <class E>
struct ResidentDeepForward : ResidentDeep<E> {
  typedef E Element;
  typedef typename ComputeType<E>::type A;
  int64_t first_step, steps;  // of this launch
  const E* bias;              // [layers, width] or null
  const A* input;             // [steps, batch, units of layer 0]: what x adds
  int64_t Hp;
  A* h;                // [batch, Hp]: before, and after
  E* y;                // [N, H]
  A* acts[kMostDeep];  // of each layer but the last, leading dimension lda; or null
  int64_t lda[kMostDeep];
};
template <class E>
const char* resident_deep_forward(const ResidentDeepForward<E>& p, const ResidentPlan& plan, void* stream);

// da is dL/d(pre-activations). Product i reads that of a layer and makes that of the one below; the last one,
// which reads layer 0's, makes that of the last layer in the step before.
template <class E>
struct ResidentDeepBackward : ResidentDeep<E> {
  typedef E Element;
  typedef typename ComputeType<E>::type A;
  const A* dy;               // [N, H] or null
  const A* dhn;              // [batch, H] or null
  const A* acts[kMostDeep];  // of the layer whose da product i makes, leading dimension ldd
  E* da[kMostDeep];          // what it makes
  int64_t ldd[kMostDeep];
  A* dh0;  // [batch, H]
};
template <class E>
const char* resident_deep_backward(const ResidentDeepBackward<E>& p, const ResidentPlan& plan, void* stream);

}  // namespace rnnfast::cuda
