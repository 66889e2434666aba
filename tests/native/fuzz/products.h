// Products by the gradient kernel: those of a layer's gradients, and one of larger sizes.
#pragma once
#include <cstring>
#include <vector>

#include "call.h"
#include "numbers.h"

namespace {

// a b [M, N] by the gradient kernel, alone or beside a second product; a is [M, K], or turned [K, M]. With
// `rows` row k of b is rows[k].
template <class E>
std::vector<double> multiplied(const Kernels& k, int64_t M, int64_t N, int64_t K, const E* a, int64_t lda,
                               bool turned, const E* b, int64_t ldb, const void* const* rows = nullptr) {
  typedef typename ComputeType<E>::type A;
  if (M * N == 0) return {};
  const bool summed = turned && rng.one_in(2);
  const typename GradientParams<E>::Product first{N, b, ldb, rows, nullptr, padded(N), nullptr};
  typename GradientParams<E>::Product other = first;  // fewer columns of the same
  if (rng.one_in(2)) other.N = rng.in(1, N), other.ldc = padded(other.N);
  GradientParams<E> p{M, K, a, lda, turned, static_cast<int>(rng.in(1, 2)), {first, other}, false};
  const auto takes = [&](GradientParams<E>& q, Outputs& o) {
    q.product[0].c = o.take_padded<A>("product", M, N, o.fill);
    if (q.products > 1) q.product[1].c = o.take_padded<A>("second product", M, other.N, o.fill);
    if (summed) q.product[0].sums = o.take<A>("sums", M, 1);
    if (summed && q.products > 1) q.product[1].sums = o.take<A>("second sums", M, 1);
  };
  const auto call = [&](const GradientParams<E>* q, Plan plan, void* workspace, Team::Member* member) {
    return k.layer(E()).gradient(*q, plan, workspace, member);
  };
  const Outputs once =
      run_both<GradientParams<E>>("gradient", p, nullptr, false, sizeof(A) == 4, takes, call);
  const std::vector<double> product = doubles(p.product[0].c, M, N, first.ldc);
  if (p.products > 1) {
    const std::vector<double> second = doubles(p.product[1].c, M, other.N, other.ldc);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < other.N; ++n)
        if (second[m * other.N + n] != product[m * N + n]) fail("the second product differs from the first");
  }
  if (summed && p.products > 1 && doubles(p.product[0].sums, M, 1, 1) != doubles(p.product[1].sums, M, 1, 1))
    fail("the second sums differ from the first");
  if (summed)
    check_near("sums", doubles(p.product[0].sums, M, 1, 1), column_sums(doubles(a, K, M, lda), M),
               sizeof(A) == 4 ? 1e-4 : 1e-12);
  if (rng.one_in(4)) {
    constexpr unsigned char kByte = 0x3f;
    A before;
    std::memset(&before, kByte, sizeof before);
    p.accumulate = true;
    p.product[0].sums = nullptr;
    p.products = 1;
    const auto keeps = [&](GradientParams<E>& q, Outputs& o) {
      q.product[0].c = o.take_padded<A>("sum", M, N, kByte);
    };
    const Outputs again =
        run_both<GradientParams<E>>("gradient, accumulated", p, nullptr, false, sizeof(A) == 4, keeps, call);
    std::vector<double> sum = doubles(p.product[0].c, M, N, first.ldc);
    for (double& v : sum) v -= before;
    check_near("sum", sum, product, sizeof(A) == 4 ? 1e-4 : 1e-12);
  }
  return product;
}

// A product beyond the sizes that small layers have: several blocks of rows, sums that are cut
template <class A>
void product(const Kernels& k) {
  const int64_t M = rng.in(1, 120), N = rng.in(1, 60), K = rng.one_in(4) ? rng.in(1000, 2200) : 30;
  const bool turned = rng.one_in(2);
  describe("product of %zu bytes, M %ld, N %ld, K %ld%s", sizeof(A), long(M), long(N), long(K),
           turned ? ", turned" : "");
  std::vector<double> a_numbers = rng.reals(M * K), b_numbers = rng.reals(K * N), c(M * N);
  const Input<A> a(a_numbers), b(b_numbers);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t i = 0; i < K; ++i)
      for (int64_t n = 0; n < N; ++n)
        c[m * N + n] += a_numbers[turned ? i * M + m : m * K + i] * b_numbers[i * N + n];
  const int64_t lda = turned ? M : K;
  check_near("product", multiplied(k, M, N, K, a.get(), lda, turned, b.get(), N), c,
             tolerance<A>(k, 1e-9, 1e-4, 0.2));
}

}  // namespace
