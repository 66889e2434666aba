// Kernels for torch's own recurrent operators: they take the calls that ours can take, and pass all others on
// to torch's kernel as if nothing stood in between.
//
// torch's operators are made of others (CompositeImplicitAutograd), so tools take them apart unless a backend
// has a kernel of its own. Hence ours stand at keys that are no backend: AutogradCPU and AutogradCUDA, where
// a call comes first, and BackendSelect, where it comes first in inference mode or below autograd, after all
// modes.
//
// torch's quantized operators are counted and always passed on.
#include "ops/aten.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include "cells/facts.h"
#include "ops/aten_calls.h"

namespace rnnfast::aten {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using torch::jit::Stack;

std::atomic<bool> active = false;

// Threads that run and have called one of the operators
std::atomic<int64_t> callers = 0;
struct Caller {
  bool counted = false;
  void count() {
    if (!std::exchange(counted, true)) ++callers;
  }
  ~Caller() {
    if (counted) --callers;
  }
};
thread_local Caller caller;
thread_local bool passing_on = false;

using Counts = std::array<std::atomic<int64_t>, kVerdicts>;

struct Operator {
  std::string name, overload;  // "aten::lstm", "input"
  Mode mode;
  Form form;
  Counts counts{};

  std::string full_name() const { return overload.empty() ? name : name + "." + overload; }
  std::optional<c10::OperatorHandle> find() const {
    return c10::Dispatcher::singleton().findOp({name, overload});
  }
};

// every cell of ours that torch may have, in each form, and quantized
std::vector<Operator*>& all() {
  static std::vector<Operator*> list = [] {
    std::vector<Operator*> made;
    for (const CellFacts& cell : kCells) {
      const std::string name = std::string("aten::") + cell.name;
      made.push_back(new Operator{name, "input", cell.mode, kInput});
      made.push_back(new Operator{name, "data", cell.mode, kData});
      made.push_back(new Operator{name + "_cell", "", cell.mode, kCell});
      const std::string quantized = std::string("quantized_") + cell.name;
      for (const char* overload : {"input", "data", "input_legacy", "data_legacy"})
        made.push_back(new Operator{"aten::" + quantized, overload, cell.mode, kOnlyCounted});
      made.push_back(new Operator{"aten::" + quantized + "_cell", "", cell.mode, kOnlyCounted});
      made.push_back(new Operator{"quantized::" + quantized + "_cell_dynamic", "", cell.mode, kOnlyCounted});
    }
    return made;
  }();
  return list;
}

Verdict taken(const Operator& of, at::ArrayRef<IValue> arguments, bool below_autograd, Stack& results) {
  if (of.form == kOnlyCounted) return kQuantized;
  return passing_on ? kRegion : take(of.mode, of.form, arguments, below_autograd, results);
}

// The kernel at one of the keys
struct Replacement : c10::OperatorKernel {
  Operator* const of;
  const bool below_autograd;

  Replacement(Operator* which, bool below) : of(which), below_autograd(below) {}

  void operator()(const c10::OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    // Python that runs within the call, a hook of saved tensors, may uninstall, which ends *this
    Operator* const called = of;
    const bool below = below_autograd;
    caller.count();
    if (active.load(std::memory_order_relaxed)) {
      const size_t n = op.schema().arguments().size();
      Stack results;
      const Verdict verdict = taken(*called, torch::jit::last(*stack, n), below, results);
      called->counts[verdict].fetch_add(1, std::memory_order_relaxed);
      if (verdict == kTaken) {
        torch::jit::drop(*stack, n);
        for (IValue& result : results) stack->push_back(std::move(result));
        return;
      }
    }
    if (below) {
      op.redispatchBoxed(keys & DispatchKeySet(DispatchKeySet::FULL_AFTER, DispatchKey::BackendSelect),
                         stack);
    } else {
      op.callBoxedForDispatchKey(DispatchKey::CompositeImplicitAutograd, *stack);
    }
  }
};

constexpr DispatchKey kKeys[] = {DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA,
                                 DispatchKey::BackendSelect};
// where torch has no kernel of the operators that are taken; and what stands there would be hidden, or hide
// us
constexpr DispatchKey kKeysOfOthers[] = {DispatchKey::AutogradCPU,  DispatchKey::AutogradCUDA,
                                         DispatchKey::Autograd,     DispatchKey::CPU,
                                         DispatchKey::CUDA,         DispatchKey::CompositeExplicitAutograd,
                                         DispatchKey::BackendSelect};

std::mutex mutex;
// while installed; whatever is there as the process ends stays, for the dispatcher may have ended before
std::vector<torch::Library>* registered = nullptr;

// Quantized layers and torch's dynamic cells are of one backend, not made of other operators: what autograd
// does before them is torch's, and then they come to BackendSelect.
bool has_autograd_of_torch(const c10::OperatorHandle& op) {
  return !op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
}

torch::CppFunction kernel(Operator* of, bool below_autograd) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Replacement>(of, below_autograd));
}

}  // namespace

std::vector<std::string> operators() {
  std::vector<std::string> names;
  for (const Operator* o : all())
    if (o->find()) names.push_back(o->full_name());
  return names;
}

std::vector<std::string> lacking() {
  std::vector<std::string> names;
  for (const Operator* o : all()) {
    const auto is_there = [&](const Operator* other) { return other->mode == o->mode && other->find(); };
    const bool has_cell = std::any_of(all().begin(), all().end(), is_there);
    if (has_cell && o->form != kOnlyCounted && !o->find()) names.push_back(o->full_name());
  }
  return names;
}

void install(bool on) {
  const std::lock_guard lock(mutex);
  if (on == (registered != nullptr)) return;
  if (!on) {
    delete registered;
    registered = nullptr;
    return;
  }
  for (const Operator* o : all()) {
    const auto op = o->find();
    if (!op || has_autograd_of_torch(*op)) continue;
    for (const DispatchKey key : kKeysOfOthers)
      TORCH_CHECK(!op->hasKernelForDispatchKey(key), "rnnfast.enable: ", o->full_name(), " has a kernel at ",
                  key,
                  " already, which is not torch's: something else replaces torch's "
                  "recurrent operators; end that first");
  }
  auto made = std::make_unique<std::vector<torch::Library>>();
  for (const std::string space : {"aten", "quantized"})
    for (const DispatchKey key : kKeys) {
      const bool below = key == DispatchKey::BackendSelect;
      made->emplace_back(torch::Library::IMPL, space, key, __FILE__, __LINE__);
      for (Operator* o : all())
        if (const auto op = o->find();
            op && o->name.starts_with(space + "::") && (below || !has_autograd_of_torch(*op)))
          made->back().impl(o->full_name().c_str(), kernel(o, below));
    }
  registered = made.release();
}

bool is_installed() {
  const std::lock_guard lock(mutex);
  return registered != nullptr;
}

int64_t other_callers() { return callers - caller.counted; }

void set_active(bool on) { active.store(on); }
bool is_active() { return active.load(); }

bool pass_on(bool on) { return std::exchange(passing_on, on); }

std::map<std::string, std::map<std::string, int64_t>> counts() {
  std::map<std::string, std::map<std::string, int64_t>> found;
  for (const Operator* o : all())
    for (int v = 0; v < kVerdicts; ++v)
      if (const int64_t n = o->counts[v].load(std::memory_order_relaxed))
        found[o->full_name()][kNames[v]] = n;
  return found;
}

void reset_counts() {
  for (Operator* o : all())
    for (auto& count : o->counts) count.store(0, std::memory_order_relaxed);
}

}  // namespace rnnfast::aten
