// A tile of C[M, N] += A[M, K] . B[K, N]: some rows and some vectors, whose sums stay in registers while it
// walks K. Each sum is one chain of multiply-adds in the order of k, added to C at the end, so tiles of any
// size round alike. K counts words (W): a float, a double, or a pair of bfloat16 that one instruction
// multiplies and adds up in float. Compiled once per instruction set, inside its namespace. No guard on
// purpose.

// Longer sums are cut, whatever the tile: the panel's block stays in the second cache while many tiles read
// it, and rounding errors of one chain do not grow with the length of the whole.
constexpr int64_t kBlock = 1024;
constexpr int64_t kLine = 64;
#ifdef RNNFAST_MATRIX_UNIT
constexpr bool kMatrixUnit = true;
constexpr int64_t kUnitWords = 16;  // of k, that the unit multiplies at once
#else
constexpr bool kMatrixUnit = false;
constexpr int64_t kUnitWords = 1;
#endif
#ifdef RNNFAST_MANY_REGISTERS
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
constexpr bool kManyRegisters = kRegisters == 32;
constexpr int kMaxRows = 8;
template <class E>
constexpr int kTurnedRows = !kMatrixUnit ? 3 : std::is_same_v<E, Bfloat16>;
constexpr int kMaxVectors = kMatrixUnit ? 4 : 8;

// Rows of a tile, by its vectors: as many accumulators as the registers hold beside what a step of k reads
// again.
constexpr int tile_rows(int vectors) {
  constexpr int wide[] = {0, 8, 8, 8, 6, 5, 4, 3, 3};
  constexpr int narrow[] = {0, 8, 6, 4, 3, 2, 2, 1, 1};
  return kManyRegisters ? wide[vectors] : narrow[vectors];
}

// Whether a step of k holds a row of B and reads the numbers of A one by one, or the other way round. With
// one register too few a sum goes through memory at every step, which takes longer than all its
// multiply-adds.
constexpr bool holds_row(int rows, int vectors) {
  return vectors <= rows || rows * vectors + vectors + 1 <= kRegisters;
}

// How many vectors of a panel in pairs (see Packed) a tile over n rows takes. With 16 registers sums of two
// vectors and six rows fit, which read B once; fewer rows need more vectors, for chains enough to hide the
// latency of one.
constexpr int64_t tile_vectors(int64_t vectors, int64_t n) {
  constexpr int64_t kFewest = 4;
  if (n == 1) return vectors;
  return n < kFewest ? least<int64_t>(vectors, 4) : 2;
}

// Steps of k between two looks at its end. On a core that is shared with another thread, as those of virtual
// machines may be, every instruction counts.
constexpr int kUnroll = 4;

template <class W>
struct Tile {
  typedef typename SumOf<W>::type A;
  const W* const* a;      // [first + K] each
  const A* const* in;     // what C starts from, and
  A* const* out;          // where it goes: rows of C
  const int64_t* offset;  // of each vector within a row of C
  int64_t first;          // of the words of A
  const W* b;             // [K, vectors, lanes], or for each pair of vectors [K, 2, lanes],
  int64_t further;        // which are so far apart
  int64_t K;
  const char* next;  // what is read after this panel, and
  int64_t lines;     // how much of it, to K at most, is asked for meanwhile
};

// 16 registers have no room for what is read ahead: there the instructions stay in the order of the source.
// clang keeps it; an older g++ would take the attribute for all options, and round otherwise.
#if defined(RNNFAST_MANY_REGISTERS) || defined(__clang__) || __GNUC__ < 12
#define RNNFAST_TILE __attribute__((noinline))
#else
#define RNNFAST_TILE __attribute__((noinline, optimize("no-schedule-insns")))
#endif
template <class W, int kRows, int kVectors, bool kPairs>
RNNFAST_TILE void multiply_tile(const Tile<W>& tile) {
  typedef typename Vec<W>::type Operand;
  typedef typename Vec<typename SumOf<W>::type>::type V;
  constexpr int L = Vec<W>::kLanes;
  V acc[kRows][kVectors];
  const W* a[kRows];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    a[m] = tile.a[m] + tile.first;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[m][v] = V{};
  }
  constexpr int T = kPairs ? 2 : kVectors;  // vectors side by side
  const int64_t K = tile.K, lines = tile.lines, further = tile.further;
  const char* const next = tile.next;
  const W* b = tile.b;
#pragma GCC unroll kUnroll
  for (int64_t k = 0; k < K; ++k, b += T * L) {
    if (k < lines) __builtin_prefetch(next + k * kLine, 0, 2);
    if constexpr (holds_row(kRows, kVectors)) {
      Operand row[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + v / T * further + v % T * L);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Operand x = a[m][k] - Operand{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[m][v] = fma(x, row[v], acc[m][v]);
      }
    } else {
      Operand x[kRows];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) x[m] = a[m][k] - Operand{};
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Operand row = load(b + v / T * further + v % T * L);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m][v] = fma(x[m], row, acc[m][v]);
      }
    }
  }
  int64_t offset[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) offset[v] = tile.offset[v];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    const auto* const in = tile.in[m];
    auto* const out = tile.out[m];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(out + offset[v], load(in + offset[v]) + acc[m][v]);
  }
}

#undef RNNFAST_TILE

// multiply_tile by [vectors][rows], filled for all sizes that a tile may have
template <class W, bool kPairs>
struct TileTable {
  void (*entry[kMaxVectors + 1][kMaxRows + 1])(const Tile<W>&) = {};

  constexpr TileTable() { fill_vectors<1>(); }

  template <int kVectors>
  constexpr void fill_vectors() {
    fill_rows<kVectors, 1>();
    if constexpr (kVectors < kMaxVectors) fill_vectors<kVectors + 1>();
  }
  template <int kVectors, int kRows>
  constexpr void fill_rows() {
    entry[kVectors][kRows] = multiply_tile<W, kRows, kVectors, kPairs>;
    if constexpr (kRows < tile_rows(kVectors)) fill_rows<kVectors, kRows + 1>();
  }
};

template <class W, bool kPairs>
inline constexpr TileTable<W, kPairs> kTiles;
