// The choice among instruction sets; see dispatch.h.
#include "cpu/dispatch.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef RNNFAST_X86
#include <cpuid.h>
#endif
#if defined(RNNFAST_X86) && defined(__linux__)
#include <syscall.h>
#endif
#if defined(RNNFAST_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(RNNFAST_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace rnnfast {

namespace generic {
extern const Kernels kKernels;
}
#ifdef RNNFAST_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const LayerKernels<Bfloat16> kLayer;
}
namespace amx_bf16 {
extern const LayerKernels<Bfloat16> kLayer;
extern const FloatsInParts kFloats[kPrecisions];
}  // namespace amx_bf16
#endif
#ifdef RNNFAST_ARM
namespace neon {
extern const Kernels kKernels;
}
#endif
#ifdef RNNFAST_ARM_BF16
namespace neon_bf16 {
extern const LayerKernels<Bfloat16> kLayer;
}
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool usable;
};

// a set that has layers of bfloat16 beside what another one has
Kernels with_bf16(Kernels k, const char* name, const LayerKernels<Bfloat16>& bf16, bool matrix_unit) {
  k.name = name;
  k.bf16 = &bf16;
  k.matrix_unit = matrix_unit;
  return k;
}

#ifdef RNNFAST_X86
// older compilers do not ask for it by name
bool has_f16c() {
  constexpr unsigned kF16c = 1u << 29;  // leaf 1, ecx
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & kF16c);
}

// Whether there is a matrix unit for bfloat16, and the system lets this process use it: its registers are
// 8 KiB that a thread which never asks need not keep.
bool has_amx() {
#ifdef __linux__
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // leaf 7, edx
  constexpr long kRequest = 0x1023, kTileData = 18;            // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBfloat16) && (d & kTiles) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#ifdef RNNFAST_ARM_BF16
bool has_neon_bf16() {
#ifdef __linux__
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found != 0;
#else
  return false;
#endif
}
#endif

const std::vector<Candidate>& candidates() {
#ifdef RNNFAST_X86
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  static const Kernels avx512_bf16 =
      with_bf16(avx512::kKernels, "avx512_bf16", avx512_bf16::kLayer, /*matrix_unit=*/false);
  static const Kernels with_unit =
      with_bf16(avx512::kKernels, "amx_bf16", amx_bf16::kLayer, /*matrix_unit=*/true);
  static const std::array<Kernels, kPrecisions> in_parts = [] {
    std::array<Kernels, kPrecisions> all;
    for (int i = 0; i < kPrecisions; ++i) {
      all[i] = with_unit;
      all[i].f32 = amx_bf16::kFloats[i].kernels, all[i].products = amx_bf16::kFloats[i].products;
    }
    return all;
  }();
  static const Kernels amx_bf16 = [] {
    Kernels k = with_unit;
    k.in_parts = in_parts.data();
    return k;
  }();
#endif
#ifdef RNNFAST_ARM_BF16
  static const Kernels neon_bf16 =
      with_bf16(neon::kKernels, "neon_bf16", neon_bf16::kLayer, /*matrix_unit=*/false);
#endif
  static const std::vector<Candidate> all = {
      {&generic::kKernels, true},
#ifdef RNNFAST_X86
      {&avx2::kKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()},
      {&avx512::kKernels, avx512},
      {&avx512_bf16, bf16},
      {&amx_bf16, bf16 && has_amx()},
#endif
#ifdef RNNFAST_ARM
      {&neon::kKernels, true},
#endif
#ifdef RNNFAST_ARM_BF16
      {&neon_bf16, has_neon_bf16()},
#endif
  };
  return all;
}

const Kernels* find(const std::string& name) {
  for (const Candidate& c : candidates())
    if (name == c.kernels->name && c.usable) return c.kernels;
  const auto listed = [](const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& one : names) text += (text.empty() ? "" : ", ") + one;
    return text;
  };
  throw std::runtime_error("instruction set '" + name + "' cannot run here: built are " +
                           listed(built_isas()) + ", this processor has " + listed(isas()));
}

const Kernels* choose() {
  if (const char* forced = std::getenv("RNNFAST_ISA"); forced && *forced) return find(forced);
  const Kernels* best = nullptr;
  for (const Candidate& c : candidates())
    if (c.usable) best = c.kernels;
  return best;
}

std::atomic<const Kernels*> current{nullptr};

enum class Invariance { kBySize, kOff, kOn };

std::atomic<Invariance>& batch_invariant() {
  static std::atomic<Invariance> value = [] {
    const char* const asked = std::getenv("RNNFAST_BATCH_INVARIANT");
    if (!asked || !*asked) return Invariance::kBySize;
    return std::string(asked) == "0" ? Invariance::kOff : Invariance::kOn;
  }();
  return value;
}

// Whether of the unit's 16 rows and 32 numbers of k enough are used. Limits here and below: measured on
// Granite Rapids, docs/design.md.
bool fills_unit(int64_t batch, int64_t units) {
  constexpr int64_t kRows = 8, kUnits = 64;
  return batch >= kRows && units >= kUnits;
}

// Whether to read W in bfloat16 soon outweighs that it is rounded once a call, with any number of rows
bool reads_less(int64_t units, int64_t steps) {
  constexpr int64_t kUnits = 128, kSteps = 8;
  return units >= kUnits && steps >= kSteps;
}

// Whether all of float32 is had sooner by the unit: W is split once a call, and six products take the place
// of a multiply-add
bool pays(int64_t batch, int64_t units, int64_t steps) {
  const double rows = static_cast<double>(batch);  // products with it may exceed an integer
  return batch >= 16 && units >= 128 &&
         ((steps >= 32 && rows * units >= 4096) || (batch >= 32 && units >= 256 && rows * steps >= 256));
}

}  // namespace

int64_t second_cache() {
  static const int64_t bytes = [] {
    constexpr long kUsual = 1 << 20, kMost = 4 << 20;
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    const long found = 0;
#endif
    return std::min(found > 0 ? found : kUsual, kMost);
  }();
  return bytes;
}

const Kernels& kernels() {
  const Kernels* now = current.load(std::memory_order_acquire);
  if (!now) current.store(now = choose(), std::memory_order_release);
  return *now;
}

bool may_take_unit(int64_t batch, int64_t units, int64_t steps) {
  return fills_unit(batch, units) || reads_less(units, steps);
}

const Kernels& kernels_for(int64_t batch, int64_t units, int64_t steps, Precision precision) {
  const Kernels& k = kernels();
  const bool suits =
      fills_unit(batch, units) || (precision == Precision::kBfloat16 && reads_less(units, steps));
  if (!k.in_parts || !suits) return k;
  const Invariance asked = batch_invariant().load();
  const bool invariant =
      asked == Invariance::kOn ||
      (asked == Invariance::kBySize && precision == Precision::kFloat32 && !pays(batch, units, steps));
  return invariant ? k : k.in_parts[static_cast<int>(precision)];
}

void set_batch_invariant(std::optional<bool> on) {
  batch_invariant().store(!on ? Invariance::kBySize : *on ? Invariance::kOn : Invariance::kOff);
}

void set_isa(const std::string& name) { current.store(name.empty() ? choose() : find(name)); }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates())
    if (c.usable) names.push_back(c.kernels->name);
  return names;
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.push_back(c.kernels->name);
  return names;
}

}  // namespace rnnfast
