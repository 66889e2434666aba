// What a kernel left beside what the reference expects.
#pragma once
#include "checks.h"
#include "layer.h"

namespace rnnfast::device_check {

// Which number of which row of which step, the worst of all that were compared
class Comparison {
 public:
  void add(const char* what, int64_t b, int64_t step, int64_t k, double found, double expected,
           double limit) {
    const double error = std::abs(found - expected);
    const double excess = error == error ? error / limit : INFINITY;
    ++count_, wrong_ += excess > 1;
    if (excess <= worst_.excess && worst_.what) return;
    worst_ = {what, b, step, k, found, expected, error, limit, excess};
  }
  // of a number that is only known to be there
  void finite(const char* what, int64_t row, int64_t k, float found) {
    if (!std::isfinite(found)) add(what, -1, row, k, NAN, 0, 1);
  }
  // memory that nobody may write, but with zeros if it pads a row
  void padding(const char* what, int64_t row, int64_t k, bool untouched) {
    if (!untouched) add(what, -1, row, k, NAN, 0, 1);
  }

  bool right() const { return worst_.excess <= 1; }
  double error() const { return worst_.error; }
  double limit() const { return worst_.limit; }
  std::string said() const;

 private:
  struct Worst {
    const char* what = nullptr;
    int64_t b = 0, step = 0, k = 0;
    double found = 0, expected = 0, error = 0, limit = 0, excess = 0;
  } worst_;
  int64_t count_ = 0, wrong_ = 0;
};

// How far a number may be off. `rounding`: half of the last bit that is stored, relative; which is all where
// a number is stored as float. `sum`: of one plus the number's size: sums of up to 4,000 products in float,
// whose order is the instruction's own and whose terms it may cut off (64 instructions in a row, each wrong
// by 2^-23 of the largest sum, are 8e-6), and functions to 2^-21; a wrong operand of one product shows as
// 1e-3.
struct Limits {
  double rounding, sum;
};
template <class E>
constexpr Limits kLimits{0, 3e-5};
template <>
inline constexpr Limits kLimits<Bfloat16>{0x1p-8, 3e-5};
template <>
inline constexpr Limits kLimits<Half>{0x1p-11, 3e-5};

inline double limit_of_float(double expected) { return kLimits<float>.sum * (1 + std::abs(expected)); }
template <class E>
double limit_of(double expected) {
  return kLimits<E>.rounding * std::abs(expected) + limit_of_float(expected);
}

// nobody wrote it
template <class T>
bool is_poison(T number) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&number);
  return std::all_of(bytes, bytes + sizeof number, [](unsigned char byte) { return byte == kPoison; });
}

// [rows, padded] of which n columns are somebody's from `first` on: all of those are numbers, no other was
// written, but with zeros where it pads
template <class T>
void compare_memory(const char* what, const std::vector<T>& numbers, int64_t padded_n, int64_t first,
                    int64_t n, bool pads, Comparison& comparison) {
  const int64_t rows = static_cast<int64_t>(numbers.size()) / padded_n;
  const T* number = numbers.data();
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < padded_n; ++k, ++number) {
      const float value = value_of(*number);
      if (k >= first && k < first + n)
        comparison.finite(what, row, k - first, value);
      else
        comparison.padding(what, row, k, is_poison(*number) || (pads && value == 0));
    }
}

template <class E>
std::vector<float> operands(const std::vector<E>& numbers) {
  std::vector<float> read;
  for (const E e : numbers) read.push_back(operand_of(e));
  return read;
}

// Of all rows of the batch, those that are compared number by number: all, or the first, the last and one
// between
std::vector<int64_t> compared_rows(const Setup& s);

template <class E>
void compare_forward(const Forward<E>& layer, const std::vector<int64_t>& rows, Comparison& comparison);

// What backward starts from: the states of a layer whose W_hh is zero, by the reference. Rows that are not
// compared have the first one's.
template <class E>
void save_states(Backward<E>& layer, const std::vector<int64_t>& rows);
template <class E>
void compare_backward(const Backward<E>& layer, const std::vector<int64_t>& rows, Comparison& comparison);

}  // namespace rnnfast::device_check
