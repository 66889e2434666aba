// What is to be known of each cell without computing anything, read from its class, for whoever has a mode.
#pragma once
#include "types.h"

namespace rnnfast {
namespace facts {

// the classes' constants alone are read here: nothing of this is ever called
#pragma push_macro("RNNFAST_INLINE")
#undef RNNFAST_INLINE
#define RNNFAST_INLINE inline
// clang-format off: each needs what the one before it gives
#include "cells/real.h"
#include "cells/all.h"
// clang-format on
#pragma pop_macro("RNNFAST_INLINE")

// What the time loops expect: gate g and the product with h that belongs to it stand in slot g; or the last
// gate's product stands apart from it, in one slot more, which is the last.
template <class Cell>
constexpr bool fits_the_loops() {
  constexpr int G = Cell::kGates, S = Cell::kSlots;
  if (sizeof(Cell::kHiddenSlot) != G * sizeof(int)) return false;
  for (int g = 0; g < G - 1; ++g)
    if (Cell::kHiddenSlot[g] != g) return false;
  return (S == G || (S == G + 1 && G > 1)) && Cell::kHiddenSlot[G - 1] == S - 1;
}
constexpr int kMostSlots = 4;  // a thread of a GPU has as many sums

#define RNNFAST_CHECK(name, Cell)                                                                         \
  static_assert(fits_the_loops<Cell>(), #Cell                                                             \
                ": kHiddenSlot is 0, 1 .. kGates - 1, or ends with kSlots - 1 where kSlots is one more"); \
  static_assert(Cell::kSlots <= kMostSlots, #Cell ": kSlots is more than a thread of a GPU has sums");
RNNFAST_CELLS(RNNFAST_CHECK)
#undef RNNFAST_CHECK

}  // namespace facts

struct CellFacts {
  Mode mode;
  const char* name;
  int gates;      // G: rows of W for each hidden unit
  int slots;      // S: values saved for each hidden unit and step
  bool has_cell;  // c is carried beside h
};

constexpr CellFacts kCells[] = {
#define RNNFAST_FACTS(name, Cell) \
  {Mode::k##Cell, #name, facts::Cell::kGates, facts::Cell::kSlots, facts::Cell::kHasCell},
    RNNFAST_CELLS(RNNFAST_FACTS)
#undef RNNFAST_FACTS
};

constexpr const CellFacts& facts_of(Mode mode) { return kCells[static_cast<int>(mode)]; }

}  // namespace rnnfast
