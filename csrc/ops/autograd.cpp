// The autograd kernel of every forward op f, made from its schema and that of f_backward. There an argument
// of a name that f has too, as argument or output, is that one; dy is the gradient of an output y; need_dx
// says whether the gradient of an argument x is asked for, and needs says it of all of them. A result dx is
// the gradient of the argument x. The backward ops get theirs, for double backward, in rnnfast/ops.py.
//
// Callers may change y in place before backward, as they may with torch's GRU and RNN. So y is saved by an
// alias that does not notice, beside one that does; if they differ, f runs again.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "ops/arguments.h"
#include "ops/overlap_backward.h"

// whose ops: those of the emulated device have this kernel, too
#ifndef RNNFAST_LIBRARY
#define RNNFAST_LIBRARY rnnfast
#endif

namespace rnnfast {
namespace {

using c10::Argument;
using c10::IValue;
using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::last;
using torch::jit::peek;

OperatorHandle find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((C10_STRINGIZE(RNNFAST_LIBRARY) "::" + name).c_str(),
                                                        "");
}

size_t find(const std::vector<Argument>& among, const std::string& name) {
  const auto is_it = [&](const Argument& a) { return a.name() == name; };
  return std::find_if(among.begin(), among.end(), is_it) - among.begin();
}

// Where the tensors of each argument begin when all that are given stand one after the other; and where the
// last ones end
using Places = std::vector<int64_t>;

// Where a backward op takes an argument from
struct Source {
  enum Kind { kGradient, kInput, kOutput, kNeed, kNeeds } kind;
  size_t index;  // of the forward op's argument, or of its output
};

// A forward op and its derivative
struct Derivative {
  const OperatorHandle forward, backward;
  const std::vector<Argument>&arguments, &outputs;  // of the forward op
  enum Type { kTensor, kTensors, kOther };
  std::vector<Type> types;        // of the arguments
  std::vector<Source> sources;    // of each argument of the backward op
  std::vector<size_t> gradients;  // which argument each of its results is the gradient of
  std::vector<bool> constant;     // of each output: has no gradient
  std::vector<size_t> state;      // of each output: the argument whose last state it is, or a number past all
  const size_t save;              // the argument that says whether to

  explicit Derivative(const std::string& name)
      : forward(find_op(name)),
        backward(find_op(name + "_backward")),
        arguments(forward.schema().arguments()),
        outputs(forward.schema().returns()),
        save(find(arguments, "save")) {
    for (const Argument& a : arguments)
      types.push_back(a.type()->isSubtypeOf(*c10::OptionalType::ofTensor()) ? kTensor
                      : a.type()->isSubtypeOf(*c10::ListType::ofTensors())  ? kTensors
                                                                            : kOther);
    for (const Argument& a : backward.schema().arguments()) sources.push_back(source_of(a.name()));
    for (const Argument& a : backward.schema().returns())
      gradients.push_back(find(arguments, a.name().substr(1)));
    for (const Argument& a : outputs) {  // hn is the last state of h0
      constant.push_back(find(backward.schema().arguments(), "d" + a.name()) == sources.size());
      state.push_back(find(arguments, a.name().substr(0, a.name().size() - 1) + "0"));
    }
  }

  Source source_of(const std::string& name) const {
    if (name == "needs") return {Source::kNeeds, 0};
    if (const size_t i = find(arguments, name); i < arguments.size()) return {Source::kInput, i};
    if (const size_t i = find(outputs, name); i < outputs.size()) return {Source::kOutput, i};
    if (const size_t i = find(outputs, name.substr(1)); i < outputs.size()) return {Source::kGradient, i};
    const std::string prefix = "need_d";
    const size_t i = find(arguments, name.substr(std::min(name.size(), prefix.size())));
    TORCH_INTERNAL_ASSERT(i < arguments.size(), backward.schema().name(), ": where is ", name, " from?");
    return {Source::kNeed, i};
  }

  // whether it is saved and the caller's to change
  bool may_change(const Source& s) const { return s.kind == Source::kOutput && !constant[s.index]; }

  // The outputs that have a gradient. The last state of what was not given has none: c_n of a cell without c.
  c10::SmallVector<size_t, 4> differentiable(const Places& places) const {
    c10::SmallVector<size_t, 4> found;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const size_t of = state[i];
      const bool lacks_argument = of < arguments.size() && places[of] == places[of + 1];
      if (!constant[i] && !lacks_argument) found.push_back(i);
    }
    return found;
  }
};

// Calls an op under this kernel. A backward that nobody differentiates need not pass its own autograd kernel,
// which is Python's.
void call_below(const OperatorHandle& op, Stack& stack) {
  at::AutoDispatchBelowADInplaceOrView guard;
  op.callBoxed(stack);
}

