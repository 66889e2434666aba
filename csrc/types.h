// What the ops and the kernels of every device agree on: the cells by name, and what a tensor stores.
#pragma once
#include <cstdint>

namespace rnnfast {

enum class Mode { kLstm, kGru, kRnnTanh, kRnnRelu };

// What a tensor stores (E), and what is computed with (A): halves stay in memory and in products.
struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
template <class E>
struct ComputeType {
  typedef E type;
};
template <>
struct ComputeType<Bfloat16> {
  typedef float type;
};
template <>
struct ComputeType<Half> {
  typedef float type;
};

}  // namespace rnnfast
