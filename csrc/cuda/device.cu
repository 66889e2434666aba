// What the host asks of the device.
#include <algorithm>
#include <mutex>

#include "cuda/kernels.h"

namespace rnnfast::cuda {

__global__ void probe() {}

// What the kernels were compiled for counts, where that is less than the device: PTX of an older one knows no
// clusters.
Device current_device() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncAttributes compiled{};
  if (cudaFuncGetAttributes(&compiled, probe) != cudaSuccess) compiled.ptxVersion = 0;
  return {std::min(10 * major + minor, compiled.ptxVersion), multiprocessors, bytes, int64_t{1} << 21};
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
