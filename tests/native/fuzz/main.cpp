// Random small layers through the kernels of csrc/cpu, without torch: what the sanitizers look at.
//   fuzz [layers] [seed] [isa, or "" for all] [fault]
//   fuzz math: the functions of the cells instead
// Layer i depends on seed + i alone, so a failure is repeated by `fuzz 1 <seed + i>`, up to how the threads
// met. A fault is planted on purpose, to see that it is found: short, race, mxcsr, differs, wrong.
//
// Every array is a heap block of exactly the size that params.h gives it. Each call is made alone and by a
// team on a random plan; the results must be equal bit for bit, near a plain scalar computation in double,
// and its gradients near the slope of that computation. What nobody wrote is NaN.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "deep.h"
#include "functions.h"
#include "products.h"
#include "recurrent.h"
#include "world.h"

namespace {

Pool* pool;

// one of the set's, where it has others for many rows
const Kernels& kernels_of(const std::string& isa) {
  set_isa(isa);
  const Kernels& k = kernels();
  return k.in_parts && rng.one_in(2) ? k.in_parts[rng.in(0, kPrecisions - 1)] : k;
}

std::string said(const Kernels& k) {
  return k.name + (k.products ? ", products of floats by " + std::to_string(k.products) : "");
}

void one_layer(uint64_t seed, const std::string& isa) {
  rng.engine.seed(seed);
  const std::vector<std::string> all = isa.empty() ? isas() : std::vector<std::string>{isa};
  const Kernels& k = kernels_of(all[rng.in(0, all.size() - 1)]);
  // what one set saves suits all others
  const Kernels& k_backward = rng.one_in(4) ? kernels_of(all[rng.in(0, all.size() - 1)]) : k;
  std::snprintf(layer_text, sizeof layer_text, "fuzz 1 %llu \"%s\": %s (backward %s), ",
                static_cast<unsigned long long>(seed), isa.c_str(), said(k).c_str(),
                said(k_backward).c_str());
  call_text[0] = 0;
  const bool wide = rng.one_in(2);
  const int64_t kind = rng.in(0, 19);
  if (kind == 0)
    wide ? product<double>(k) : product<float>(k);
  else if (kind <= 4)
    wide ? deep<double>(k, k_backward) : deep<float>(k, k_backward);
  else if (kind <= 7 && k.bf16)
    recurrent<Bfloat16>(k, k_backward);
  else
    wide ? recurrent<double>(k, k_backward) : recurrent<float>(k, k_backward);
}

}  // namespace

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc f,
                                             void* context) {
  return pool->run(begin, end, f, context) ? 0 : 1;
}

extern "C" AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = kThreads;
  return 0;
}

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "math") return math_is_right() ? 0 : 1;
  const int64_t layers = argc > 1 ? std::atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::string isa = argc > 3 ? argv[3] : "";
  if (argc > 4) fault = argv[4];
  std::signal(SIGABRT, [](int) { print_where(); });
  const auto start = std::chrono::steady_clock::now();
  Pool threads;
  pool = &threads;
  for (int64_t i = 0; i < layers; ++i) one_layer(seed + i, isa);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%lld layers, %lld of %lld calls by a team of more than one member, %.1f s\n",
              static_cast<long long>(layers), static_cast<long long>(teams), static_cast<long long>(calls),
              seconds.count());
}
