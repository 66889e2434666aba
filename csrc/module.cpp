// The pybind11 module: what was built, what is chosen, what ran, and measurements of the machine. Importing it also
// registers the ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <chrono>

#include "launch.h"

namespace py = pybind11;
using namespace rnnfast;

namespace {

py::dict build_info() {
  py::dict d;
  d["compiler"] = __VERSION__;
  d["torch"] = TORCH_VERSION;
  d["cuda"] = false;
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

int gates_of(const std::string& mode) {
  if (mode == "lstm") return 4;
  if (mode == "gru") return 3;
  if (mode == "rnn_tanh" || mode == "rnn_relu") return 1;
  throw std::runtime_error("mode is '" + mode + "', expected one of lstm, gru, rnn_tanh, rnn_relu");
}

// The plan that a call of this shape would take with `threads` threads (0: those it would have now)
py::dict plan_dict(const std::string& mode, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t N,
                   bool packed, bool wide, int threads) {
  const Shape shape{T,      B, N, I, H, P, gates_of(mode), P == H ? 1 : 2, kernels().vector_bytes / (wide ? 8 : 4),
                    packed};
  const Plan plan = threads > 0 ? make_plan(shape, threads) : choose_plan(shape);
  py::dict d;
  d["split"] = name_of(plan.split);
  d["parts"] = plan.parts;
  d["isa"] = kernels().name;
  d["forced"] = threads <= 0 && !forced_split().empty();
  return d;
}

template <class A>
py::array_t<A> math(const std::string& function, py::array_t<A, py::array::c_style | py::array::forcecast> x) {
  if (function != "exp" && function != "sigmoid" && function != "tanh")
    throw std::runtime_error("function is '" + function + "', expected exp, sigmoid or tanh");
  py::array_t<A> y(x.size());
  kernels().of(A()).math(function[0], x.data(), y.mutable_data(), x.size());
  return y;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs work(member) on up to `threads` threads and returns members and seconds.
template <class F>
std::pair<int, double> timed_team(int threads, F work) {
  int members = 1;
  const double seconds = seconds_of([&] {
    members = Team::run(
        threads, false, [](void* f, Team::Member& m) noexcept { (*static_cast<F*>(f))(m); }, &work);
  });
  return {members, seconds};
}

volatile float sink;

// float32 operations a second, all threads together: independent multiply-adds in registers
double measure_fma(int threads) {
  const Kernels& k = kernels();
  constexpr int64_t kRounds = 2'000'000;
  const auto [members, seconds] = timed_team(threads, [&](Team::Member&) { sink = k.multiply_adds(kRounds); });
  return 2.0 * members * kRounds * 16 * (k.vector_bytes / 4) / seconds;
}

// bytes a second, all threads together, each reading a block of its own of `bytes` bytes again and again
double measure_read(int64_t bytes, int threads) {
  const Kernels& k = kernels();
  const int64_t n = bytes / 4, times = std::max<int64_t>(1, (int64_t(1) << 28) / std::max<int64_t>(1, bytes));
  std::vector<std::vector<float>> blocks(std::max(1, threads), std::vector<float>(n, 1.f));
  double start = 0;
  const auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
  double end = 0;
  const auto [members, seconds] = timed_team(threads, [&](Team::Member& m) {
    const float* block = blocks[m.rank].data();
    sink = k.read(block, n);
    m.barrier();
    if (m.rank == 0) start = now();
    for (int64_t i = 0; i < times; ++i) sink = k.read(block, n);
    m.barrier();
    if (m.rank == 0) end = now();
  });
  return double(members) * bytes * times / (end - start);
}

// seconds of one barrier of the team
double measure_barrier(int threads) {
  constexpr int kTimes = 100'000;
  return timed_team(threads, [&](Team::Member& m) {
           for (int i = 0; i < kTimes; ++i) m.barrier();
         }).second / kTimes;
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
  m.def("threads", &Team::usable_threads);
  m.def("plan", &plan_dict, py::arg("mode"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"),
        py::arg("N"), py::arg("packed") = false, py::arg("wide") = false, py::arg("threads") = 0);
  m.def("math", &math<float>, py::arg("function"), py::arg("x"));
  m.def("math64", &math<double>, py::arg("function"), py::arg("x"));
  m.def("measure_fma", &measure_fma, py::arg("threads"));
  m.def("measure_read", &measure_read, py::arg("bytes"), py::arg("threads"));
  m.def("measure_barrier", &measure_barrier, py::arg("threads"));
}
