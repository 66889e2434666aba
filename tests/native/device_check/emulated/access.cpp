// The checks' device is this host; see device.h. RNNFAST_STUB makes it a worse one, faults separated by
// commas:
//   wrong=NAME hang=NAME fault=NAME   what one check meets
//   no-driver driver=12020 no-gpu no-image mig capability=80 multiprocessors=14 shared=49152   what it is
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include "cuda/plan.h"
#include "cuda/primitives.cuh"
#include "device.h"

namespace rnnfast {
namespace {

const std::map<std::string, std::string>& faults() {
  static const std::map<std::string, std::string> all = [] {
    std::map<std::string, std::string> found;
    const char* const text = std::getenv("RNNFAST_STUB");
    std::istringstream words(text ? text : "");
    for (std::string word; std::getline(words, word, ',');) {
      const size_t equals = word.find('=');
      found[word.substr(0, equals)] = equals == word.npos ? "" : word.substr(equals + 1);
    }
    return found;
  }();
  return all;
}
bool has(const char* fault) { return faults().contains(fault); }
int number(const char* fault, int otherwise) {
  const auto found = faults().find(fault);
  return found == faults().end() ? otherwise : std::atoi(found->second.c_str());
}

std::string now_checking;
bool is_now(const char* fault) {
  const auto found = faults().find(fault);
  return found != faults().end() && found->second == now_checking;
}

struct Nothing {
  const float* numbers;
};
void hang(Nothing) {
  for (;;) cuda::pause(1);
}
void misread(Nothing n) { cuda::load_chunk(n.numbers + 1); }

}  // namespace

namespace cuda {

Device current_device() {
  return assumed_device(number("capability", 90), number("multiprocessors", 132), number("shared", 232448));
}
bool capturing(void*) { return false; }
uint32_t* failure_word() {
  static uint32_t word = 0;
  return &word;
}

}  // namespace cuda

namespace device_check {

Facts probe() {
  constexpr int kInsufficientDriver = 35, kNoDevice = 100, kVersion = 13000;
  const cuda::Device device = cuda::current_device();
  Facts f;
  f.driver = has("no-driver") ? 0 : number("driver", kVersion), f.runtime = kVersion;
  f.error = f.driver < f.runtime ? kInsufficientDriver : has("no-gpu") ? kNoDevice : 0;
  f.name = has("mig") ? "an emulated device MIG 1g.10gb" : "an emulated device";
  f.capability = device.capability, f.multiprocessors = device.multiprocessors;
  f.has_code = !has("no-image");
  f.shared_bytes = device.shared_bytes;
  std::copy(std::begin(device.clusters), std::end(device.clusters), f.clusters);
  return f;
}

bool is_emulated() { return true; }
void starts(const std::string& check) { now_checking = check; }

void* allocate(size_t bytes) {
  void* const p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!p) throw Failure("out of memory");
  return p;
}
void release(void* p) { std::free(p); }
void copy_in(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void copy_out(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  if (!is_now("wrong")) return;
  now_checking.clear();  // one number of one copy
  const size_t word = sizeof(uint32_t), middle = bytes / word / 2 * word;
  for (size_t i = 0; i < word; ++i) static_cast<unsigned char*>(to)[middle + i] ^= 0xff;
}
void fill(void* p, int byte, size_t bytes) { std::memset(p, byte, bytes); }

void synchronize() {
  alignas(16) static const float numbers[8] = {};
  if (is_now("hang")) cuda::launch(hang, 1, cuda::kLanes, nullptr, Nothing{});
  if (is_now("fault")) cuda::launch(misread, 1, cuda::kLanes, nullptr, Nothing{numbers});
}

double microseconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
  return time.count();
}

}  // namespace device_check
}  // namespace rnnfast
