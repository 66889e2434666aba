// The op schemas as text, and their registration; nothing else.
#include "ops.h"

#include <torch/library.h>

TORCH_LIBRARY(rnnfast, m) {
  m.def(
      "recurrent(str mode, Tensor x, Tensor h0, Tensor? c0, "
      "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? w_ih_r, Tensor? w_hh_r, Tensor? b_ih_r, Tensor? b_hh_r, Tensor? w_hr_r, "
      "Tensor? batch_sizes, bool batch_first, bool save, "
      "Tensor? lengths=None, Tensor? resets=None, Tensor? h_mask=None, Tensor? zoneout_mask=None) "
      "-> (Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor cells)");
  m.def(
      "recurrent_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, str mode, Tensor x, Tensor h0, Tensor? c0, "
      "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? w_ih_r, Tensor? w_hh_r, Tensor? b_ih_r, Tensor? b_hh_r, Tensor? w_hr_r, "
      "Tensor? batch_sizes, bool batch_first, Tensor y, Tensor gates, Tensor cells, bool[13] needs) "
      "-> (Tensor dx, Tensor dh0, Tensor dc0, "
      "Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dw_hr, "
      "Tensor dw_ih_r, Tensor dw_hh_r, Tensor db_ih_r, Tensor db_hh_r, Tensor dw_hr_r)");
  m.def(
      "deep_transition(Tensor x, Tensor h0, Tensor[] weights, Tensor[] biases, float negative_slope, bool "
      "save) "
      "-> (Tensor y, Tensor hn, Tensor acts)");
  m.def(
      "deep_transition_backward(Tensor? dy, Tensor? dhn, Tensor x, Tensor h0, Tensor[] weights, Tensor[] "
      "biases, "
      "float negative_slope, Tensor y, Tensor acts, bool need_dx, bool need_dh0) "
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
  m.impl("recurrent", &rnnfast::cuda::recurrent);
  m.impl("recurrent_backward", &rnnfast::cuda::recurrent_backward);
  m.impl("deep_transition", &rnnfast::cuda::deep_transition);
  m.impl("deep_transition_backward", &rnnfast::cuda::deep_transition_backward);
#else
  for (const char* op : {"recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  m.impl("recurrent", &rnnfast::recurrent);
  m.impl("recurrent_backward", &rnnfast::recurrent_backward);
  m.impl("deep_transition", &rnnfast::deep_transition);
  m.impl("deep_transition_backward", &rnnfast::deep_transition_backward);
}
