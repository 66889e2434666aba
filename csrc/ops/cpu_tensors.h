// A layer's tensors as the CPU's kernels read and write them. Conversions are loops of ours: each of torch's
// operators takes a microsecond or more, and a step of a small layer is ten of them.
#pragma once
#include "cpu/dispatch.h"
#include "ops/arguments.h"
#include "ops/converter.h"
#include "ops/memory.h"

namespace rnnfast::cpu {

// the dtype that the products of a layer of this dtype read
at::ScalarType element_type(const Kernels& k, at::ScalarType layer);

// f(E()) for products that read this dtype
template <class F>
void with_element(at::ScalarType type, const F& f) {
  type == at::kDouble ? f(double()) : type == at::kBFloat16 ? f(Bfloat16()) : f(float());
}

// Memory for the kernels of a layer of dtype `layer`: the tensor's own, where it is as the kernel has it,
// else memory that lives as long as this. The tensors may be of another dtype than the layer: their numbers
// are rounded to the layer's on the way, as by t.to(layer). Null for an undefined tensor.
class Operands {
 public:
  const at::ScalarType element;  // of what products read, and of y
  const at::ScalarType sums;     // of all else

  Operands(const Kernels& k, at::ScalarType layer);

  // t [.., n] as products read it: dense, and rows of bfloat16 are whole lines
  const void* matrix(const Tensor& t);
  // the same of a weight, which forward can also read as it is stored
  WeightMatrix weight(const Tensor& t);
  // t as all else is read: dense
  const void* values(const Tensor& t);

  // where to write what `write_back` brings into t, which is dense, as numbers of this type
  void* room(const Tensor& t, at::ScalarType type);
  void write_back(const void* made, at::ScalarType type, const Tensor& t) const;

 private:
  const Kernels& k_;
  const at::ScalarType layer_;
  // the little ones, then blocks, of the last of which some is taken
  static constexpr int64_t kNear = 8 << 10, kBlock = 256 << 10;
  alignas(64) char near_[kNear];
  char* next_ = near_;
  int64_t left_ = kNear;
  c10::SmallVector<Tensor, 2> blocks_;

  Converter converter(at::ScalarType from, at::ScalarType to) const { return {k_, from, layer_, to}; }
  void* take(int64_t bytes);
  const void* read(const Tensor& t, at::ScalarType type, int64_t n, int64_t line);
  void convert(const void* x, at::ScalarType from, void* y, at::ScalarType to, int64_t rows, int64_t n,
               int64_t line) const;
};

}  // namespace rnnfast::cpu
