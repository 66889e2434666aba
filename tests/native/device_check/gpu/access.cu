// The checks' device is a GPU; see device.h.
#include <algorithm>

#include "device.h"

namespace rnnfast::device_check {
namespace {

__global__ void nothing() {}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw Failure(cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr of, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, of, device);
  return value;
}

}  // namespace

Facts probe() {
  Facts f;
  cudaDriverGetVersion(&f.driver);
  cudaRuntimeGetVersion(&f.runtime);
  int count = 0, device = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  cudaDeviceProp properties{};
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  f.error = error, f.error_text = cudaGetErrorString(error);
  if (error != cudaSuccess) return f;
  f.name = properties.name;
  f.capability = 10 * properties.major + properties.minor;
  f.multiprocessors = properties.multiProcessorCount;
  f.shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  f.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  f.l2_bytes = properties.l2CacheSize;
  f.clock_khz = attribute(cudaDevAttrClockRate, device);
  cudaFuncAttributes compiled{};
  f.has_code = cudaFuncGetAttributes(&compiled, nothing) == cudaSuccess;
  if (f.has_code) {
    const cuda::Device known = cuda::current_device();
    std::copy(std::begin(known.clusters), std::end(known.clusters), f.clusters);
  }
  cudaGetLastError();
  return f;
}

bool is_emulated() { return false; }
void starts(const std::string&) {}

void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes));
  return p;
}
void release(void* p) { cudaFree(p); }
void copy_in(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
void copy_out(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
void fill(void* p, int byte, size_t bytes) { check(cudaMemset(p, byte, bytes)); }

void synchronize() {
  check(cudaGetLastError());
  check(cudaDeviceSynchronize());
  check(cudaGetLastError());
}

double microseconds(const std::function<void()>& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  check(cudaEventRecord(begin));
  work();
  check(cudaEventRecord(end));
  synchronize();
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return 1000.0 * milliseconds;
}

}  // namespace rnnfast::device_check
