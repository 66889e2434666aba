// What follows from the facts of a device; see facts.h.
#include "facts.h"

namespace rnnfast::device_check {
namespace {

constexpr int kInsufficientDriver = 35, kNoDevice = 100;  // of cudaError_t
constexpr int64_t kWideBytes = 100 * 1024;                // of shared memory, from Ampere on

std::string version(int n, int major) { return std::to_string(n / major) + "." + std::to_string(n % major); }
std::string cuda_version(int n) { return version(n / 10, 100); }

std::string why_it_does_not_run(const Facts& f) {
  if (f.error == kInsufficientDriver && f.driver == 0) return "no NVIDIA driver is installed";
  if (f.error == kInsufficientDriver)
    return "the driver knows CUDA " + cuda_version(f.driver) + ", and this program needs " +
           cuda_version(f.runtime);
  if (f.error == kNoDevice) return "the driver finds no GPU";
  if (f.error) return f.error_text;
  const std::string which = f.name + " has compute capability " + version(f.capability, 10);
  if (f.capability < 80) return which + ", and the kernels need 8.0";
  if (!f.has_code) return which + ", for which this program holds no code";
  return "";
}

}  // namespace

Verdict judge(const Facts& f) {
  const std::string why = why_it_does_not_run(f);
  if (!why.empty()) return {false, "no device: " + why};
  std::string less;
  const auto say = [&](const std::string& what) { less += (less.empty() ? "" : ", ") + what; };
  if (f.name.find("MIG") != std::string::npos) say("a MIG slice, not a whole GPU");
  if (f.multiprocessors < 100)
    say(std::to_string(f.multiprocessors) + " multiprocessors, too few for the largest grids");
  if (f.shared_bytes < kWideBytes)
    say(std::to_string(f.shared_bytes / 1024) + " KB of shared memory, too little for wide layers");
  if (f.capability < 90)
    say("no clusters");
  else if (f.clusters[cuda::kMostBlocks] == 0)
    say("no clusters of 16 blocks");
  return {true, less.empty() ? "" : "less than a whole Hopper: " + less};
}

}  // namespace rnnfast::device_check
