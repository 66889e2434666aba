// The plan: see plan.h. All times in nanoseconds.
#include "cpu/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace rnnfast {
namespace {

// Measured on Zen 5 with two threads, 512-bit: six multiply-adds of a vector a nanosecond; entering the pool
// takes 2 us when its threads still spin, 20 to 50 us when they sleep: 15 is between. Only their ratios
// matter here.
constexpr double kVectorFmaPerNs = 6.0;
// The flag, and the lines of h of one row; with more rows the gates of two threads stand side by side, and
// further lines of h come so many in the time of a meeting.
constexpr double kMeetingsAlone = 1.2, kMeetings = 2, kLines = 48;
constexpr double kEnterNs = 15000;
constexpr double kCellNsPerVector = 6;  // nonlinearities, per gate and vector of units
constexpr double kPackNs = 0.07;        // of one number of W, once a call, and of a pair of bfloat16
constexpr double kRoundNs = 0.1;        // more, of a pair that is stored in float
constexpr double kFetchNs = 0.1;        // of one that another thread has packed, once a call
constexpr double kStripNs = 10;  // backward: what forward saved of a vector of units, in strips of rows
// W is read once a step. Few rows wait for it: a vector takes so long with one row, and a line of 64 bytes so
// long from the second cache and from what is beyond (a compromise: Zen 5 takes 0.4 and 0.6, Granite Rapids
// 0.6 and 5); with many rows a vector takes a little beside their multiply-adds.
constexpr double kFirstNs = 0.29, kSecondNs = 0.55, kThirdNs = 2, kReadNs = 0.05;
constexpr double kLineBytes = 64, kFirstBytes = 32 * 1024;
// a matrix unit, which takes 16 rows at once (measured on Granite Rapids): a product costs like so many rows
constexpr double kUnitRows = 16, kPerUnit = 2.4, kPerUnitRow = 0.35;
// Products of parts (measured there, too). Each costs like so many rows; the third cache is slower than the
// compromise above; a number takes so long to be split, of a row, and of W, once a call; and so does a line
// of h, or of da, that another member has written.
constexpr double kPerPart = 0.57, kPerPartRow = 0.053;
constexpr double kPartsThirdNs = 4, kSplitNs = 0.3, kPackPartsNs = 0.2, kLineNs = 20, kLineBackNs = 40;
constexpr double kFetchPartsNs =
    0.5;  // of a number of W that another thread has packed in parts, once a call

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// bytes of a vector of units: n(n + 1) / 2 products are made of n parts of two bytes
double bytes_of_vector(const Shape& s) {
  return s.products == 0 ? s.vector_bytes : s.lanes * 2.0 * std::floor(std::sqrt(2.0 * s.products));
}

// numbers that one step's product with W_hh sums over
double recurrent(const Shape& s) { return static_cast<double>(s.reads) * (s.backward ? s.gates : 1); }

// One step of `rows` rows over `vectors` vectors of units
double step_ns(const Shape& s, double rows, double vectors) {
  const double units = std::ceil(rows / kUnitRows), vector_bytes = bytes_of_vector(s);
  const double cost = s.products > 0  ? s.products * (units * kPerPart + rows * kPerPartRow)
                      : s.matrix_unit ? units * kPerUnit + rows * kPerUnitRow
                                      : rows;
  const double fma = cost / kVectorFmaPerNs, w = vectors * s.gates * s.reads;
  const double first = std::min(w, kFirstBytes / vector_bytes);
  const double nearest_two = std::clamp<double>(s.second_cache / vector_bytes, first, w);
  const double few = std::max(fma + kReadNs, kFirstNs), lines = vector_bytes / kLineBytes;
  const double product = first * few + (nearest_two - first) * std::max(few, kSecondNs * lines) +
                         (w - nearest_two) * std::max(few, (s.products ? kPartsThirdNs : kThirdNs) * lines);
  const double split = s.products ? rows * (s.inputs + recurrent(s)) * kSplitNs : 0;
  return product + split + vectors * s.gates * (s.inputs * fma + rows * kCellNsPerVector);
}

}  // namespace

Plan make_plan(const Shape& shape, int threads, double meeting_ns) {
  Shape s = shape;
  // Of one step W_ih is read like W_hh (where both have to be packed first, that counts more), and of the
  // second cache a part went to others since the call before.
  if (s.frozen && s.steps == 1) s.reads += s.inputs, s.inputs = 0, s.second_cache /= 2;
  const int64_t vectors = divide_up(s.units, s.lanes);
  const double rows = s.steps > 0 ? static_cast<double>(s.total) / s.steps : 0;  // the mean, when packed
  const double numbers = static_cast<double>(s.units) * s.gates * (s.inputs + s.reads);
  const double pack_ns = s.products ? kPackPartsNs : kPackNs + s.rounds * kRoundNs;
  const double pack = s.frozen ? 0 : pack_ns * numbers;
  const double serial = pack + s.steps * step_ns(s, rows, vectors);
  Plan best{Split::kSerial, 1};
  double best_ns = serial;
  if (threads < 2) return best;

  const int unit_parts = static_cast<int>(std::min<int64_t>(threads, vectors));
  const double slice = static_cast<double>(divide_up(vectors, unit_parts));
  const double lines =
      (rows - 1) * recurrent(s) / s.lanes * (1 - 1.0 / unit_parts);  // that others have written
  const double fetch_ns = s.products ? lines * (s.backward ? kLineBackNs : kLineNs)
                                     : lines / (s.backward ? s.gates : 1) / kLines * meeting_ns;
  const double meet = (s.batch > 1 ? kMeetings : kMeetingsAlone) * meeting_ns + fetch_ns;
  const double units =
      kEnterNs + pack / unit_parts +
      s.steps * (step_ns(s, rows, slice) + s.stages * meet + (s.backward ? rows * slice * kStripNs : 0));
  if (unit_parts > 1 && units < best_ns) best = {Split::kUnits, unit_parts}, best_ns = units;

  // who shares rows reads what others have packed, and cannot pack weights that are read once panel by panel,
  // where they are in the nearest cache
  const double fetch_pack = s.products ? kFetchPartsNs : kFetchNs;
  const int row_parts = static_cast<int>(std::min<int64_t>(threads, s.batch));
  const double by_rows = kEnterNs + (s.steps == 1 ? 2 : 1) * pack / row_parts +
                         (s.frozen ? 0 : fetch_pack * numbers * (1 - 1.0 / row_parts)) +
                         s.steps * step_ns(s, std::ceil(rows / row_parts), vectors);
  if (row_parts > 1 && by_rows < best_ns) best = {Split::kRows, row_parts}, best_ns = by_rows;

  if (s.directions == 2 && kEnterNs + serial < 2 * best_ns) best = {Split::kDirections, 2};
  return best;
}

const char* name_of(Split split) {
  constexpr const char* names[] = {"serial", "units", "rows", "directions"};
  return names[static_cast<int>(split)];
}

bool parse_split(const std::string& name, Split& split) {
  for (Split candidate : {Split::kSerial, Split::kUnits, Split::kRows, Split::kDirections})
    if (name == name_of(candidate)) return split = candidate, true;
  return false;
}

}  // namespace rnnfast
