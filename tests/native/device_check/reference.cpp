// The cells' own formulas, in double, in a room of their own; see reference.h.
#include "reference.h"

#include <algorithm>
#include <cmath>

#include "../cells_in_double.h"

namespace rnnfast::device_check {

void forward(Mode mode, int64_t H, const ForwardRow& row) {
  in_double::with_cell(mode, [&](auto cell) {
    typedef decltype(cell) Cell;
    for (int64_t unit = 0; unit < H; ++unit) {
      double state[Cell::kSlots] = {}, none = 0;
      for (int g = 0; g < Cell::kGates; ++g) state[g] += row.input[g * H + unit];
      for (int g = 0; g < Cell::kGates; ++g)
        state[Cell::kHiddenSlot[g]] += row.product[g * H + unit] + row.bias[g * H + unit];
      row.h[unit] = Cell::forward(state, Cell::kHasCell ? row.c[unit] : none, row.h[unit]);
      for (int j = 0; j < Cell::kSlots; ++j) row.state[j * H + unit] = state[j];
    }
  });
}

void backward(Mode mode, int64_t H, const BackwardRow& row) {
  in_double::with_cell(mode, [&](auto cell) {
    typedef decltype(cell) Cell;
    for (int64_t unit = 0; unit < H; ++unit) {
      double state[Cell::kSlots], da[Cell::kGates], dx[Cell::kGates] = {}, none = 0;
      for (int j = 0; j < Cell::kSlots; ++j) state[j] = row.state[j * H + unit];
      const auto of_cell = [&](const double* numbers) { return Cell::kHasCell ? numbers[unit] : 0; };
      row.dh[unit] =
          Cell::backward(state, Cell::kBlends ? row.before[unit] : 0, of_cell(row.c_before), of_cell(row.c),
                         row.dh[unit], Cell::kHasCell ? row.dc[unit] : none, da, dx);
      for (int g = 0; g < Cell::kGates; ++g) {
        row.da[g * H + unit] = da[g];
        if (Cell::kSlots > Cell::kGates) row.dx[g * H + unit] = dx[g];
      }
    }
  });
}

namespace {

// Some rows of a times some columns of b: sums that stay in registers
constexpr int kRows = 4, kColumns = 8;

// a [k, kRows], b [k, kColumns], c [kRows, kColumns]
inline __attribute__((always_inline)) void multiply_tile(const double* a, const double* b, int64_t k,
                                                         double* c) {
  typedef double Columns __attribute__((vector_size(kColumns / 2 * sizeof(double)), aligned(8), may_alias));
  Columns sum[kRows][2] = {};
  for (int64_t i = 0; i < k; ++i) {
    const Columns* const right = reinterpret_cast<const Columns*>(b + i * kColumns);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      sum[row][0] += a[i * kRows + row] * right[0];
      sum[row][1] += a[i * kRows + row] * right[1];
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
    reinterpret_cast<Columns*>(c)[2 * row] = sum[row][0];
    reinterpret_cast<Columns*>(c)[2 * row + 1] = sum[row][1];
  }
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) void multiply_tile_fast(const double* a, const double* b, int64_t k,
                                                            double* c) {
  multiply_tile(a, b, k, c);
}
const bool is_fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
constexpr auto multiply_tile_fast = multiply_tile;
constexpr bool is_fast = false;
#endif

// [k, n] as panels [ceil(n / width), k, width], zeros beyond n
template <class Get>
std::vector<double> panels(int64_t k, int64_t n, int width, const Get& get) {
  std::vector<double> all((n + width - 1) / width * width * k);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < k; ++i) all[j / width * width * k + i * width + j % width] = get(i, j);
  return all;
}

}  // namespace

std::vector<double> multiply(const std::vector<float>& a, const std::vector<float>& b, bool turned, int64_t m,
                             int64_t k, int64_t n) {
  const std::vector<double> left =
      panels(k, m, kRows, [&](int64_t i, int64_t row) { return a[row * k + i]; });
  const std::vector<double> right =
      panels(k, n, kColumns, [&](int64_t i, int64_t j) { return turned ? b[j * k + i] : b[i * n + j]; });
  std::vector<double> c(m * n);
  for (int64_t column = 0; column < n; column += kColumns)
    for (int64_t row = 0; row < m; row += kRows) {
      double tile[kRows * kColumns];
      (is_fast ? multiply_tile_fast : multiply_tile)(left.data() + row * k, right.data() + column * k, k,
                                                     tile);
      const int64_t rows = std::min<int64_t>(kRows, m - row),
                    columns = std::min<int64_t>(kColumns, n - column);
      for (int64_t i = 0; i < rows; ++i)
        std::copy_n(tile + i * kColumns, columns, c.data() + (row + i) * n + column);
    }
  return c;
}

}  // namespace rnnfast::device_check