// Forward-mode AD would be dropped in silence here: rnnfast.functional takes the reference path for it.
void refuse_forward_gradient(const OperatorHandle& op, const char* prefix, const std::string& name,
                             const Tensor& t) {
  TORCH_CHECK(!t.defined() || !t._fw_grad(/*level=*/0).defined(), op.schema().name(), ": ", prefix, name,
              " carries a forward-mode gradient, which this op does not propagate; call it through "
              "rnnfast.functional");
}

// t.detach(), of which no profiler hears
Tensor alias_of_one_version(const Tensor& t) {
  return Tensor(t.unsafeGetTensorImpl()->shallow_copy_and_detach(torch::autograd::impl::version_counter(t),
                                                                 /*allow_tensor_metadata_change=*/false));
}

template <class Op>
struct Recorded : torch::autograd::Function<Recorded<Op>> {
  static constexpr size_t kRest = 2;  // of forward's arguments that are no tensors
  // the places, then in the order of sources what is no tensor, then the versions of the outputs that may
  // change, each of which is kept by its name
  static constexpr const char* kKept = "kept";
  // of a layer in a stack: numbers by themselves, for a compiled graph takes those for what may change
  static constexpr const char *kStack = "stack", *kLayer = "layer";

  // tensors: all that are given of the call on the stack, which takes the results; those with a gradient are
  // what autograd gives it a graph of
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const Places& places,
                               Stack* stack) {
    const Derivative& op = Op::derivative();
    variable_list saved;
    saved.reserve(tensors.size() + op.outputs.size());
    c10::impl::GenericList kept(c10::AnyType::get());
    kept.reserve(places.size() + op.arguments.size());
    for (const int64_t place : places) kept.push_back(place);
    for (const auto& [kind, i] : op.sources) {
      if (kind != Source::kInput) continue;
      if (op.types[i] == Derivative::kOther) kept.push_back(peek(*stack, i, op.arguments.size()));
      for (int64_t place = places[i]; place < places[i + 1]; ++place) saved.push_back(tensors[place]);
    }
    call_below(op.forward, *stack);
    const at::ArrayRef<IValue> outputs = last(*stack, op.outputs.size());
    for (const Source& s : op.sources) {
      if (s.kind != Source::kOutput) continue;
      const Tensor& result = outputs[s.index].toTensor();
      saved.push_back(op.may_change(s) ? result.variable_data() : result);
      if (!op.may_change(s)) continue;
      ctx->saved_data[op.outputs[s.index].name()] = alias_of_one_version(result);
      kept.push_back(static_cast<int64_t>(result._version()));
    }
    ctx->saved_data[kKept] = std::move(kept);
    if (cuda::Stack* const stack_of_layers = cuda::Stack::current()) {
      const auto [number, layer] = stack_of_layers->next_place();
      ctx->saved_data[kStack] = number, ctx->saved_data[kLayer] = layer;
    }
    // The last output is made where it is asked for, else it is of size [0] and has no gradient.
    variable_list results;
    for (const size_t i : op.differentiable(places))
      if (const Tensor& t = outputs[i].toTensor(); i + 1 < outputs.size() || t.dim() > 1)
        results.push_back(t);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(std::move(saved));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list given) {
    const Derivative& op = Op::derivative();
    const at::ArrayRef<IValue> kept = ctx->saved_data[kKept].toListRef();
    const size_t n = op.arguments.size();
    Places places(n + 1);
    for (size_t i = 0; i <= n; ++i) places[i] = kept[i].toInt();
    auto next_kept = kept.begin() + n + 1;
    const auto length = [&](size_t argument) { return places[argument + 1] - places[argument]; };
    const auto is_needed = [&](size_t argument) {
      return length(argument) > 0 && ctx->needs_input_grad(places[argument]);
    };

    variable_list grads(op.outputs.size());
    const auto differentiable = op.differentiable(places);
    for (size_t i = 0; i < given.size(); ++i) grads[differentiable[i]] = std::move(given[i]);

    const variable_list saved = ctx->get_saved_variables();
    const auto is_output = [](const Source& s) { return s.kind == Source::kOutput; };
    auto next = saved.begin(),
         output = saved.end() - std::count_if(op.sources.begin(), op.sources.end(), is_output);
    Stack stack;
    stack.reserve(op.sources.size());
    const auto push = [&](const Tensor& t) { stack.push_back(t.defined() ? IValue(t) : IValue()); };
    for (const auto& [kind, i] : op.sources) {
      if (kind == Source::kNeed) {
        stack.emplace_back(is_needed(i));
      } else if (kind == Source::kNeeds) {
        c10::List<bool> needs;
        for (const size_t argument : op.gradients) needs.push_back(is_needed(argument));
        stack.emplace_back(std::move(needs));
      } else if (kind == Source::kGradient) {
        refuse_forward_gradient(op.backward, "d", op.outputs[i].name(), grads[i]);
        push(grads[i]);
      } else if (kind == Source::kOutput) {
        push(*output++);
      } else if (op.types[i] == Derivative::kTensor) {
        push(length(i) ? *next++ : Tensor());
      } else if (op.types[i] == Derivative::kTensors) {
        stack.emplace_back(variable_list(next, next + length(i)));
        next += length(i);
      } else {
        stack.push_back(*next_kept++);
      }
    }
    bool changed = false;
    for (const Source& s : op.sources)
      if (op.may_change(s))
        changed |=
            ctx->saved_data[op.outputs[s.index].name()].toTensor()._version() != (next_kept++)->toInt();
    if (changed) run_again(op, stack);
    std::optional<cuda::Stack::Place> place;
    if (ctx->saved_data.count(kStack) && !changed)
      place = {ctx->saved_data[kStack].toInt(), ctx->saved_data[kLayer].toInt()};
    const cuda::PlaceInStack in_stack(place);
    at::GradMode::is_enabled() ? op.backward.callBoxed(stack) : call_below(op.backward, stack);

    variable_list all(places.back() + kRest);
    for (size_t k = 0; k < op.gradients.size(); ++k) {
      const size_t argument = op.gradients[k];
      const auto to = all.begin() + places[argument];
      if (op.types[argument] == Derivative::kTensors) {
        const variable_list list = stack[k].toTensorVector();
        std::copy(list.begin(), list.end(), to);
      } else if (is_needed(argument)) {
        *to = stack[k].toTensor();
      }
    }
    return all;
  }

  // what f gave, of its arguments, among those of its derivative
  static void run_again(const Derivative& op, Stack& backward) {
    Stack forward;
    for (const Argument& a : op.arguments) forward.push_back(a.default_value().value_or(IValue()));
    const auto each = [&](Source::Kind kind, const auto& f) {
      for (size_t k = 0; k < op.sources.size(); ++k)
        if (op.sources[k].kind == kind) f(backward[k], op.sources[k].index);
    };
    each(Source::kInput, [&](const IValue& value, size_t i) { forward[i] = value; });
    forward[op.save] = true;
    call_below(op.forward, forward);
    each(Source::kOutput, [&](IValue& value, size_t i) { value = forward[i]; });
  }
};

