// A kernel as the dispatcher calls it: arguments from the stack, results onto it in their place.
#pragma once
#include <torch/library.h>

#include "ops/arguments.h"

namespace rnnfast {

template <class Arguments, class Result>
Result call_with(Result (*kernel)(const Arguments&), const c10::OperatorHandle& op, const Stack& stack) {
  Reader next(op, stack);
  const Arguments arguments{next};
  next.finish();
  return kernel(arguments);
}

template <auto kernel>
void on_stack(const c10::OperatorHandle& op, Stack* stack) {
  auto result = call_with(kernel, op, *stack);
  torch::jit::drop(*stack, op.schema().arguments().size());
  std::apply([&](auto&... each) { (stack->emplace_back(std::move(each)), ...); }, result);
}

template <auto kernel>
void implement(torch::Library& m, const char* op) {
  m.impl(op, torch::CppFunction::makeFromBoxedFunction<&on_stack<kernel>>());
}

}  // namespace rnnfast
