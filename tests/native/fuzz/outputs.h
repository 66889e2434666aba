// What a call of a kernel writes, and whether it has written that and nothing else.
#pragma once
#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "world.h"

namespace {

// What a call writes: arrays of rows, and no byte more. Before the call they hold `fill`.
struct Outputs {
  struct Array {
    const char* name;
    size_t before, rows, stride, used;  // in bytes: where rows begin, and what of each counts
    bool keeps;                         // what stands beside the rows
    std::vector<unsigned char> bytes;
  };
  unsigned char fill;
  bool team;
  std::deque<Array> arrays;

  template <class T>
  T* take(const char* name, int64_t rows, int64_t n) {
    return place<T>(name, rows, n, n, 0, rows * n, true, fill);
  }
  template <class T>
  T* take_padded(const char* name, int64_t rows, int64_t n, unsigned char value) {
    return place<T>(name, rows, n, padded(n), 0, rows * padded(n), false, value);
  }
  // what forward saves: of a lone row in blocks of units, of which whole ones are compared
  template <class T>
  T* take_saved(const char* name, int64_t batch, int64_t rows, int64_t units, unsigned char value) {
    if (batch > 1 || units < kPad) return take_padded<T>(name, rows, units, value);
    const int64_t block = rows * kPad, blocks = units / kPad;
    return place<T>(name, blocks, block, block, 0, rows * padded(units), false, value);
  }
  // rows of whole lines; what that adds is zero
  template <class T>
  T* take_lines(const char* name, int64_t rows, int64_t n) {
    const int64_t ld = whole_lines<T>(n);
    T* const p = place<T>(name, rows, n, ld, 0, rows * ld, ld == n, fill);
    for (int64_t row = 0; row < rows; ++row) std::fill(p + row * ld + n, p + (row + 1) * ld, T{});
    return p;
  }
  // one side of rows that two directions share
  template <class T>
  T* take_side(const char* name, int64_t rows, int64_t n, int64_t ld, int64_t before) {
    return place<T>(name, rows, n, ld, before, before + (rows - 1) * ld + n, true, fill);
  }

  template <class T>
  T* place(const char* name, int64_t rows, int64_t n, int64_t ld, int64_t before, int64_t numbers, bool keeps,
           unsigned char value) {
    if (fault == "short" && team && arrays.empty()) --numbers;
    arrays.push_back({name, before * sizeof(T), size_t(rows), ld * sizeof(T), n * sizeof(T), keeps,
                      std::vector<unsigned char>(numbers * sizeof(T), value)});
    return reinterpret_cast<T*>(arrays.back().bytes.data()) + before;
  }

  void check_kept() const {
    for (const Array& a : arrays)
      for (size_t i = 0; a.keeps && i < a.bytes.size(); ++i)
        if ((i < a.before || (i - a.before) % a.stride >= a.used) && a.bytes[i] != fill)
          fail("%s: byte %zu beside the rows was written", a.name, i);
  }
  void check_equal(const Outputs& other) const {
    for (size_t i = 0; i < arrays.size(); ++i)
      for (size_t row = 0; row < arrays[i].rows; ++row) {
        const size_t at = arrays[i].before + row * arrays[i].stride;
        if (std::memcmp(&arrays[i].bytes[at], &other.arrays[i].bytes[at], arrays[i].used))
          fail("%s: row %zu differs between one thread and a team", arrays[i].name, row);
      }
  }
};

}  // namespace
