// The pybind11 module: what was built, what is chosen, and what ran. Importing it also registers the ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/profile.h"
#include "cuda/plan.h"
#include "ops/aten.h"
#include "ops/checks.h"
#include "ops/direct.h"
#include "ops/launch.h"
#include "ops/memory.h"
#include "rnnfast_build.h"

namespace py = pybind11;
using namespace rnnfast;
using namespace py::literals;

namespace {

py::dict build_info() {
  py::dict d;
  d["compiler"] = __VERSION__;
  d["torch"] = TORCH_VERSION;
#ifdef RNNFAST_CUDA
  d["cuda"] = std::to_string(RNNFAST_CUDA / 100) + "." + std::to_string(RNNFAST_CUDA % 100);
#else
  d["cuda"] = false;
#endif
  d["isas"] = built_isas();
  return d;
}

py::dict last_run_dict() {
  const LastRun r = last_run();
  py::dict d;
  d["op"] = r.op;
  d["isa"] = r.isa;
  d["split"] = r.split;
  d["parts"] = r.parts;
  d["wanted"] = r.wanted;
  d["members"] = r.members;
  d["products"] = r.products;
  return d;
}

// The arguments by name of a function that takes many, each with what it is where it is not given
class Named {
 public:
  Named(const char* function, py::kwargs given) : function_(function), given_(std::move(given)) {}

  template <class T>
  T take(const char* name, std::optional<T> otherwise = {}) {
    if (given_.contains(name)) return given_.attr("pop")(name).cast<T>();
    if (!otherwise) throw py::type_error(std::string(function_) + ": " + name + " is missing");
    return *otherwise;
  }
  void finish() const {
    for (const auto& [name, value] : given_)
      throw py::type_error(std::string(function_) + ": " + std::string(py::str(name)) + " is unknown");
  }

