// What the fuzz stands on: how it fails, the numbers it draws, and a machine that misbehaves, in the place of
// torch's pool.
#pragma once
#include "cpu/team.cpp"  // not linked but included: its solitude would send most calls alone

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/plan.h"

using namespace rnnfast;

// Each ends by abort, which prints the layer too. Leaks need more rights than a container may give.
extern "C" const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }
extern "C" const char* __tsan_default_options() { return "abort_on_error=1:halt_on_error=1"; }

namespace {

constexpr int kThreads = 8;
std::string fault;
char layer_text[400], call_text[100];  // what to print when something fails

void print_where() { std::fprintf(stderr, "fuzz: %s\nfuzz: %s\n", layer_text, call_text); }

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  std::va_list list;
  va_start(list, format);
  static std::mutex first;  // for good: other threads have nothing to add
  first.lock();
  std::fputs("fuzz: ", stderr);
  std::vfprintf(stderr, format, list);
  std::fputs("\n", stderr);
  print_where();
  std::_Exit(1);
}

__attribute__((format(printf, 1, 2))) void describe(const char* format, ...) {
  std::va_list list;
  va_start(list, format);
  const size_t length = std::strlen(layer_text);
  std::vsnprintf(layer_text + length, sizeof layer_text - length, format, list);
  va_end(list);
}

struct Random {
  std::mt19937_64 engine;
  int64_t in(int64_t low, int64_t high) { return low + static_cast<int64_t>(engine() % (high - low + 1)); }
  bool one_in(int n) { return engine() % n == 0; }
  double real() { return std::ldexp(static_cast<double>(engine() >> 11), -52) - 1; }  // of [-1, 1)
  std::vector<double> reals(int64_t n, double scale = 1) {
    std::vector<double> v(n);
    for (double& x : v) x = scale * real();
    return v;
  }
} rng;

// What a call finds in MXCSR, as torch.set_flush_denormal may have left it, and must leave there. The flags
// of past exceptions are put back only by those that flush.
struct Mxcsr {
  unsigned value = 0x1f80, compared = ~0x3fu;
#if defined(__x86_64__)
  void set() const { _mm_setcsr(value); }
  void check(const char* thread) const {
    const unsigned now = _mm_getcsr();
    _mm_setcsr(0x1f80);
    if ((now ^ value) & compared)
      fail("MXCSR of %s is 0x%x after a call, 0x%x before it", thread, now, value);
  }
  static void spoil() { _mm_setcsr(_mm_getcsr() ^ 0x2000); }
#else
  void set() const {}
  void check(const char*) const {}
  static void spoil() {}
#endif
} mxcsr;

// In the place of torch's pool: threads that stay, and often what happens only on a busy machine. Fewer
// threads than asked for stand for several each, they come late and in any order, and one may come twice; or
// none comes at all.
class Pool {
 public:
  Pool() {
    for (int i = 1; i < kThreads; ++i) threads_.emplace_back([this] { serve(); });
  }
  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // false: nothing was done
  bool run(int64_t begin, int64_t end, ParallelFunc f, void* context) {
    if (rng.one_in(50)) return false;
    std::vector<int64_t> cuts;
    for (int64_t i = begin + 1; i < end; ++i) cuts.push_back(i);
    std::shuffle(cuts.begin(), cuts.end(), rng.engine);
    if (rng.one_in(3)) cuts.resize(rng.in(0, cuts.size()));
    cuts.push_back(end);
    std::sort(cuts.begin(), cuts.end());
    std::vector<Job> jobs;
    for (const int64_t cut : cuts) {
      const int64_t late = rng.one_in(4) ? rng.in(1, 80) : 0;
      jobs.push_back({begin, cut, f, context, std::chrono::microseconds(late)});
      begin = cut;
    }
    std::shuffle(jobs.begin() + 1, jobs.end(), rng.engine);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.assign(jobs.begin() + 1, jobs.end());
      left_ = jobs_.size();
    }
    wake_.notify_all();
    work(jobs[0], "the caller");
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
    return true;
  }

 private:
  struct Job {
    int64_t begin, end;
    ParallelFunc f;
    void* context;
    std::chrono::microseconds late;
  };

  static void work(const Job& job, const char* thread) {
    if (job.late.count()) std::this_thread::sleep_for(job.late);
    mxcsr.set();
    job.f(job.begin, job.end, job.context);
    if (fault == "mxcsr") Mxcsr::spoil();
    mxcsr.check(thread);
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return over_ || !jobs_.empty(); });
      if (over_) return;
      const Job job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      work(job, "a pool's thread");
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job> jobs_;
  size_t left_ = 0;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace
