// What math.h asks for, for rooms that have nothing better: the constants of each scalar type, lesser and
// greater.
// No include guard on purpose, as in math.h.

template <class S>
struct Constants;

template <>
struct Constants<float> {
  typedef float Scalar;
  static constexpr bool kRough = false;
  static constexpr float kZero = 0, kOne = 1, kLog2E = 1.442695041f, kMagic = 12582912.f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kSigmoidHigh = 104.5f, kSigmoidLow = -70.f, kTanhHigh = 20.f;
  static constexpr float kHalfUlp = 0x1p-24f;  // of 1
  static constexpr int kOrder = 6, kMantissa = 23;
  static constexpr int32_t kBias = 127, kSign = INT32_MIN;
};

template <>
struct Constants<double> {
  typedef double Scalar;
  static constexpr bool kRough = false;
  static constexpr double kZero = 0, kOne = 1, kLog2E = 1.4426950408889634, kMagic = 6755399441055744.0;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kSigmoidHigh = 746, kSigmoidLow = -670, kTanhHigh = 44;
  static constexpr double kHalfUlp = 0x1p-53;
  static constexpr int kOrder = 13, kMantissa = 52;
  static constexpr int64_t kBias = 1023, kSign = INT64_MIN;
};

template <class S, int n>
constexpr S kFactorial = n < 2 ? S(1) : S(n) * kFactorial<S, (n < 2 ? 1 : n - 1)>;

// The coefficients of exp(r): Taylor's; in float those whose greatest relative error of exp(r) - 1 over
// |r| <= ln(2)/2 is least (0.11 ulp; 1 and r are kept), which saves the seventh.
template <class S, int n>
constexpr S kExpSeries = S(1) / kFactorial<S, n>;
template <>
inline constexpr float kExpSeries<float, 2> = 0.499999970f;
template <>
inline constexpr float kExpSeries<float, 3> = 0.166665435f;
template <>
inline constexpr float kExpSeries<float, 4> = 0.0416672006f;
template <>
inline constexpr float kExpSeries<float, 5> = 0.00836651493f;
template <>
inline constexpr float kExpSeries<float, 6> = 0.00138825225f;

// V with its constants and the integers of its shape
template <class V>
struct Real;

template <class V>
RNNFAST_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}

template <class V>
RNNFAST_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
