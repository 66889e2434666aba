// Whole sequences in one launch: W stays in the registers of the threads that use it, as operands of the
// matrix instruction, and only h (backward: dL/d(pre-activations)) travels, through shared memory.
// A team of blocks (one, a cluster, or for wide layers a part of the grid) works on 8 rows of the batch, the
// columns of the instruction; the units are shared out among its warps. Each thread ends up with all gates of
// a unit for two rows, and does their cells. Teams of several blocks (kTeam) may give a unit to several
// warps, each with a part of the sum; keep a part of W in shared memory; and take several times 8 rows, one
// after the other.
#pragma once
#include "cuda/cells.cuh"
#include "cuda/exchange.cuh"

namespace rnnfast::cuda {

// how many threads a block may have, so that W and what else a thread needs fit its registers
constexpr int most_threads(int tiles) { return tiles <= 8 ? 512 : kMostWarps * kLanes; }

// Sums of a thread for each row: the gates of a unit, or two units of a cell with one gate
template <class Cell>
constexpr int kSlots = Cell::kGates == 1 ? 2 : 4;

// which gate's product with h goes to a slot, and which gate's with x; -1: none
template <class Cell>
RNNFAST_INLINE constexpr int hidden_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  if (Cell::kSlots == Cell::kGates) return slot < Cell::kGates ? slot : -1;
  return slot < Cell::kGates - 1 ? slot : slot == Cell::kSlots - 1 ? Cell::kGates - 1 : -1;
}
template <class Cell>
RNNFAST_INLINE constexpr int input_gate(int slot) {
  if (Cell::kGates == 1) return 0;
  return slot < Cell::kGates ? slot : -1;
}

