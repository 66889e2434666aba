// The maths and every cell, in the namespace of whoever includes this, after what math.h asks for; and the
// way from a mode to its class. No include guard on purpose, as in math.h.
// clang-format off: each needs what the one before it gives
#include "cells/math.h"
#include "cells/lstm.h"
#include "cells/gru.h"
#include "cells/rnn.h"
// clang-format on

// f(Cell())
template <class F>
auto with_cell(Mode mode, const F& f) {
  switch (mode) {
#define RNNFAST_CASE(name, Cell) \
  case Mode::k##Cell:            \
    return f(Cell());
    RNNFAST_CELLS(RNNFAST_CASE)
#undef RNNFAST_CASE
  }
  __builtin_unreachable();
}
