// A call of one step as plain functions, forward and backward: part of kernels.h, whose rules hold here.
#pragma once
#include <cstdint>

#include "types.h"

namespace rnnfast::cuda {

// What the only step of one direction of a layer without projection reads: a few rows, whose time is that of
// launches. Rows may have any length and begin anywhere.
template <class E>
struct SingleLayer {
  typedef E Element;
  typedef typename ComputeType<E>::type A;
  int64_t B, I, H, Hp;
  const E* x;          // [B, I]
  const E* h0;         // [B, H]
  const E* c0;         // [B, H] or null
  const E* w_ih;       // [G H, I]
  const E* w_hh;       // [G H, H]
  const bool* anew;    // [B]: which rows begin from reset_h and reset_c; or null: none
  const E* reset_h;    // [B, H], leading dimension ld_reset_h; or null: zeros
  const E* reset_c;    // the same
  int64_t ld_reset_h;  // 0: one row for all
  int64_t ld_reset_c;
};

// Forward, with the input product, in one launch
template <class E>
struct SingleStep : SingleLayer<E> {
  typedef typename ComputeType<E>::type A;
  bool tf32;      // products may read floats as TF32
  const E* b_ih;  // [G H] or null
  const E* b_hh;  // [G H] or null
  E* y;           // [B, H], leading dimension ldy
  int64_t ldy;
  E* hn;  // [B, H]
  E* cn;  // [B, H] or null
  E* cs;  // [B, H], leading dimension ldc; or null
  int64_t ldc;
  A* gates;  // [B, S, Hp] or null
  A* cells;  // [B, Hp] or null
};
template <class E>
const char* single_step(Mode mode, const SingleStep<E>& layer, void* stream);
// rows that one tile has, by the matrix instruction and without it: more would read W again
constexpr int kSingleMatrixRows = 32, kSingleRows = 8;

// Backward, with every gradient that is not null, in two launches: the cells, then the products with what
// they leave. A product has 8 rows, so that each number of W that is read serves all of them.
constexpr int kSingleTile = 8;
template <class E>
struct SingleBackward : SingleLayer<E> {
  typedef typename ComputeType<E>::type A;
  const E* dy;  // [B, H], leading dimension ldy; or null
  int64_t ldy;
  const E* dcs;  // [B, H], leading dimension ldc; or null
  int64_t ldc;
  const E* dhn;    // [B, H] or null
  const E* dcn;    // [B, H] or null
  const A* gates;  // [B, S, Hp]
  const A* cells;  // [B, Hp] or null
  A* da;           // [B / 8, G H, 8], B rounded up: dL/d(W_hh h + b_hh), turned in tiles
  A* dg;           // dL/d(W_ih x + b_ih) likewise; da itself where it equals da
  bool adds;       // dx is there already, of the other direction
  E* dx;           // [B, I]
  E* dh0;          // [B, H]
  E* dc0;
  A* dreset_h;  // [B, H]: of rows that begin anew, in the place of dh0 and dc0
  A* dreset_c;
  E* dw_ih;  // as the weights are
  E* dw_hh;
  E* db_ih;
  E* db_hh;
};
template <class E>
const char* single_backward(Mode mode, const SingleBackward<E>& layer, void* stream);

}  // namespace rnnfast::cuda
