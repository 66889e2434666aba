// The pybind11 module: what was built, what is chosen, and what ran. Importing it also registers the ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "check.h"
#include "cpu/profile.h"
#include "cuda/plan.h"
#include "launch.h"
#include "direct.h"

namespace py = pybind11;
using namespace rnnfast;

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
  d["isas"] = isas();
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
  return d;
}

// The plan that a call of this shape would take with `threads` threads on such a machine (0: here and now)
py::dict plan_dict(const std::string& mode, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t N,
                   bool backward, bool wide, int threads, double meeting_us, int vector_bytes,
                   int64_t second_cache, bool frozen, int directions) {
  if (threads <= 0) vector_bytes = kernels().vector_bytes;
  const Shape shape{T,
                    B,
                    N,
                    backward ? 0 : I,
                    H,
                    P,
                    gates_of(parse_mode("plan", mode)),
                    P == H ? 1 : 2,
                    vector_bytes / (wide ? 8 : 4),
                    backward,
                    /*matrix_unit=*/false,
                    frozen,
                    directions,
                    vector_bytes,
                    second_cache};
  const Plan plan = threads > 0 ? make_plan(shape, threads, meeting_us * 1e3) : choose_plan(shape);
  py::dict d;
  d["split"] = name_of(plan.split);
  d["parts"] = plan.parts;
  d["isa"] = kernels().name;
  d["forced"] = threads <= 0 && !forced_split().empty();
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

// The kernel that a layer takes on a GPU of this compute capability
py::dict cuda_plan_dict(const std::string& mode, int bytes, int64_t H, int64_t B, bool tf32, bool projected,
                        bool backward, int capability, int multiprocessors, int64_t shared_bytes,
                        int clusters_of_16) {
  const cuda::ResidentPlan plan =
      cuda::choose_plan({parse_mode("cuda_plan", mode), bytes, tf32, H, B, projected, backward,
                         cuda::assumed_device(capability, multiprocessors, shared_bytes, clusters_of_16)});
  py::dict d = dict_of(plan);
  d["tiles"] = plan.tiles;
  d["bytes"] = plan.bytes;
  return d;
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
  if (function != "exp" && function != "sigmoid" && function != "tanh")
    throw std::runtime_error("function is '" + function + "', expected exp, sigmoid or tanh");
  py::array_t<A> y(x.size());
  kernels().of(A()).math(function[0], x.data(), y.mutable_data(), x.size());
  return y;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "rnnfast's compiled kernels; importing it registers torch.ops.rnnfast";
  m.def("build_info", &build_info);
  m.def("isas", &isas);
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("split", &forced_split);
  m.def("set_split", &set_split, py::arg("name"));
  m.def("last_run", &last_run_dict);
  m.def("empty_cache", &empty_cache);
  m.def("start_profile", &start_profile);
  m.def("stop_profile", &profile_dict);
  m.def("threads", &Team::usable_threads);
  m.def("plan", &plan_dict, py::arg("mode"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("P"), py::arg("N"), py::arg("backward") = false, py::arg("wide") = false,
        py::arg("threads") = 0, py::arg("meeting_us") = 0.075, py::arg("vector_bytes") = 64,
        py::arg("second_cache") = 2 << 20, py::arg("frozen") = false, py::arg("directions") = 1);
  m.def("cuda_plan", &cuda_plan_dict, py::arg("mode"), py::arg("bytes"), py::arg("H"), py::arg("B") = 1,
        py::arg("tf32") = false, py::arg("projected") = false, py::arg("backward") = false,
        py::arg("capability") = 90, py::arg("multiprocessors") = 132, py::arg("shared_bytes") = 232448,
        py::arg("clusters_of_16") = -1);
  m.def("cuda_kernel", &cuda::forced_kernel);
  m.def("set_cuda_kernel", &cuda::set_kernel, py::arg("name"));
  m.def("set_cuda_device", &cuda::set_device, py::arg("capability"), py::arg("multiprocessors"),
        py::arg("clusters_of_16"));
  m.def("last_cuda_run", &last_cuda_run);
  m.def("cuda_failure", &cuda_failure);
  PyModule_AddFunctions(m.ptr(), direct_methods);
  m.def("math", &math<float>, py::arg("function"), py::arg("x"));
  m.def("math64", &math<double>, py::arg("function"), py::arg("x"));
}
