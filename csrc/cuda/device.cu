// What the host asks of the device.
#include <mutex>

#include "cuda/kernels.h"

namespace rnnfast::cuda {

Device current_device() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return {10 * major + minor, multiprocessors, bytes, int64_t{1} << 21};
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
  if (!word && cudaHostAlloc(&word, sizeof *word, cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess)
    *word = 0;
  return word;
}

}  // namespace rnnfast::cuda
