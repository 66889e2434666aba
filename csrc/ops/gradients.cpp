// Products for gradients; see gradients.h.
#include "ops/gradients.h"

#include "ops/memory.h"
#include "ops/rows.h"

namespace rnnfast {
namespace {

// Below this many multiply-adds a second thread costs more than it takes over.
constexpr int64_t kSerialWork = 3'000'000;

// C = A B for one or two B. sums [M], if defined, becomes the sums over k of a turned a. rows: of B, or null.
struct Product {
  at::Tensor c, b, sums;
  const void* const* rows = nullptr;
};

template <class E>
void run_gradient(const Kernels& k, const at::Tensor& a, bool turned, at::ArrayRef<Product> products,
                  bool accumulate) {
  typedef typename ComputeType<E>::type A;
  GradientParams<E> p{};
  p.M = a.size(turned ? 1 : 0), p.K = a.size(turned ? 0 : 1);
  p.a = static_cast<const E*>(a.const_data_ptr()), p.lda = a.stride(0), p.turned = turned;
  int64_t N = 0;
  for (const auto& [c, b, sums, rows] : products) {
    p.product[p.products++] = {b.size(-1),
                               static_cast<const E*>(b.const_data_ptr()),
                               b.stride(-2),
                               rows,
                               c.template mutable_data_ptr<A>(),
                               c.stride(0),
                               sums.defined() ? sums.template mutable_data_ptr<A>() : nullptr};
    N += b.size(-1);
  }
  p.accumulate = accumulate;
  const int threads = p.M * N * p.K < kSerialWork ? 1 : Team::usable_threads();
  const bool serial = threads == 1 || forced_serial();
  const auto kernel = k.layer(E()).gradient;
  const auto call = [&](Plan plan, void* workspace, Team::Member* member) {
    return kernel(p, plan, workspace, member);
  };
  launch_with(nullptr, serial ? Plan{Split::kSerial, 1} : Plan{Split::kRows, threads}, sizeof(A) == 4, call);
}

void multiply_all(const Kernels& k, const at::Tensor& a, bool turned, at::ArrayRef<Product> products,
                  bool accumulate) {
  if (a.numel() == 0) {
    for (const auto& [c, b, sums, rows] : products) {
      if (!accumulate) c.zero_();
      if (sums.defined()) sums.zero_();
    }
    return;
  }
  (a.scalar_type() == at::kDouble     ? run_gradient<double>
   : a.scalar_type() == at::kBFloat16 ? run_gradient<Bfloat16>
                                      : run_gradient<float>)(k, a, turned, products, accumulate);
}

}  // namespace

void multiply(const Kernels& k, const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
              bool accumulate) {
  multiply_all(k, a, /*turned=*/false, Product{c, b, {}}, accumulate);
}

at::Tensor gradient_buffer(int64_t M, int64_t N, const at::TensorOptions& options) {
  return kept_empty({M, padded(N)}, options);
}

at::Tensor gradient_of(const at::Tensor& buffer, int64_t N) {
  return buffer.size(1) == N ? buffer : contiguous(buffer.narrow(1, 0, N));
}

void weight_gradients(const Kernels& k, at::ArrayRef<WeightGradient> gradients) {
  c10::SmallVector<Product, 2> products;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const auto& [a, b, dw, db, rows] = gradients[i];
    const at::TensorOptions options =
        a.options().dtype(a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    if (db) *db = kept_empty({a.size(1)}, options);
    products.push_back({gradient_buffer(a.size(1), b.size(-1), options), b, db ? *db : at::Tensor(), rows});
    // neighbours of one A are one call, which reads it once
    if (products.size() < 2 && i + 1 < gradients.size() && gradients[i + 1].a.is_same(a)) continue;
    multiply_all(k, a, /*turned=*/true, products, /*accumulate=*/false);
    for (size_t j = 0; j < products.size(); ++j)
      *gradients[i + 1 - products.size() + j].dw = gradient_of(products[j].c, products[j].b.size(-1));
    products.clear();
  }
}

}  // namespace rnnfast