template <class Cell, class E, int kTiles, bool kTeam>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_forward(ResidentForward<E> p) {
  typedef typename ComputeType<E>::type A;
  constexpr int G = Cell::kGates, S = Cell::kSlots;
  constexpr int kSums = kSlots<Cell>, kBlocks = G == 1 ? kSums : 1;  // one gate: each slot is another unit
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
  const int split = kTeam ? p.links.split : 1, batches = kTeam ? p.links.batches : 1;
  const int held_tiles = kTeam ? p.links.held : 0;
  const int length = (kTiles + held_tiles) * kTile<E>;  // of a warp's part of a sum
  const int part = warp % split, groups = warps / split;
  const int ld = split * length + kSkew<E>, rows = batches * kBatch;
  const int column = lane % 4 * 2, row = lane / 4;  // of this thread's sums
  const int offset = lane % 4 * kWord<E>;           // of its numbers of a product, and kHigh further
  constexpr int kHigh = kTile<E> / 2;
  const int64_t team = block_index() / p.links.blocks;
  const int first = static_cast<int>(team) * rows;
  const int rank = static_cast<int>(block_index() % p.links.blocks);
  const int base = (rank * groups + warp / split) * kWarpUnits * kBlocks + row;
  const auto unit_of = [&](int slot) { return base + (G == 1 ? slot * kWarpUnits : 0); };

  uint64_t* const arrivals = shared_memory<uint64_t>();
  E* const buffers = reinterpret_cast<E*>(arrivals + 2);
  Exchange<E, kTeam> exchange{p.links,
                              arrivals,
                              buffers,
                              rows,
                              ld,
                              static_cast<int>(p.Hw),
                              p.links.places + team * rows * p.Hw * 2 / kWord<E>};
  const int places = exchange.buffer_count() * rows * ld;
  // [warps, held_tiles, kSums / 2, kLanes, 4]: operands of W
  uint32_t* const all_held = reinterpret_cast<uint32_t*>(buffers + places);
  const auto held = [&](int t, int pair) {
    return all_held + (((warp * held_tiles + t) * (kSums / 2) + pair) * kLanes + lane) * 4;
  };
  // [warps, kSums, kWarpUnits], from this thread's on: registers are for W
  A* const numbers = reinterpret_cast<A*>(all_held + warps * held_tiles * (kSums / 2) * kLanes * 4);
  A* const bias = numbers + warp * kSums * kWarpUnits + row;
  // of all but the first of the warps that share a sum, which adds them up
  Parts<A, kSums * 2> parts{numbers + warps * kSums * kWarpUnits, warps - groups};
  const int place = warp - warp / split - 1;
  // [batches, kBlocks, 2, threads]: c, or the h that a cell blends
  A* const own = parts.places + 2 * parts.warps * kSums * 2 * kLanes + thread_index();

  uint32_t w[kSums / 2][kTiles][4];
#pragma unroll
  for (int slot = 0; slot < kSums; ++slot) {
    const int unit = unit_of(slot);
    const int hidden = hidden_gate<Cell>(slot), input = input_gate<Cell>(slot);
    // a unit beyond the last computes what nobody stores
    const E* from = p.w_hh + (hidden * p.H + least<int64_t>(unit, p.H - 1)) * p.ldw + offset;
    from += part * length;
    const auto operand = [&](int t, int high) -> uint32_t {
      return hidden >= 0 ? as_operand<E>(load_word(from + t * kTile<E> + high * kHigh)) : 0;
    };
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int high = 0; high < 2; ++high) w[slot / 2][t][slot % 2 + 2 * high] = operand(t, high);
    for (int t = 0; t < held_tiles; ++t)
      for (int high = 0; high < 2; ++high) held(t, slot / 2)[slot % 2 + 2 * high] = operand(kTiles + t, high);
    A sum = 0;
    if (unit < p.H && input >= 0 && p.b_ih) sum += widened(p.b_ih[input * p.H + unit]);
    if (unit < p.H && hidden >= 0 && p.b_hh) sum += widened(p.b_hh[hidden * p.H + unit]);
    if (lane % 4 == 0) bias[slot * kWarpUnits] = sum;
  }

  for (int i = thread_index(); i < places; i += block_size()) {
    const int64_t b = first + i % (rows * ld) / ld, k = i % ld;  // in all: a row may begin later
    narrow_operand(b < p.batch && k < p.H ? p.h_before[b * p.Hp + k] : A(0), buffers[i]);
  }
  A h[kBlocks][2], c[kBlocks][2];
  const auto batch_of = [&](int tile, int n) { return first + tile * kBatch + column + n; };
  const auto mine = [&](int tile, int k, int n) { return batch_of(tile, n) < p.batch && unit_of(k) < p.H; };
  const auto own_of = [&](int tile, int k, int n) -> A& {
    return own[((tile * kBlocks + k) * 2 + n) * block_size()];
  };
  for (int tile = 0; tile < batches; ++tile)
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int64_t at = batch_of(tile, n) * p.Hp + unit_of(k);
        h[k][n] = Cell::kBlends && mine(tile, k, n) ? p.h_before[at] : A(0);
        c[k][n] = Cell::kHasCell && mine(tile, k, n) ? p.c[at] : A(0);
        if (kTeam) own_of(tile, k, n) = Cell::kHasCell ? c[k][n] : h[k][n];
      }

  // what x adds to the slots in the next product
  A next[kSums][2];
  const int64_t first_step = p.links.first_step;
  const auto each_input = [&](int64_t s, int tile, const auto& f) {
    const A* const input = p.input + place_of(p.input_rows, first_step + s, batch_of(tile, 0)) * G * p.H;
    const int64_t present = rows_of(p.rows, first_step + s);
#pragma unroll
    for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int gate = input_gate<Cell>(slot);
        if (batch_of(tile, n) < present && unit_of(G == 1 ? slot : 0) < p.H && gate >= 0 && part == 0)
          f(input + (n * G + gate) * p.H + unit_of(slot), next[slot][n]);
        else
          next[slot][n] = 0;
      }
  };
  const auto load = [](const A* from, A& to) { to = *from; };
  each_input(0, 0, load);
  exchange.begin();

  for (int s = 0; s < p.steps; ++s) {
    if (s > 0) exchange.receive(s);
    for (int tile = 0; tile < batches; ++tile) {
      A sum[kSums / 2][4];
#pragma unroll
      for (int slot = 0; slot < kSums; ++slot)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          sum[slot / 2][slot % 2 * 2 + n] = next[slot][n] + (part == 0 ? bias[slot * kWarpUnits] : A(0));
      const int next_tile = tile + 1 < batches ? tile + 1 : 0;
      const int64_t next_step = next_tile ? s : s + 1;
      // into the cache only: while the product runs, registers are for W
      if (next_step < p.steps) each_input(next_step, next_tile, [](const A* from, A&) { prefetch(from); });
      const E* from = exchange.buffer(s) + (tile * kBatch + row) * ld + offset;
      from += part * length;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint32_t low = t ? load_word(from + t * kTile<E>) : exchange.first_word(from);
        const uint32_t high = load_word(from + t * kTile<E> + kHigh);
#pragma unroll
        for (int i = 0; i < kSums / 2; ++i) multiply_tile<E>(sum[i], w[i][t], low, high);
      }
#pragma unroll 2
      for (int t = 0; t < held_tiles; ++t) {
        const E* const here = from + (kTiles + t) * kTile<E>;
        const uint32_t low = load_word(here), high = load_word(here + kHigh);
#pragma unroll
        for (int i = 0; i < kSums / 2; ++i)
          multiply_tile<E>(sum[i], load_chunk(held(t, i)).number, low, high);
      }
      if (next_step < p.steps) each_input(next_step, next_tile, load);
      E sent[kBlocks][2] = {};  // of a row that has not begun, or has ended, what came
      if (p.rows.sizes) {
#pragma unroll
        for (int k = 0; k < kBlocks; ++k)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            if (unit_of(k) < p.H) sent[k][n] = exchange.number(s, tile * kBatch + column + n, unit_of(k));
      }
      if constexpr (kTeam) {
        parts.leave(part > 0, place, lane, [&](int i) { return sum[i / 4][i % 4]; });
        if (part == 0)
          for (int other = 1; other < split; ++other)
#pragma unroll
            for (int i = 0; i < kSums * 2; ++i)
              sum[i / 4][i % 4] += parts.of(place + other)[i * kLanes + lane];
        parts.next();
        if (part > 0) continue;
      }
      const int64_t present = rows_of(p.rows, first_step + s);
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        const int unit = unit_of(k);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          A state[S];
#pragma unroll
          for (int j = 0; j < S; ++j) {
            const int slot = G == 1 ? k : j;
            state[j] = sum[slot / 2][slot % 2 * 2 + n];
          }
          if (kTeam) (Cell::kHasCell ? c : h)[k][n] = own_of(tile, k, n);
          A cell = c[k][n];
          const A value = Cell::forward(state, cell, h[k][n]);
          if (unit >= p.H || batch_of(tile, n) >= present) continue;  // no unit, not yet, or no more
          h[k][n] = value;
          c[k][n] = cell;
          if (kTeam) own_of(tile, k, n) = Cell::kHasCell ? c[k][n] : value;
          const int64_t at = place_of(p.rows, first_step + s, batch_of(tile, n));
          narrow_operand(value, sent[k][n]);
          narrow(value, p.y[at * p.ldy + unit]);
          if (p.gates) {
#pragma unroll
            for (int j = 0; j < S; ++j) p.gates[(at * S + j) * p.Hp + unit] = state[j];
          }
          if (Cell::kHasCell && p.cells) p.cells[at * p.Hp + unit] = c[k][n];
          if (s + 1 < p.steps && !ends(p.rows, first_step + s, batch_of(tile, n))) continue;
          p.h[batch_of(tile, n) * p.Hp + unit] = value;
          if (Cell::kHasCell) p.c[batch_of(tile, n) * p.Hp + unit] = c[k][n];
        }
        if (s + 1 < p.steps) exchange.send(s + 1, tile * kBatch + column, unit, unit < p.Hw, sent[k]);
      }
    }
    exchange.finish();
  }
  exchange.end();
}

