// device_check: which kernel is right, wrong, hangs or faults on this GPU, and how long things take.
//   device_check device        what the device is: a line of JSON
//   device_check list [KIND]   the names of all checks, or of a kind's
//   device_check run NAME...   runs them: a line of JSON for each
// Exits with 0; 1 where something is wrong; 2 for a request that it does not understand; 77 where there is no
// device to run on.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <utility>

#include "checks.h"
#include "cuda/plan.h"
#include "device.h"

namespace rnnfast::device_check {
namespace {

constexpr int kWrongExit = 1, kUsageExit = 2, kNoDeviceExit = 77;

// Members of an object, in their order
class Json {
 public:
  Json& text(const char* key, const std::string& value) {
    std::string quoted = "\"";
    for (const char c : value) {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return raw(key, quoted + '"');
  }
  Json& number(const char* key, double value) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.6g", value);
    return raw(key, std::isfinite(value) ? digits : "null");
  }
  Json& whole(const char* key, int64_t value) { return raw(key, std::to_string(value)); }
  Json& raw(const char* key, const std::string& value) {
    members_ += (members_.empty() ? "\"" : ",\"") + std::string(key) + "\":" + value;
    return *this;
  }
  std::string str() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

void print(const Json& line) {
  std::puts(line.str().c_str());
  std::fflush(stdout);
}

std::string describe(const cuda::ResidentPlan& p) {
  return Json()
      .text("team", cuda::team_name(p))
      .whole("blocks", p.blocks)
      .whole("warps", p.warps)
      .whole("split", p.split)
      .whole("held", p.held)
      .whole("batches", p.batches)
      .whole("units", p.units)
      .whole("bytes", p.bytes)
      .str();
}

int print_device(const Facts& f, bool always) {
  const Verdict verdict = judge(f);
  if (!verdict.runs) {
    print(Json().text("kind", "device").text("said", verdict.said));
    return kNoDeviceExit;
  }
  if (!always) return 0;
  Json clusters;
  for (int n = 1; n <= cuda::kMostBlocks; ++n) clusters.whole(std::to_string(n).c_str(), f.clusters[n]);
  print(Json()
            .text("kind", "device")
            .text("name", f.name)
            .whole("capability", f.capability)
            .whole("multiprocessors", f.multiprocessors)
            .whole("shared_bytes", f.shared_bytes)
            .whole("memory_bytes", f.memory_bytes)
            .whole("l2_bytes", f.l2_bytes)
            .whole("clock_khz", f.clock_khz)
            .raw("clusters", clusters.str())
            .whole("driver", f.driver)
            .whole("runtime", f.runtime)
            .text("said", verdict.said));
  return 0;
}

// whether it is not wrong
bool run(const Check& check) {
  const auto begin = std::chrono::steady_clock::now();
  Outcome found;
  try {
    starts(check.name);
    found = check.run();
  } catch (const std::exception& failure) {
    found = {Result::kWrong, failure.what(), 0, 0, {}, 0};
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  constexpr const char* results[] = {"right", "wrong", "skipped"};
  Json line;
  line.text("name", check.name).text("kind", check.kind);
  line.text("result", results[static_cast<int>(found.result)]).text("said", found.said);
  line.number("error", found.error).number("limit", found.limit);
  if (!found.plans.empty()) {
    std::string all;
    for (const auto& plan : found.plans) all += (all.empty() ? "" : ",") + describe(plan);
    line.raw("plan", describe(found.plans.back())).raw("plans", "[" + all + "]");
  }
  if (found.us_a_step > 0) line.number("us_a_step", found.us_a_step);
  print(line.number("seconds", seconds.count()));
  return found.result != Result::kWrong;
}

int refuse(const std::string& why) {
  std::fprintf(stderr, "device_check: %s\n", why.c_str());
  return kUsageExit;
}

int command(const std::vector<std::string>& words) {
  const std::string usage = "expected device, list [KIND] or run NAME...";
  if (words.empty()) return refuse(usage);
  if (words[0] == "device" && words.size() == 1) return print_device(probe(), true);
  Checks checks;
  add_primitives(checks), add_cases(checks), add_deep(checks), add_determinism(checks), add_micro(checks),
      add_times(checks);
  if (words[0] == "list" && words.size() <= 2) {
    bool known = words.size() == 1;
    for (const Check& check : checks)
      if (words.size() == 1 || check.kind == words[1]) std::puts(check.name.c_str()), known = true;
    return known ? 0 : refuse("no checks are of the kind '" + words[1] + "'");
  }
  if (words[0] != "run" || words.size() == 1) return refuse(usage);
  std::map<std::string, const Check*> by_name;
  for (const Check& check : checks) by_name[check.name] = &check;
  for (size_t i = 1; i < words.size(); ++i)
    if (!by_name.contains(words[i])) return refuse("no check has the name '" + words[i] + "'");
  if (const int code = print_device(probe(), false)) return code;
  bool right = true;
  for (size_t i = 1; i < words.size(); ++i) right &= run(*by_name[words[i]]);
  return right ? 0 : kWrongExit;
}

}  // namespace
}  // namespace rnnfast::device_check

int main(int argc, char** argv) {
  return rnnfast::device_check::command(std::vector<std::string>(argv + 1, argv + argc));
}
