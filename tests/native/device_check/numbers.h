// Numbers as the kernels store and read them, on the host; and arbitrary ones.
#pragma once
#include <cstdint>
#include <vector>

#include "types.h"

namespace rnnfast::device_check {

inline float value_of(float v) { return v; }
inline float value_of(Bfloat16 v) { return __builtin_bit_cast(float, uint32_t{v.bits} << 16); }
inline float value_of(Half v) { return static_cast<float>(__builtin_bit_cast(_Float16, v.bits)); }

// to the nearest, ties to even
inline void store(float v, float& to) { to = v; }
inline void store(float v, Bfloat16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  to.bits = static_cast<uint16_t>(v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}
inline void store(float v, Half& to) { to.bits = __builtin_bit_cast(uint16_t, static_cast<_Float16>(v)); }

template <class E>
E stored(float v) {
  E e;
  store(v, e);
  return e;
}

// a stored number as a product reads it: of floats TF32, 10 bits of the mantissa, ties away from zero
template <class E>
float operand_of(E v) {
  if constexpr (sizeof(E) == 4) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, v);
    return (bits & 0x7f800000) == 0x7f800000 ? v : __builtin_bit_cast(float, (bits + 0x1000) & ~0x1fffu);
  } else {
    return value_of(v);
  }
}

// The ith number of a stream, in (-size, size)
inline float drawn(uint32_t stream, int64_t i, float size) {
  uint32_t n = static_cast<uint32_t>(i) * 0x9e3779b9u + stream * 0x85ebca6bu + 0x68e31da4u;
  n = (n ^ n >> 16) * 0x7feb352du;
  n = (n ^ n >> 15) * 0x846ca68bu;
  n ^= n >> 16;
  return size * static_cast<float>(static_cast<int32_t>(n)) * 0x1p-31f;
}

template <class E>
std::vector<E> draw(uint32_t stream, int64_t n, float size) {
  std::vector<E> numbers(n);
  for (int64_t i = 0; i < n; ++i) store(drawn(stream, i, size), numbers[i]);
  return numbers;
}

}  // namespace rnnfast::device_check
