// The op schemas as text, and their registration; nothing else. Names and order are those of arguments.h.
#include "ops/on_stack.h"
#include "ops/ops.h"
#include "rnnfast_build.h"

using namespace rnnfast;

TORCH_LIBRARY(rnnfast, m) {
  const auto define = [&](const std::string& schema) { m.def(schema.c_str()); };
  const std::string layer =
      "str mode, Tensor x, Tensor h0, Tensor? c0, "
      "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? w_ih_r, Tensor? w_hh_r, Tensor? b_ih_r, Tensor? b_hh_r, Tensor? w_hr_r, "
      "Tensor? batch_sizes, bool batch_first";
  const std::string episodes =
      ", Tensor? lengths=None, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None";
  define("recurrent(" + layer + ", bool save" + episodes +
         ", bool all_states=False, Tensor? h_mask=None, Tensor? zoneout_mask=None) "
         "-> (Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor cells, Tensor cs)");
  define("recurrent_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, " + layer +
         ", Tensor y, Tensor gates, Tensor cells, bool[15] needs" + episodes +
         ", Tensor? dcs=None) "
         "-> (Tensor dx, Tensor dh0, Tensor dc0, "
         "Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dw_hr, "
         "Tensor dw_ih_r, Tensor dw_hh_r, Tensor db_ih_r, Tensor db_hh_r, Tensor dw_hr_r, "
         "Tensor dreset_h, Tensor dreset_c)");

  const std::string deep = "Tensor x, Tensor h0, Tensor[] weights, Tensor[] biases, float negative_slope";
  define("deep_transition(" + deep + ", bool save) -> (Tensor y, Tensor hn, Tensor acts)");
  define("deep_transition_backward(Tensor? dy, Tensor? dhn, " + deep +
         ", Tensor y, Tensor acts, bool need_dx, bool need_dh0) "
         "-> (Tensor dx, Tensor dh0, Tensor[] dweights, Tensor[] dbiases)");
}

namespace {

[[maybe_unused]] void refuse_cuda(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.schema().name(),
              ": this build of rnnfast has no CUDA kernels; install the CUDA toolkit of torch's CUDA version "
              "(nvcc) and build it again with RNNFAST_CUDA=1 pip install --no-build-isolation .");
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnfast, CUDA, m) {
#ifdef RNNFAST_CUDA
  implement<cuda::recurrent>(m, "recurrent");
  implement<cuda::recurrent_backward>(m, "recurrent_backward");
  implement<cuda::deep_transition>(m, "deep_transition");
  implement<cuda::deep_transition_backward>(m, "deep_transition_backward");
#else
  for (const char* op : {"recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  implement<cpu::recurrent>(m, "recurrent");
  implement<cpu::recurrent_backward>(m, "recurrent_backward");
  implement<cpu::deep_transition>(m, "deep_transition");
  implement<cpu::deep_transition_backward>(m, "deep_transition_backward");
}