// f(argument, tensor) of every tensor that is given, in the order of the arguments; then(argument) after
// those of each argument
template <class F, class Then>
void for_tensors(const Derivative& op, at::ArrayRef<IValue> values, const F& f, const Then& then) {
  const auto visit = [&](size_t argument, const IValue& value) {
    if (!value.isNone() && value.toTensor().defined()) f(argument, value.toTensor());
  };
  for (size_t i = 0; i < values.size(); ++i) {
    if (op.types[i] == Derivative::kTensor) visit(i, values[i]);
    if (op.types[i] == Derivative::kTensors)
      for (const IValue& value : values[i].toListRef()) visit(i, value);
    then(i);
  }
}

template <class Op>
void record(const OperatorHandle& handle, Stack* stack) {
  const Derivative& op = Op::derivative();
  const at::ArrayRef<IValue> values = last(*stack, op.arguments.size());
  bool any = false;
  size_t count = 0;
  for_tensors(
      op, values,
      [&](size_t argument, const Tensor& t) {
        refuse_forward_gradient(handle, "", op.arguments[argument].name(), t);
        any |= t.requires_grad();
        ++count;
      },
      [](size_t) {});
  if (!any || !at::GradMode::is_enabled()) return call_below(handle, *stack);
  TORCH_CHECK(values[op.save].toBool(), handle.schema().name(),
              ": save is False, but an argument requires grad; pass save=True or call it under no_grad");
  variable_list tensors;
  Places places{0};
  tensors.reserve(count), places.reserve(values.size() + 1);
  for_tensors(
      op, values, [&](size_t, const Tensor& t) { tensors.push_back(t); },
      [&](size_t) { places.push_back(static_cast<int64_t>(tensors.size())); });
  variable_list results = Recorded<Op>::apply(at::TensorList(tensors), places, stack);
  const auto differentiable = op.differentiable(places);
  for (size_t i = 0; i < results.size(); ++i)
    peek(*stack, differentiable[i], op.outputs.size()) = std::move(results[i]);
}

struct Recurrent {
  static const Derivative& derivative() {
    static const Derivative instance("recurrent");
    return instance;
  }
};

struct DeepTransition {
  static const Derivative& derivative() {
    static const Derivative instance("deep_transition");
    return instance;
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(RNNFAST_LIBRARY, Autograd, m) {
  m.impl("recurrent", torch::CppFunction::makeFromBoxedFunction<&record<Recurrent>>());
  m.impl("deep_transition", torch::CppFunction::makeFromBoxedFunction<&record<DeepTransition>>());
}

}  // namespace rnnfast
