// A random deep-transition RNN, beside a plain scalar computation in double; and its gradients.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "products.h"
#include "rows.h"

namespace {

// y, h_n of the deep-transition RNN; in: x, h0, then the weights, then the biases
template <class A>
Numbers deep_reference(const DeepParams<A>& p, const Numbers& in) {
  Numbers out{std::vector<double>(p.walk.total * p.H), in[1]};
  for (int64_t t = 0; t < p.walk.steps; ++t)
    for (int64_t b = 0; b < p.walk.batch; ++b) {
      const double* const x = in[0].data() + p.walk.row(t, b) * p.I;
      double* const h = out[1].data() + b * p.H;
      std::vector<double> read(x, x + p.I), value;
      read.insert(read.end(), h, h + p.H);
      for (int l = 0; l < p.depth; ++l, read = value) {
        value.assign(p.width[l], 0);
        for (int64_t j = 0; j < p.width[l]; ++j) {
          value[j] = p.b[l] ? in[2 + p.depth + l][j] : 0;
          for (size_t i = 0; i < read.size(); ++i) value[j] += in[2 + l][j * read.size() + i] * read[i];
          if (l + 1 < p.depth && value[j] < 0) value[j] *= p.slope;
        }
      }
      std::copy(value.begin(), value.end(), h);
      std::copy(value.begin(), value.end(), out[0].begin() + p.walk.row(t, b) * p.H);
    }
  return out;
}

template <class A>
void deep(const Kernels& k, const Kernels& k_backward) {
  const Rows rows(true, 0);
  const int64_t N = rows.walk.total, B = rows.walk.batch;
  const bool save = !rng.one_in(4), biased = rng.one_in(2), flush = sizeof(A) == 4;
  DeepParams<A> p{};
  p.walk = rows.walk;
  p.depth = static_cast<int>(rng.in(1, 4));
  p.I = rng.one_in(50) ? 0 : rng.in(1, 40);
  for (int l = 0; l < p.depth; ++l) p.width[l] = rng.in(1, 40);
  const int last = p.depth - 1;
  const int64_t I = p.I, H = p.H = p.width[last];
  p.slope = rng.one_in(4) ? A(0) : A(0.125);
  describe("deep of %zu bytes, %s, T %ld, B %ld, I %ld, widths %ld %ld %ld %ld, depth %d%s%s", sizeof(A),
           rows.name, long(p.walk.steps), long(B), long(I), long(p.width[0]), long(p.width[1]),
           long(p.width[2]), long(p.width[3]), p.depth, biased ? ", biases" : "", save ? ", save" : "");

  Numbers in{rng.reals(N * I), rng.reals(B * H)};
  for (int l = 0; l < p.depth; ++l) {
    const int64_t reads = l ? p.width[l - 1] : I + H;
    in.push_back(rng.reals(p.width[l] * reads, 1.5 / std::sqrt(static_cast<double>(reads))));
  }
  for (int l = 0; l < p.depth; ++l) in.push_back(rng.reals(biased ? p.width[l] : 0));
  std::vector<Input<A>> inputs;
  for (std::vector<double>& numbers : in) inputs.emplace_back(numbers);
  p.x = inputs[0].get(), p.h0 = inputs[1].get();
  for (int l = 0; l < p.depth; ++l) p.w[l] = inputs[2 + l].get(), p.b[l] = inputs[2 + p.depth + l].get();

  const auto takes = [&](DeepParams<A>& q, Outputs& o) {
    q.y = o.take<A>("y", N, H);
    q.hn = o.take<A>("hn", B, H);
    for (int l = 0; l < last && save; ++l) q.acts[l] = o.take_padded<A>("acts", N, q.width[l], 0);
  };
  const Outputs kept =
      run_both<DeepParams<A>>("deep_forward", p, nullptr, true, flush, takes,
                              [&](const DeepParams<A>* q, Plan plan, void* workspace, Team::Member* member) {
                                return k.of(A()).deep_forward(*q, plan, workspace, member);
                              });
  const Numbers expected = deep_reference(p, in);
  const double near = tolerance<A>(k, 1e-9, 1e-4, 0.1);
  check_near("y", doubles(p.y, N, H, H), expected[0], near);
  check_near("hn", doubles(p.hn, B, H, H), expected[1], near);
  if (!save) return;

  Numbers d{rng.reals(N * H), rng.reals(B * H)};
  const Input<A> dy(d[0]), dhn(d[1]);
  p.dy = dy.get(), p.dhn = dhn.get();
  if (rng.one_in(8)) p.dy = nullptr, d[0].clear();
  if (rng.one_in(8)) p.dhn = nullptr, d[1].clear();
  const auto takes_backward = [&](DeepParams<A>& q, Outputs& o) {
    for (int l = 0; l < q.depth; ++l) q.da[l] = o.take<A>("da", N, q.width[l]);
    q.dh0 = o.take<A>("dh0", B, H);
  };
  const Outputs kept_backward =
      run_both<DeepParams<A>>("deep_backward", p, nullptr, true, flush, takes_backward,
                              [&](const DeepParams<A>* q, Plan plan, void* workspace, Team::Member* member) {
                                return k_backward.of(A()).deep_backward(*q, plan, workspace, member);
                              });

  const int64_t W = p.width[0];
  Numbers g(in.size());
  g[0] = multiplied<A>(k, N, I, W, p.da[0], W, false, p.w[0], I + H);
  g[1] = doubles(p.dh0, B, H, H);
  const std::vector<double> of_x = multiplied<A>(k, W, I, N, p.da[0], W, true, p.x, I);
  std::vector<const void*> previous(N);
  previous_states(p.walk, bytes_of(p.h0, H), bytes_of(p.y, H), nullptr, {}, previous.data());
  const std::vector<double> of_h = multiplied<A>(k, W, H, N, p.da[0], W, true, nullptr, 0, previous.data());
  for (int64_t j = 0; j < W; ++j) {
    g[2].insert(g[2].end(), of_x.begin() + j * I, of_x.begin() + (j + 1) * I);
    g[2].insert(g[2].end(), of_h.begin() + j * H, of_h.begin() + (j + 1) * H);
  }
  for (int l = 1; l < p.depth; ++l)
    g[2 + l] = multiplied<A>(k, p.width[l], p.width[l - 1], N, p.da[l], p.width[l], true, p.acts[l - 1],
                             padded(p.width[l - 1]));
  for (int l = 0; l < p.depth && biased; ++l)
    g[2 + p.depth + l] = column_sums(doubles(p.da[l], N, p.width[l], p.width[l]), p.width[l]);
  const double near_too = std::max(gradient_tolerance<A>(k), gradient_tolerance<A>(k_backward));
  check_gradients(in, g, near_too, [&](const Numbers& at) {
    const Numbers out = deep_reference(p, at);
    return dot(d[0], out[0]) + dot(d[1], out[1]);
  });
}

}  // namespace
