// Plan, workspace and team of a kernel call; see launch.h.
#include "launch.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace rnnfast {
namespace {

std::mutex record_mutex;
LastRun record;

constexpr int kFree = -1;

int parse_forced(const char* name) {
  if (!name || !*name) return kFree;
  Split split;
  if (!parse_split(name, split))
    throw std::runtime_error(std::string("split '") + name +
                             "' is unknown, expected serial, units, rows or directions");
  return static_cast<int>(split);
}

std::atomic<int>& forced() {
  static std::atomic<int> value{parse_forced(std::getenv("RNNFAST_SPLIT"))};
  return value;
}

}  // namespace

LastRun last_run() {
  const std::lock_guard<std::mutex> lock(record_mutex);
  return record;
}

void set_split(const std::string& name) { forced().store(parse_forced(name.c_str())); }

std::string forced_split() {
  const int now = forced().load();
  return now == kFree ? "" : name_of(static_cast<Split>(now));
}

Plan choose_plan(Shape shape) {
  shape.vector_bytes = kernels().vector_bytes;
  shape.second_cache = second_cache();
  const int now = forced().load();
  // what many threads would not take up, few will not: most small calls end here, without a system call
  if (now == kFree && make_plan(shape, Team::kMaxMembers, 0).split == Split::kSerial)
    return {Split::kSerial, 1};
  const int threads = Team::usable_threads();
  if (now == kFree) return make_plan(shape, threads, Team::meeting_ns());
  const Split split = static_cast<Split>(now);
  const int parts = split == Split::kSerial       ? 1
                    : split == Split::kDirections ? shape.directions
                                                  : std::max(2, threads);
  return {parts == 1 ? Split::kSerial : split, parts};
}

void launch_raw(const char* op, Plan plan, bool flush, Call call, const void* context) {
  struct Bound {
    Plan plan;
    Call call;
    const void* context;
    void* workspace;
  };
  const int64_t bytes = static_cast<int64_t>(call(context, plan, nullptr, nullptr));
  const at::Tensor workspace = kept_empty({bytes}, at::TensorOptions().dtype(at::kByte));
  Bound bound{plan, call, context, workspace.mutable_data_ptr()};
  const int wanted = plan.parts > 1 ? std::min(plan.parts, Team::usable_threads()) : 1;
  const int members = Team::run(
      wanted, plan.parts, flush, plan.split == Split::kUnits,
      [](void* self, Team::Member& member) noexcept {
        const Bound& b = *static_cast<const Bound*>(self);
        b.call(b.context, b.plan, b.workspace, &member);
      },
      &bound);
  if (!op) return;
  const std::lock_guard<std::mutex> lock(record_mutex);
  record.op = op;
  record.isa = kernels().name;
  record.split = name_of(plan.split);
  record.parts = plan.parts;
  record.wanted = wanted;
  record.members = members;
}

namespace {

// Blocks of memory that nobody uses at the moment, the last one given back at the end
class Attic {
 public:
  // a block of at least so many bytes and at most twice as many, or an undefined tensor
  at::Tensor take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
      if (block->numel() >= bytes && block->numel() <= 2 * bytes) {
        const at::Tensor found = std::move(*block);
        blocks_.erase(std::next(block).base());
        held_ -= found.numel();
        return found;
      }
    return {};
  }

  void give(at::Tensor block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ += block.numel();
    blocks_.push_back(std::move(block));
    for (; held_ > kMostBytes; blocks_.erase(blocks_.begin())) held_ -= blocks_.front().numel();
  }

  int64_t empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.clear();
    return std::exchange(held_, 0);
  }

 private:
  static constexpr int64_t kMostBytes = 1 << 30;
  std::mutex mutex_;
  std::vector<at::Tensor> blocks_;
  int64_t held_ = 0;
};

// never destroyed: the last tensor may end after static destructors have begun
Attic& attic() {
  static Attic& instance = *new Attic;
  return instance;
}

constexpr int64_t kLargeBytes = 1 << 17;  // malloc keeps smaller ones itself, and maps these anew

}  // namespace

at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kLargeBytes) return at::detail::empty_cpu(sizes, options);
  at::Tensor block = attic().take(bytes);
  if (!block.defined()) block = at::empty({bytes}, options.dtype(at::kByte));
  void* const data = block.mutable_data_ptr();
  return at::for_blob(data, sizes)
      .options(at::TensorOptions().dtype(options.dtype()))
      .deleter([block = std::move(block)](void*) mutable { attic().give(std::move(block)); })
      .allocator(c10::GetCPUAllocator())
      .resizeable_storage()
      .make_tensor();
}

int64_t empty_cache() { return attic().empty(); }

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
  const bool serial = threads == 1 || forced().load() == static_cast<int>(Split::kSerial);
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
  return buffer.size(1) == N ? buffer : buffer.narrow(1, 0, N).contiguous();
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
