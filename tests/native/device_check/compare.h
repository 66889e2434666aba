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