// dL/dh of 16 units is made by two warps or more, each over a part of the sum; the first two then have the
// whole of 8 units each.
template <class Cell, class E, int kTiles, bool kTeam>
RNNFAST_KERNEL void __launch_bounds__(most_threads(kTiles), 1) resident_backward(ResidentBackward<E> p) {
  typedef typename ComputeType<E>::type A;
  constexpr int G = Cell::kGates, S = Cell::kSlots;
  constexpr int kOwn = (G * kTiles + 1) / 2;  // instructions of a warp with W in registers
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes, warps = block_size() / kLanes;
  const int split = kTeam ? p.links.split : 2, batches = kTeam ? p.links.batches : 1;
  const int held_tiles = kTeam ? p.links.held : 0;
  const int length = (kOwn + held_tiles) * kTile<E>;  // of a warp's part of a sum
  const int part = warp % split, groups = warps / split;
  const int ld = split * length + kSkew<E>, rows = batches * kBatch;
  const int column = lane % 4 * 2, row = lane / 4, offset = lane % 4 * kWord<E>;
  constexpr int kHigh = kTile<E> / 2;
  const int64_t team = block_index() / p.links.blocks;
  const int first = static_cast<int>(team) * rows;
  const int rank = static_cast<int>(block_index() % p.links.blocks);
  const int base = (rank * groups + warp / split) * 2 * kWarpUnits + row, unit = base + part * kWarpUnits;

  uint64_t* const arrivals = shared_memory<uint64_t>();
  E* const buffers = reinterpret_cast<E*>(arrivals + 2);
  Exchange<E, kTeam> exchange{p.links,
                              arrivals,
                              buffers,
                              rows,
                              ld,
                              G * static_cast<int>(p.Hw),
                              p.links.places + team * rows * G * p.Hw * 2 / kWord<E>};
  const int places = exchange.buffer_count() * rows * ld;
  // [warps, held_tiles, kLanes, 4]: operands of W
  uint32_t* const all_held = reinterpret_cast<uint32_t*>(buffers + places);
  const auto held = [&](int t) { return all_held + ((warp * held_tiles + t) * kLanes + lane) * 4; };
  Parts<A, 4> parts{reinterpret_cast<A*>(all_held + warps * held_tiles * kLanes * 4), warps};
  uint32_t w[kOwn][4];
  const auto load_operands = [&](int t, uint32_t* to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t of = base + i % 2 * kWarpUnits, k = part * length + t * kTile<E> + offset + i / 2 * kHigh;
      to[i] = of < p.H && k < p.ldw ? as_operand<E>(load_word(p.w_hh_t + of * p.ldw + k)) : 0;
    }
  };
