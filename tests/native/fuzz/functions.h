// The kernels' own sigmoid and tanh of every instruction set, beside those of the C library in a wider
// type: for processors that are emulated, where there is no Python.
#pragma once
#include <limits>

#include "world.h"

namespace {

constexpr double kUlps = 4;

template <class A, class Bits, class Wide>
bool is_exact_enough(const Kernels& k, const char* type, Wide (*function)(char, Wide), char which) {
  const A infinity = std::numeric_limits<A>::infinity(), least = std::numeric_limits<A>::min();
  Bits top;
  std::memcpy(&top, &infinity, sizeof top);
  std::vector<A> x, y;
  constexpr int kNumbers = 20000;  // of every magnitude and both signs
  for (int i = 0; i <= kNumbers; ++i) {
    const Bits bits = top / kNumbers * i;
    A number;
    std::memcpy(&number, &bits, sizeof number);
    x.push_back(number), x.push_back(-number), x.push_back(A(i - kNumbers / 2) / 500);
  }
  y.resize(x.size());
  k.of(A()).math(which, x.data(), y.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  bool right = true;
  for (size_t i = 0; i < x.size(); ++i) {
    const Wide exact = function(which, x[i]);
    if (std::fabs(exact) > std::numeric_limits<A>::max())
      right &= std::isinf(y[i]);
    else if (std::fabs(exact) < least)
      right &= std::fabs(y[i]) <= least;
    else
      worst = std::fmax(worst, static_cast<double>(std::fabs(y[i] - exact) / std::fabs(exact)));
  }
  const A not_a_number = std::numeric_limits<A>::quiet_NaN();
  A nan = 0;
  k.of(A()).math(which, &not_a_number, &nan, 1);
  worst /= std::numeric_limits<A>::epsilon();
  right &= worst <= kUlps && std::isnan(nan);
  std::printf("%-10s %s %c: %.2f ulp%s\n", k.name, type, which, worst,
              right ? "" : ", too much or a wrong limit");
  return right;
}

template <class Wide>
Wide exact(char which, Wide x) {
  return which == 's' ? 1 / (1 + std::exp(-x)) : std::tanh(x);
}

// Prints the worst error of each in ulp; false where one is past the bound, or a limit is wrong
bool math_is_right() {
  bool right = true;
  for (const std::string& name : isas()) {
    set_isa(name);
    for (const char which : {'s', 't'}) {
      right &= is_exact_enough<float, uint32_t, double>(kernels(), "float ", exact<double>, which);
      right &= is_exact_enough<double, uint64_t, long double>(kernels(), "double", exact<long double>, which);
    }
  }
  return right;
}

}  // namespace
