// Numbers as a kernel reads them, and how near to the expected ones its results and gradients must be.
#pragma once
#include <algorithm>
#include <cmath>
#include <variant>
#include <vector>

#include "world.h"

namespace {

void round_to(double v, double& to) { to = v; }
void round_to(double v, float& to) { to = static_cast<float>(v); }
void round_to(double v, Bfloat16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(v));
  to.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// numbers of less than 2^15: 10 bits behind the point, of a denormal 24
void round_to(double v, Half& to) {
  int exponent = 0;
  std::frexp(v, &exponent);
  const int place = std::max(exponent - 11, -24);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(std::abs(v), -place)), place);
  std::frexp(rounded, &exponent);
  const bool denormal = rounded < 0x1p-14;
  const double bits = denormal ? std::ldexp(rounded, 24) : std::ldexp(rounded, 11 - exponent) - 1024;
  const int head = (v < 0) << 15 | (denormal ? 0 : (exponent + 14) << 10);
  to.bits = static_cast<uint16_t>(head + static_cast<int>(bits));
}
double value_of(double v) { return v; }
double value_of(Bfloat16 v) { return __builtin_bit_cast(float, uint32_t{v.bits} << 16); }
double value_of(Half v) {
  const int exponent = v.bits >> 10 & 31, rest = v.bits & 1023;
  const double size = exponent ? std::ldexp(1024 + rest, exponent - 25) : std::ldexp(rest, -24);
  return v.bits >> 15 ? -size : size;
}

// Numbers as a kernel reads them; rounding them changes the doubles too. With `columns` they are rows of
// whole lines. Half of the arrays begin where a view of a tensor may begin.
template <class E>
class Input {
 public:
  Input() = default;
  explicit Input(std::vector<double>& numbers) : Input(numbers, 1, 1) {}
  Input(std::vector<double>& numbers, int64_t columns) : Input(numbers, columns, whole_lines<E>(columns)) {}
  const E* get() const { return all_.empty() ? nullptr : all_.data() + shift_; }

 private:
  Input(std::vector<double>& numbers, int64_t columns, int64_t ld) {
    if (numbers.empty()) return;
    const int64_t rows = numbers.size() / columns;
    shift_ = rng.one_in(2) ? 0 : sizeof(E) == 2 ? 2 : 1;
    all_ = std::vector<E>(shift_ + rows * ld);
    for (int64_t i = 0; i < rows * columns; ++i) {
      E& e = all_[shift_ + i / columns * ld + i % columns];
      round_to(numbers[i], e);
      numbers[i] = value_of(e);
    }
  }

  int64_t shift_ = 0;
  std::vector<E> all_;
};

// A weight as forward reads it, in any way that it may be stored
template <class E>
class StoredWeight {
 public:
  StoredWeight(std::vector<double>& numbers, int64_t columns, Stored stored) : stored_(stored) {
    if (stored == Stored::kAsRead)
      as_ = Input<E>(numbers, columns);
    else
      as_ = Input<float>(numbers);
    if (stored == Stored::kBfloat16) as_ = Input<Bfloat16>(numbers);
    if (stored == Stored::kHalf) as_ = Input<Half>(numbers);
    if (stored == Stored::kFloatForBfloat16) Input<Bfloat16>{numbers};
    if (stored == Stored::kFloatForHalf) Input<Half>{numbers};
  }
  WeightMatrix get() const {
    return {std::visit([](const auto& input) -> const void* { return input.get(); }, as_), stored_};
  }

 private:
  std::variant<Input<float>, Input<double>, Input<Bfloat16>, Input<Half>> as_;
  Stored stored_;
};

using Numbers = std::vector<std::vector<double>>;

template <class T>
std::vector<double> doubles(const T* p, int64_t rows, int64_t n, int64_t ld) {
  std::vector<double> v(rows * n);
  for (int64_t i = 0; i < rows * n; ++i) v[i] = value_of(p[i / n * ld + i % n]);
  return v;
}

std::vector<double> column_sums(const std::vector<double>& m, int64_t n) {
  std::vector<double> sums(n);
  for (size_t i = 0; i < m.size(); ++i) sums[i % n] += m[i];
  return sums;
}

// How near results must be, by what their products are of: floats in fewer parts are less exact
template <class E>
double tolerance(const Kernels& k, double of_doubles, double of_floats, double of_bfloat16) {
  if (sizeof(E) == 8) return of_doubles;
  if (sizeof(E) == 2 || k.products == 1) return of_bfloat16;
  return k.products == 3 ? 10 * of_floats : of_floats;
}

template <class E>
double gradient_tolerance(const Kernels& k) {
  return tolerance<E>(k, 1e-5, 1e-3, 0.05);
}

void check_near(const char* name, const std::vector<double>& found, const std::vector<double>& expected,
                double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i]))))
      fail("%s[%zu] is %.9g, expected %.9g", name, i, found[i], expected[i]);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// All gradients at once: the slope of the loss along a random direction. An empty gradient was not asked for.
template <class Loss>
void check_gradients(const Numbers& in, const Numbers& gradients, double tolerance, const Loss& loss) {
  Numbers direction(in.size());
  double slope = 0, size = 1;
  for (size_t i = 0; i < in.size(); ++i) {
    direction[i] = rng.reals(gradients[i].size());
    for (size_t j = 0; j < gradients[i].size(); ++j) {
      slope += gradients[i][j] * direction[i][j];
      size += std::abs(gradients[i][j] * direction[i][j]);
    }
  }
  const double here = loss(in);
  double ahead = 0, behind = 0;
  const auto slope_over = [&](double step) {
    Numbers there = in;
    for (size_t i = 0; i < in.size(); ++i)
      for (size_t j = 0; j < direction[i].size(); ++j) there[i][j] += step * direction[i][j];
    return (loss(there) - here) / step;
  };
  const auto near = [&](double expected) { return std::abs(slope - expected) <= tolerance * size; };
  // Of ten thousand layers a few have a kink of ReLU within the larger step, of a million some within the
  // smaller one: then the slope is that of one side.
  for (const double step : {1e-6, 1e-8}) {
    ahead = slope_over(step), behind = slope_over(-step);
    const bool kink = std::abs(ahead - behind) > tolerance * size;
    if (near((ahead + behind) / 2) || (kink && (near(ahead) || near(behind)))) return;
  }
  fail("gradients: the slope is %.9g, expected %.9g ahead and %.9g behind (of terms of %.3g together)", slope,
       ahead, behind, size);
}

}  // namespace