#pragma unroll
  for (int t = 0; t < kOwn; ++t) load_operands(t, w[t]);
  for (int t = 0; t < held_tiles; ++t) load_operands(kOwn + t, held(t));
  // [batches, 2, threads] each: dL/dc, and the part of dL/dh that does not pass W_hh
  A* const own = parts.places + 2 * warps * 4 * kLanes + thread_index();
  for (int i = thread_index(); i < places; i += block_size()) narrow_operand(A(0), buffers[i]);

  const auto batch_of = [&](int tile, int n) { return first + tile * kBatch + column + n; };
  const auto mine = [&](int tile, int n) { return part < 2 && batch_of(tile, n) < p.batch && unit < p.H; };
  const auto dc_of = [&](int tile, int n) -> A& { return own[(tile * 2 + n) * block_size()]; };
  const auto direct_of = [&](int tile, int n) -> A& {
    return own[((batches + tile) * 2 + n) * block_size()];
  };
  for (int tile = 0; tile < batches; ++tile)
    for (int n = 0; n < 2; ++n) {
      const int64_t at = batch_of(tile, n) * p.H + unit;
      dc_of(tile, n) = mine(tile, n) && p.dcn ? p.dcn[at] : A(0);
      direct_of(tile, n) = mine(tile, n) && p.dhn ? p.dhn[at] : A(0);
    }

  // what was saved of a row of a step
  struct Saved {
    A state[S], c, c_before, before, dy;
  };
  const auto each_saved = [&](int s, int b, Saved& of, const auto& f) {
    const int64_t at = place_of(p.rows, s, b);
    const bool first_of_row = begins(p.rows, s, b);
    const int64_t before =
        (Cell::kHasCell || Cell::kBlends) && !first_of_row ? place_of(p.rows, s - 1, b) : 0;
#pragma unroll
    for (int j = 0; j < S; ++j) f(p.gates + (at * S + j) * p.Hp + unit, of.state[j]);
    if (Cell::kHasCell) {
      f(p.cells + at * p.Hp + unit, of.c);
      f(first_of_row ? p.c0 + b * p.H + unit : p.cells + before * p.Hp + unit, of.c_before);
    }
    if (Cell::kBlends && first_of_row) f(p.h0 + b * p.H + unit, of.before);
    if (Cell::kBlends && !first_of_row) f(p.y + before * p.ldy + unit, of.before);
    if (p.dy) f(p.dy + at * p.ldy + unit, of.dy);
  };
  exchange.begin();

  // dL/dh of two rows: da W_hh from the da of step `from`, and what did not pass W_hh
  const auto carry = [&](int from, int tile, A* dh) {
    A sum[2][4] = {};
    const E* const da = exchange.buffer(from) + (tile * kBatch + row) * ld + part * length + offset;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {  // two chains, for the instruction's latency
      const uint32_t low = t ? load_word(da + t * kTile<E>) : exchange.first_word(da);
      multiply_tile<E>(sum[t % 2], w[t], low, load_word(da + t * kTile<E> + kHigh));
    }
    for (int t = 0; t < held_tiles; t += 2)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const E* const here = da + (kOwn + t + i) * kTile<E>;
        multiply_tile<E>(sum[i], load_chunk(held(t + i)).number, load_word(here), load_word(here + kHigh));
      }
    parts.leave(true, warp, lane, [&](int i) { return sum[0][i] + sum[1][i]; });
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      dh[n] = direct_of(tile, n);
      for (int other = 0; other < split; ++other)
        dh[n] += parts.of(warp - part + other)[(part % 2 * 2 + n) * kLanes + lane];
    }
    parts.next();
  };

  // the gradients of the state that a row began with
  const auto leave = [&](int tile, int n, A dh) {
    const int64_t at = batch_of(tile, n) * p.H + unit;
    p.dh0[at] = dh;
    if (Cell::kHasCell) p.dc0[at] = dc_of(tile, n);
  };

  // step s + 1 of the walk sends with the number steps - s: numbers grow
  const int steps = static_cast<int>(p.steps);
  const auto number_of = [&](int s) { return steps - s; };
  for (int s = steps - 1; s >= 0; --s) {
    if (s + 1 < steps) exchange.receive(number_of(s + 1));
    for (int tile = 0; tile < batches; ++tile) {
      const int next_tile = tile + 1 < batches ? tile + 1 : 0;
      const int next_step = next_tile ? s : s - 1;
      // into the cache only: while the product runs, registers are for W
      if (next_step >= 0)
        for (int n = 0; n < 2; ++n) {
          Saved unused;
          if (mine(next_tile, n) && batch_of(next_tile, n) < rows_of(p.rows, next_step))
            each_saved(next_step, batch_of(next_tile, n), unused,
                       [](const auto* from, A&) { prefetch(from); });
        }
      A dh[2];
      if (s + 1 < steps) {
        carry(number_of(s + 1), tile, dh);
      } else {
        dh[0] = direct_of(tile, 0);
        dh[1] = direct_of(tile, 1);
      }
      if (part >= 2) continue;
      E sent[G][2] = {};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (!mine(tile, n)) continue;
        const int b = batch_of(tile, n);
        if (b >= rows_of(p.rows, s)) {
          if (s + 1 < steps && b < rows_of(p.rows, s + 1)) leave(tile, n, dh[n]);
          continue;
        }
        Saved of{};
        each_saved(s, b, of, [](const auto* from, A& to) { to = widened(*from); });
        const int64_t at = place_of(p.rows, s, b);
        A dc = dc_of(tile, n);
        A da[G], dx[G];
        direct_of(tile, n) =
            Cell::backward(of.state, of.before, of.c_before, of.c, dh[n] + of.dy, dc, da, dx);
        dc_of(tile, n) = dc;
#pragma unroll
        for (int g = 0; g < G; ++g) {
          narrow_operand(da[g], sent[g][n]);
          narrow(da[g], p.da[at * p.Kp + g * p.H + unit]);
          if (S > G) narrow(dx[g], p.dx[at * p.Kp + g * p.H + unit]);
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g)
        exchange.send(number_of(s), tile * kBatch + column, g * static_cast<int>(p.Hw) + unit, unit < p.Hw,
                      sent[g]);
    }
    exchange.finish();
  }
  exchange.receive(number_of(0));
  for (int tile = 0; tile < batches; ++tile) {
    A dh[2];
    carry(number_of(0), tile, dh);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (mine(tile, n) && batch_of(tile, n) < rows_of(p.rows, 0)) leave(tile, n, dh[n]);
    }
  }
  exchange.end();
}

