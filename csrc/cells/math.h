// The elementwise functions of the recurrence, for a value V: a scalar (float, double) or a pack of lanes.
//
// A room that includes this file gives, in the same namespace and before it:
//   Real<V>      the constants of V's scalar type, and Int, the integers of V's shape
//   fma(V,V,V)   one multiply-add
//   lesser(a, b), greater(a, b)   b where either is NaN
//   Real<V>::kRough   whether exp2_roughly(V) and reciprocal_roughly(V), which it gives then, are exact
//   enough
// There is no include guard on purpose: every instruction set compiles its own copy in its own namespace.
// Errors stay below 4 ulp for every float, or roughly below 4e-6 of the result; NaN stays NaN, and both
// infinities go to the limits.

// V filled with one number
template <class V>
RNNFAST_INLINE V fill(typename Real<V>::Scalar s) {
  return s - V{};
}

// exp(r) = 1 + r + r^2/2! + ... from its nth coefficient on, for |r| <= ln(2)/2
template <class V, int n>
RNNFAST_INLINE V exp_series(V r) {
  typedef typename Real<V>::Scalar S;
  const V first = fill<V>(kExpSeries<S, n>);
  if constexpr (n == Real<V>::kOrder)
    return first;
  else
    return fma(exp_series<V, n + 1>(r), r, first);
}

// exp(r) - 1 = r + r^2 (1/2! + r/3! + r^2/4! + ...), to the last bit of the smallest r
template <class V>
RNNFAST_INLINE V expm1_polynomial(V r) {
  return fma(exp_series<V, 2>(r) * r, r, r);
}

// x = k ln(2) + r, with k an integer and |r| <= ln(2)/2; returns r, and 2^(k + n), a normal number
template <int n, class V>
RNNFAST_INLINE V reduce(V x, V& power) {
  typedef typename Real<V>::Int Int;
  // adding 1.5 * 2^mantissa rounds to an integer, which stands in the low bits of the sum then: shifted to
  // its place, an exponent
  const V magic = fill<V>(Real<V>::kMagic + (Real<V>::kBias + n));
  const V sum = fma(x, fill<V>(Real<V>::kLog2E), magic), k = sum - magic;
  power = __builtin_bit_cast(V, __builtin_bit_cast(Int, sum) << Real<V>::kMantissa);
  return fma(k, fill<V>(-Real<V>::kLn2Low), fma(k, fill<V>(-Real<V>::kLn2High), x));
}

// sigmoid(x) = 1 / (1 + exp(-x)) = s / (s + s exp(-x)): with the power of two s the sum is finite for every
// result that is not 0
template <class V>
RNNFAST_INLINE V sigmoid(V x) {
  if constexpr (Real<V>::kRough)
    return reciprocal_roughly(Real<V>::kOne + exp2_roughly(x * -Real<V>::kLog2E));
  V y = lesser(fill<V>(Real<V>::kSigmoidHigh), -x);
  y = greater(fill<V>(Real<V>::kSigmoidLow), y);
  V power;
  const V r = reduce<-Real<V>::kMantissa - 1>(y, power);
  const V s = fill<V>(Real<V>::kHalfUlp);
  return s / fma(exp_series<V, 0>(r), power, s);
}

// tanh(x) = 1 - 2 / (1 + exp(2 x)), and x - x^3/3 + 2 x^5/15 where that would lose too many digits
template <class V>
RNNFAST_INLINE V tanh_roughly(V x) {
  const V power = exp2_roughly(x * (Real<V>::kLog2E + Real<V>::kLog2E));
  const V far = fma(reciprocal_roughly(Real<V>::kOne + power), fill<V>(-2), fill<V>(Real<V>::kOne));
  const V square = x * x;
  const V near = fma(x * square, fma(square, fill<V>(0.133333333f), fill<V>(-0.333333333f)), x);
  return square < fill<V>(0.01f) ? near : far;
}

// tanh(x) = sign(x) e / (e + 2) with e = exp(2|x|) - 1: keeps its relative accuracy down to the smallest x
template <class V>
RNNFAST_INLINE V tanh(V x) {
  if constexpr (Real<V>::kRough) return tanh_roughly(x);
  typedef typename Real<V>::Int Int;
  const Int sign = __builtin_bit_cast(Int, x) & Real<V>::kSign;
  V y = __builtin_bit_cast(V, __builtin_bit_cast(Int, x) ^ sign);
  y = y + y;
  y = lesser(fill<V>(Real<V>::kTanhHigh), y);
  V power;
  const V p = expm1_polynomial(reduce<0>(y, power));
  const V e = fma(power, p, power - Real<V>::kOne);
  const V t = e / (e + (Real<V>::kOne + Real<V>::kOne));
  return __builtin_bit_cast(V, __builtin_bit_cast(Int, t) | sign);
}

// relu(x) = x if not x < 0: NaN survives
template <class V>
RNNFAST_INLINE V relu(V x) {
  return x < Real<V>::kZero ? V{} : x;
}

// leaky_relu(x) = x if not x < 0, else slope x
template <class V>
RNNFAST_INLINE V leaky_relu(V x, typename Real<V>::Scalar slope) {
  return x < Real<V>::kZero ? x * slope : x;
}

// Derivatives, each as a function of the output y.
// sigmoid' = y (1 - y)
template <class V>
RNNFAST_INLINE V d_sigmoid(V y) {
  return y * (Real<V>::kOne - y);
}

// tanh' = 1 - y^2
template <class V>
RNNFAST_INLINE V d_tanh(V y) {
  return fma(-y, y, fill<V>(Real<V>::kOne));
}

// relu'(x) dy: 0 where y <= 0, else dy
template <class V>
RNNFAST_INLINE V relu_backward(V y, V dy) {
  return y <= Real<V>::kZero ? V{} : dy;
}

// leaky_relu'(x) dy for slope >= 0: y has the sign of x, or is 0 where slope is 0
template <class V>
RNNFAST_INLINE V leaky_relu_backward(V y, V dy, typename Real<V>::Scalar slope) {
  return y > Real<V>::kZero ? dy : dy * slope;
}
