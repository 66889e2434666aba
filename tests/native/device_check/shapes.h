// The layers that checks run: their walks, and the plans that cut them.
#pragma once
#include <string>
#include <vector>

#include "cells/facts.h"
#include "cuda/plan.h"

namespace rnnfast::device_check {

enum class Type { kBfloat16, kHalf, kTf32 };
constexpr Type kTypes[] = {Type::kBfloat16, Type::kHalf, Type::kTf32};
constexpr cuda::Team kTeams[] = {cuda::Team::kBlock, cuda::Team::kCluster, cuda::Team::kGrid};
const char* name_of(Type type);
const char* name_of(cuda::Team team);

// f(E()) for what a tensor of this type stores
template <class F>
auto with_element(Type type, const F& f) {
  return type == Type::kBfloat16 ? f(Bfloat16()) : type == Type::kHalf ? f(Half()) : f(float());
}

// Where the rows of a walk stand, as csrc/ops/cuda_layer.cpp has it: row (t, b) of y is offsets[t] + b
// stride.
struct Walk {
  int64_t T, B;
  bool reverse, packed, batch_first;
  std::vector<int64_t> offsets, sizes;  // [T]
  int64_t rows;                         // of all steps

  Walk(int64_t T, int64_t B, bool reverse, bool packed, bool batch_first);
  int64_t time(int64_t s) const { return reverse ? T - 1 - s : s; }
  int64_t stride() const { return batch_first ? T : 1; }
  int64_t row(int64_t s, int64_t b) const { return offsets[time(s)] + b * stride(); }
  bool has(int64_t s, int64_t b) const { return s >= 0 && s < T && b < sizes[time(s)]; }
  int64_t first_step(int64_t b) const;  // of a row, which then has so many
  int64_t length(int64_t b) const;
};

struct Setup {
  Mode mode;
  int64_t H;
  Walk walk;
  cuda::ResidentPlan plan;
};

// The plan of a team of this kind, on a device of Hopper's size with the others taken away; or on the least
// part of it where such a team has to take several times 8 rows. One launch a step where there is none.
struct Wanted {
  Mode mode;
  Type type;
  cuda::Team team;
  int64_t H, B;
  bool backward, tight;
  bool sums = true;  // as in cuda::Shape
};
cuda::ResidentPlan plan_for(const Wanted& wanted);

// The width to run for one that is asked for: the emulated device shows that a check is right, and is too
// slow for wide layers.
int64_t width_here(int64_t H);

// why this device does not run it; "" if it does
std::string obstacle(const cuda::ResidentPlan& plan, int64_t B);

}  // namespace rnnfast::device_check