// the blocks of all teams
template <class Params>
const char* launch_teams(void (*kernel)(Params), const ResidentPlan& plan, int64_t batch, void* stream,
                         const Params& params) {
  const int64_t teams = divide_up(batch, kBatch * plan.batches);
  return launch_clusters(kernel, teams, plan.blocks, plan.warps * kLanes, plan.bytes,
                         plan.team == Team::kGrid, stream, params);
}

// f(a kernel's tiles, whether for teams of several blocks, as constants)
template <class F>
const char* with_tiles(const ResidentPlan& plan, const F& f) {
  if (plan.team != Team::kBlock) return f(std::integral_constant<int, kMostTiles>(), std::true_type());
  if (plan.tiles == 4) return f(std::integral_constant<int, 4>(), std::false_type());
  return f(std::integral_constant<int, 8>(), std::false_type());
}

template <class E>
const char* resident_forward(Mode mode, const ResidentForward<E>& layer, const ResidentPlan& plan,
                             void* stream) {
  return with_cell(mode, [&](auto cell) {
    return with_tiles(plan, [&](auto tiles, auto team) {
      return launch_teams(resident_forward<decltype(cell), E, decltype(tiles)::value, decltype(team)::value>,
                          plan, layer.batch, stream, layer);
    });
  });
}

template <class E>
const char* resident_backward(Mode mode, const ResidentBackward<E>& layer, const ResidentPlan& plan,
                              void* stream) {
  return with_cell(mode, [&](auto cell) {
    return with_tiles(plan, [&](auto tiles, auto team) {
      return launch_teams(resident_backward<decltype(cell), E, decltype(tiles)::value, decltype(team)::value>,
                          plan, layer.batch, stream, layer);
    });
  });
}

}  // namespace rnnfast::cuda

#define RNNFAST_RESIDENT(E)                                                                           \
  template const char* resident_forward(Mode, const ResidentForward<E>&, const ResidentPlan&, void*); \
  template const char* resident_backward(Mode, const ResidentBackward<E>&, const ResidentPlan&, void*);