 private:
  const char* function_;
  py::kwargs given_;
};

// The plan that a call of this shape would take with `threads` threads on such a machine (0: here and now)
py::dict plan_dict(const std::string& mode, const py::kwargs& given) {
  Named named("plan", given);
  const int threads = named.take<int>("threads", 0);
  const double meeting_us = named.take<double>("meeting_us", 0.075);
  const bool wide = named.take<bool>("wide", false);
  Shape shape{};
  shape.steps = named.take<int64_t>("T");
  shape.batch = named.take<int64_t>("B");
  shape.total = named.take<int64_t>("N");
  shape.inputs = named.take<int64_t>("I");
  shape.units = named.take<int64_t>("H");
  shape.reads = named.take<int64_t>("P");
  shape.gates = facts_of(parse_mode("plan", mode)).gates;
  shape.stages = shape.reads == shape.units ? 1 : 2;
  shape.backward = named.take<bool>("backward", false);
  if (shape.backward) shape.inputs = 0;
  shape.frozen = named.take<bool>("frozen", false);
  shape.directions = named.take<int>("directions", 1);
  shape.products = named.take<int>("products", 0);
  shape.matrix_unit = named.take<bool>("matrix_unit", false);
  shape.rounds = named.take<bool>("rounds", false);
  shape.vector_bytes = named.take<int>("vector_bytes", 64);
  shape.second_cache = named.take<int64_t>("second_cache", 2 << 20);
  named.finish();
  shape.lanes = (threads > 0 ? shape.vector_bytes : kernels().vector_bytes) / (wide ? 8 : 4);
  const Plan plan = threads > 0 ? make_plan(shape, threads, meeting_us * 1e3) : choose_plan(shape);
  py::dict d;
  d["split"] = name_of(plan.split);
  d["parts"] = plan.parts;
  d["isa"] = kernels().name;
  d["forced"] = threads <= 0 && !forced_split().empty();
  return d;
}

// how many products of parts a call of so many steps of such a layer makes of each of float32; 0:
// multiply-adds
int products(int64_t batch, int64_t units, int64_t steps) {
  return kernels_for(batch, units, steps, at::kFloat).products;
}

// What each cell has: its gates, the values that are saved for each unit and step, whether c is carried
py::dict cells() {
  py::dict d;
  for (const CellFacts& cell : kCells)
    d[cell.name] = py::dict("gates"_a = cell.gates, "slots"_a = cell.slots, "has_cell"_a = cell.has_cell);
  return d;
}

py::dict dict_of(const cuda::ResidentPlan& plan) {
  py::dict d;
  d["kernel"] = cuda::kernel_name(plan);
  d["team"] = cuda::team_name(plan);
  d["blocks"] = plan.blocks;
  d["warps"] = plan.warps;
  d["split"] = plan.split;
  d["held"] = plan.held;
  d["batches"] = plan.batches;
  d["directions"] = plan.directions;
  d["units"] = plan.units;
  return d;
}

// What the last call on a GPU did, or None
py::object last_cuda_run() {
  const cuda::LastRun last = cuda::last_run();
  if (last.op.empty()) return py::none();
  py::dict d = dict_of(last.plan);
  d["op"] = last.op;
  return d;
}

bool cuda_failure() {
#ifdef RNNFAST_CUDA
  return cuda::take_failure();
#else
  return false;
#endif
}

// of a GPU that is described by name
cuda::Device take_device(Named& named) {
  return cuda::assumed_device(named.take<int>("capability", 90), named.take<int>("multiprocessors", 132),
                              named.take<int64_t>("shared_bytes", 232448),
                              named.take<int>("clusters_of_16", -1));
}

py::dict whole_dict_of(const cuda::ResidentPlan& plan) {
  py::dict d = dict_of(plan);
  d["tiles"] = plan.tiles;
  d["bytes"] = plan.bytes;
  return d;
}

// The kernel that a layer of H units takes on a GPU of this kind; bytes of a number of its dtype
py::dict cuda_plan_dict(const std::string& mode, int bytes, int64_t H, int64_t B, const py::kwargs& given) {
  Named named("cuda_plan", given);
  const bool tf32 = named.take<bool>("tf32", false), projected = named.take<bool>("projected", false);
  const bool backward = named.take<bool>("backward", false), lengths = named.take<bool>("lengths", false);
  const int directions = named.take<int>("directions", 1);
  const int64_t steps = named.take<int64_t>("T", 0), inputs = named.take<int64_t>("I", 0);
  const bool resets = named.take<bool>("resets", false);
  const cuda::Device device = take_device(named);
  named.finish();
  return whole_dict_of(
      cuda::choose_plan(cuda::Shape{parse_mode("cuda_plan", mode), bytes, tf32, H, B, projected, backward,
                                    device, directions, steps, lengths, inputs, resets}));
}

// The same of a deep transition of so many layers, none wider than `width`
py::dict cuda_deep_plan_dict(int bytes, int64_t width, int depth, int64_t B, const py::kwargs& given) {
  Named named("cuda_deep_plan", given);
  const bool tf32 = named.take<bool>("tf32", false);
  const int64_t steps = named.take<int64_t>("T", 0);
  const cuda::Device device = take_device(named);
  named.finish();
  return whole_dict_of(cuda::choose_plan(cuda::DeepShape{bytes, tf32, width, depth, B, device, steps}));
}

py::dict profile_dict() {
  const Profile profile = stop_profile();
  constexpr const char* names[kWorks] = {"pack", "product", "cell", "wait", "other"};
  py::dict d;
  d["elapsed"] = profile.elapsed;
  d["kernels"] = profile.kernels;
  for (int i = 0; i < kWorks; ++i) d[names[i]] = profile.spent[i];
  return d;
}

template <class A>
py::array_t<A> math(const std::string& function,
                    py::array_t<A, py::array::c_style | py::array::forcecast> x) {
  if (function != "sigmoid" && function != "tanh")
    throw std::runtime_error("function is '" + function + "', expected sigmoid or tanh");
  py::array_t<A> y(x.size());
  kernels().of(A()).math(function[0], x.data(), y.mutable_data(), x.size());
  return y;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "rnnfast's compiled kernels; importing it registers torch.ops.rnnfast";
  m.def("build_info", &build_info);
  m.def("isas", &isas);
  m.def("set_batch_invariant", &set_batch_invariant, py::arg("on"));
  m.def("products", &products, py::arg("batch"), py::arg("units"), py::arg("steps"));
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("split", &forced_split);
  m.def("set_split", &set_split, py::arg("name"));
  m.def("last_run", &last_run_dict);
  m.def("empty_cache", &empty_cache);
  m.def("set_cache_limit", &set_cache_limit, py::arg("mebibytes"));
  m.def("cache", [] {
    const CacheFacts facts = cache_facts();
    py::dict found;
    found["limit"] = facts.limit, found["held"] = facts.held, found["used"] = facts.used;
    return found;
  });
  m.def("start_profile", &start_profile);
  m.def("stop_profile", &profile_dict);
  m.def("threads", &Team::usable_threads);
  m.def("cells", &cells);
  m.def("plan", &plan_dict, py::arg("mode"));
  m.def("cuda_plan", &cuda_plan_dict, py::arg("mode"), py::arg("bytes"), py::arg("H"), py::arg("B") = 1);
  m.def("cuda_deep_plan", &cuda_deep_plan_dict, py::arg("bytes"), py::arg("width"), py::arg("depth"),
        py::arg("B") = 1);
  m.def("cuda_kernel", &cuda::forced_kernel);
  m.def("set_cuda_kernel", &cuda::set_kernel, py::arg("name"));
  m.def("set_cuda_device", &cuda::set_device, py::arg("capability"), py::arg("multiprocessors"),
        py::arg("clusters_of_16"));
  m.def("last_cuda_run", &last_cuda_run);
  m.def("cuda_failure", &cuda_failure);
  py::module_ aten = m.def_submodule("aten", "rnnfast in the place of torch's own recurrent operators");
  aten.def("operators", &aten::operators);
  aten.def("lacking", &aten::lacking);
  aten.def("install", &aten::install, py::arg("on"));
  aten.def("is_installed", &aten::is_installed);
  aten.def("other_callers", &aten::other_callers);
  aten.def("set_active", &aten::set_active, py::arg("on"));
  aten.def("is_active", &aten::is_active);
  aten.def("pass_on", &aten::pass_on, py::arg("on"));
  aten.def("counts", &aten::counts);
  aten.def("reset_counts", &aten::reset_counts);
  PyModule_AddFunctions(m.ptr(), direct_methods);
  m.def("math", &math<float>, py::arg("function"), py::arg("x"));
  m.def("math64", &math<double>, py::arg("function"), py::arg("x"));
}
