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
    throw std::runtime_error(std::string("split '") + name + "' is unknown, expected serial, units or rows");
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
  return {split, split == Split::kSerial ? 1 : std::max(2, threads)};
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

constexpr int64_t kLargeBytes = 1 << 20;  // malloc keeps smaller ones itself

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

template <class E>
void run_gradient(const at::Tensor& a, bool turned, at::ArrayRef<Product> products, bool accumulate,
                  const at::Tensor& sums) {
  typedef typename ComputeType<E>::type A;
  GradientParams<E> p{};
  p.M = a.size(turned ? 1 : 0), p.K = a.size(turned ? 0 : 1);
  p.a = static_cast<const E*>(a.const_data_ptr()), p.lda = a.stride(0), p.turned = turned;
  int64_t N = 0;
  for (const Product& product : products) {
    const at::Tensor &b = product.b, &c = product.c;
    p.right[p.rights++] = {b.size(1), static_cast<const E*>(b.const_data_ptr()), b.stride(0),
                           c.mutable_data_ptr<A>(), c.stride(0)};
    N += b.size(1);
  }
  p.accumulate = accumulate;
  p.sums = sums.defined() ? sums.mutable_data_ptr<A>() : nullptr;
  const int threads = p.M * N * p.K < kSerialWork ? 1 : Team::usable_threads();
  const bool serial = threads == 1 || forced().load() == static_cast<int>(Split::kSerial);
  const auto kernel = kernels().layer(E()).gradient;
  const auto call = [&](Plan plan, void* workspace, Team::Member* member) {
    return kernel(p, plan, workspace, member);
  };
  launch_with(nullptr, serial ? Plan{Split::kSerial, 1} : Plan{Split::kRows, threads}, sizeof(A) == 4, call);
}

}  // namespace

void multiply(const at::Tensor& a, bool turned, at::ArrayRef<Product> products, bool accumulate,
              const at::Tensor& sums) {
  if (a.numel() == 0) {
    for (const Product& product : products)
      if (!accumulate) product.c.zero_();
    if (sums.defined()) sums.zero_();
    return;
  }
  (a.scalar_type() == at::kDouble     ? run_gradient<double>
   : a.scalar_type() == at::kBFloat16 ? run_gradient<Bfloat16>
                                      : run_gradient<float>)(a, turned, products, accumulate, sums);
}

at::Tensor gradient_buffer(int64_t M, int64_t N, const at::TensorOptions& options) {
  return kept_empty({M, padded(N)}, options);
}

at::Tensor gradient_of(const at::Tensor& buffer, int64_t N) {
  return buffer.size(1) == N ? buffer : buffer.narrow(1, 0, N).contiguous();
}

std::vector<at::Tensor> multiplied(const at::Tensor& a, bool turned, at::TensorList b, at::Tensor* sums) {
  const at::TensorOptions options =
      a.scalar_type() == at::kBFloat16 ? a.options().dtype(at::kFloat) : a.options();
  const int64_t M = a.size(turned ? 1 : 0);
  std::vector<Product> products;
  for (const at::Tensor& factor : b)
    products.push_back({gradient_buffer(M, factor.size(1), options), factor});
  if (sums) *sums = at::empty({M}, options);
  multiply(a, turned, products, false, sums ? *sums : at::Tensor());
  std::vector<at::Tensor> results;
  for (const Product& product : products) results.push_back(gradient_of(product.c, product.b.size(1)));
  return results;
}

}  // namespace rnnfast
