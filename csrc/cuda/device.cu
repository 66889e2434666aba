// What the host asks of the device.
#include <algorithm>
#include <map>
#include <mutex>

#include "cuda/kernels.h"

namespace rnnfast::cuda {

namespace {

__global__ void probe() {}

// What the kernels were compiled for counts, where that is less than the device: PTX of an older one knows no
// clusters.
Device describe(int device) {
  int major = 0, minor = 0, multiprocessors = 0, bytes = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncAttributes compiled{};
  if (cudaFuncGetAttributes(&compiled, probe) != cudaSuccess) compiled.ptxVersion = 0;
  Device found{std::min(10 * major + minor, compiled.ptxVersion), multiprocessors, bytes, kPatience, {}};
  if (found.capability < 90) return found;
  // blocks of the largest size, which run alone on a multiprocessor
  cudaFuncSetAttribute(probe, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  for (unsigned n = 1; n <= kMostBlocks; ++n) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {n, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(n);
    config.blockDim = dim3(32 * kMostWarps);
    config.dynamicSmemBytes = bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&found.clusters[n], probe, &config) != cudaSuccess)
      found.clusters[n] = 0;
  }
  cudaGetLastError();  // a size that this device does not have is no error
  return found;
}

}  // namespace

Device current_device() {
  static std::mutex mutex;
  static std::map<int, Device> known;
  int device = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, describe(device)).first->second;
}

bool capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return status != cudaStreamCaptureStatusNone;
}

uint32_t* failure_word() {
  static std::mutex mutex;
  static uint32_t* word = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!word) {
    // a graph that is being captured need not know: the word lives as long as the process
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (cudaHostAlloc(&word, sizeof *word, cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess)
      *word = 0;
    cudaThreadExchangeStreamCaptureMode(&mode);
  }
  return word;
}

}  // namespace rnnfast::cuda
