// Lengths and resets of a layer as the kernels of a GPU read them, and what they make of rows. Nothing here
// reads what lengths are: the host would have to wait for it.
#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/where.h>

#include <array>

#include "cuda/kernels.h"
#include "ops/checks.h"
#include "ops/cuda_tensors.h"

namespace rnnfast::cuda {

struct DeviceEpisodes {
  Tensor lengths;           // int64 [B] or None
  Tensor resets;            // bool, of each row of x, or None
  Tensor reset_h, reset_c;  // [D, B, P], [D, B, H] in the accumulation dtype; None without resets

  DeviceEpisodes(const char* op, const LayerSizes& s, const EpisodeArguments& a, const Tensor& x) {
    if (const Tensor& n = a.lengths; n.defined() && n.device() != x.device()) {
      TORCH_CHECK(!capturing(current_stream(x.device())), op, ": lengths is on ", n.device(), ", expected ",
                  x.device(),
                  " while a CUDA graph is captured: its replay would copy what is no longer there");
      lengths = n.contiguous().pin_memory().to(x.device(), /*non_blocking=*/true);
    } else {
      lengths = dense(n);
    }
    if (!a.resets.defined()) return;
    resets = a.resets.contiguous();
    const at::TensorOptions options = x.options().dtype(accumulation_type(x));
    const auto of_each_row = [&](const Tensor& state, int64_t units) {
      const std::array<int64_t, 3> size{s.D, s.B, units};
      return state.defined() ? state.to(options.dtype()).expand(size).contiguous() : at::zeros(size, options);
    };
    reset_h = of_each_row(a.reset_h, s.P);
    if (s.has_cell) reset_c = of_each_row(a.reset_c, s.H);
  }

  // the parameters of a kernel, of direction d
  template <class A>
  Resets<A> of_direction(const LayerSizes& s, int64_t d) const {
    return {in<bool>(resets), in<A>(reset_h, d * s.B * s.P), in<A>(reset_c, d * s.B * s.H), nullptr, nullptr};
  }

  // of each row of x, [T, B] or batch first [B, T]: its time step
  Tensor times(const LayerSizes& s) const {
    const Tensor steps = at::arange(s.T, lengths.options());
    return s.batch_first ? steps : steps.unsqueeze(1);
  }
  // of each sequence, as one of times()
  Tensor of_sequences(const LayerSizes& s, const Tensor& t) const {
    return s.batch_first ? t.unsqueeze(1) : t;
  }

  // the rows of x or the like, [N, .], with zeros in those that come after their sequence's end
  Tensor without_beyond(const LayerSizes& s, const Tensor& rows) const {
    if (!lengths.defined()) return rows;
    return rows.masked_fill(times(s).ge(of_sequences(s, lengths)).view({s.N, 1}), 0);
  }
};

// The state that each row of y (of one direction) started from, in y's order
inline Tensor previous_states(const LayerSizes& s, const Walk& walk, const DeviceEpisodes& episodes,
                              const Tensor& y, const Tensor& h0, int64_t d) {
  const Tensor first = h0.to(y.scalar_type());
  if (s.packed) {
    // rows of [h0, y]
    const Tensor from = at::empty({s.N}, at::kLong);
    int64_t* const index = from.mutable_data_ptr<int64_t>();
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t b = 0; b < walk.sizes[t]; ++b)
        index[walk.offsets[t] + b] = b >= walk.begins(t) ? b : s.B + walk.row(walk.before(t), b);
    return at::index_select(at::cat({first, y.narrow(1, d * s.P, s.P)}), 0, on_device(from, y));
  }
  const int64_t time = s.batch_first ? 1 : 0;
  const Tensor rest = y.narrow(2, d * s.P, s.P).narrow(time, walk.reverse ? 1 : 0, s.T - 1);
  const Tensor begin = first.unsqueeze(time);
  Tensor states = walk.reverse ? at::cat({rest, begin}, time) : at::cat({begin, rest}, time);
  if (episodes.lengths.defined() && walk.reverse) {
    const Tensor last = episodes.of_sequences(s, episodes.lengths.sub(1));
    states = at::where(episodes.times(s).eq(last).unsqueeze(2), begin, states);
  }
  if (episodes.resets.defined())
    states = at::where(episodes.resets.unsqueeze(2), episodes.reset_h[d].to(y.scalar_type()).unsqueeze(time),
                       states);
  return episodes.without_beyond(s, states.view({s.N, s.P}));
}

}  // namespace rnnfast::cuda
