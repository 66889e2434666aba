// rnnfast in the place of torch's own recurrent operators: what the module offers of aten.cpp.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rnnfast::aten {

// The operators, as "aten::lstm.input", that this torch has; and those that it lacks of a cell that it has
std::vector<std::string> operators();
std::vector<std::string> lacking();

// Puts kernels of ours at torch's operators, or takes them away, when no other thread may be calling one: the
// dispatcher's tables are changed. Twice is as once.
void install(bool on);
bool is_installed();
// How many other threads that still run have called one of the operators while ours were installed
int64_t other_callers();
// Whether those kernels take calls, or pass all of them on
void set_active(bool on);
bool is_active();

// Whether calls of this thread are passed on to torch's kernels; -> whether they were before
bool pass_on(bool on);

// Of each operator how often it was called while active, by what became of it: "taken", or why it was
// passed on
std::map<std::string, std::map<std::string, int64_t>> counts();
void reset_counts();

}  // namespace rnnfast::aten
