// Which way a call is shared among threads: one pure function of its shape, and the two ways to force it.
#pragma once
#include <string>

#include "cpu/params.h"

namespace rnnfast {

struct Shape {
  int64_t steps, batch, total;  // T, B, N
  int64_t inputs;               // I (for the input product)
  int64_t units;                // H, what the unit split shares out
  int64_t reads;                // P: what one step's product sums over
  int gates;                    // rows of W per unit
  int stages;  // barriers a step when units are shared: 1, 2 with a projection, a deep transition's layers
  int lanes;   // of one vector
  bool backward;
  bool matrix_unit = false;  // multiplies 16 rows at once, and sums go over pairs
  bool rounds = false;       // W is stored in float, and pairs of bfloat16 are made of it
  int products = 0;          // that it makes of each of float32, of parts of the numbers: Kernels::products
  bool frozen = false;       // W is packed already
  int directions = 1;        // that may be made side by side; all else here is of one
  // of the machine
  int vector_bytes = 64;
  int64_t second_cache = 2 << 20;  // bytes, of one core
};

// The cheapest by a model of measured costs; threads = how many can really run; meeting_ns: how long they
// take to meet (Team::meeting_ns).
Plan make_plan(const Shape& shape, int threads, double meeting_ns);

const char* name_of(Split split);
bool parse_split(const std::string& name, Split& split);

}  // namespace rnnfast
