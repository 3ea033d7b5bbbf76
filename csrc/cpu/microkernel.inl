// The inner product: C[i][:] = sum_k A[i][k] * P[k][:] for a tile of rows and one packed panel.
// Included inside a per-ISA namespace.
//
// Contract
//   A: the states, row stride lda, H values a row, any alignment.
//   P: one panel, [H][NV vectors], contiguous (pack.inl); columns past H are zero.
//   C: M rows of NV whole vectors, row stride ldc; what was there does not matter.
//   Every element of C is summed in one order, fixed by H and the ISA alone (below). So a row's result
//   is the same bits in whatever tile, panel width, thread or batch it is computed.
//
// Register budget: the accumulators, NV panel vectors and one broadcast must fit the register file, 32
// on AVX-512 and 16 elsewhere; two FMA ports of latency 4 want at least 8 accumulators in flight.

constexpr int kAccumulators = kVectorBytes == 64 ? 24 : 12;
constexpr int kMaxTileRows = 6;
// Vectors a panel: as wide as kMaxTileRows rows allow, so that each panel load feeds 6 FMAs.
constexpr int kPanelVectors = kAccumulators / kMaxTileRows;
// With few rows there is too little work to hide FMA latency in a narrow panel, so it is as wide as
// 8 vectors; up to this many rows fit then.
constexpr int kWidePanelVectors = 8;
constexpr int kWidePanelRows = kAccumulators / kWidePanelVectors;
// Up to this many vectors the whole of H is narrower than 8 accumulators at one row, and two chains
// over k (even, odd) run side by side. A function of H alone: see the contract.
constexpr int kTwoChainVectors = 4;

template <class T>
using MultiplyTile = void (*)(const T* a, int64_t lda, const T* panel, int64_t depth, T* c, int64_t ldc);

// Length of a sum's blocks: the sum of each is added to the total so far, which waits in C. One long chain of FMAs
// would round H times at the size of the whole sum; PyTorch's dot products, which split theirs over vector lanes,
// would then be 3 to 4 times as accurate at H = 200. The price is one load, add and store per 64 FMAs.
constexpr int64_t kSumBlock = 64;

template <class T, int M, int NV, int Chains>
void multiply_tile(const T* a, int64_t lda, const T* panel, int64_t depth, T* c, int64_t ldc) {
  constexpr int L = kLanes<T>;
  for (int64_t begin = 0; begin < depth; begin += kSumBlock) {
    const int64_t end = std::min(begin + kSumBlock, depth);
    Vec<T> acc[Chains][M][NV] = {};
    auto step = [&](int64_t k, int chain) __attribute__((always_inline)) {
      Vec<T> p[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) p[v] = load(panel + (k * NV + v) * L);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<T> x = splat(a[m * lda + k]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[chain][m][v] += x * p[v];
      }
    };
    int64_t k = begin;
    for (; k + Chains <= end; k += Chains) {
      step(k, 0);
      if constexpr (Chains == 2) step(k + 1, 1);
    }
    if constexpr (Chains == 2) {
      if (k < end) step(k, 0);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        T* total = c + m * ldc + v * L;
        Vec<T> sum = acc[0][m][v];
        if constexpr (Chains == 2) sum += acc[1][m][v];
        store(total, begin == 0 ? sum : load(total) + sum);
      }
    }
  }
}

constexpr int max_tile_rows(int vectors, int chains) {
  const int rows = kAccumulators / (vectors * chains);
  return rows < kMaxTileRows ? rows : kMaxTileRows;
}

// tiles[rows - 1][vectors - 1]; null where the accumulators would not fit.
template <class T, int Chains>
struct TileTable {
  MultiplyTile<T> tiles[kMaxTileRows][kWidePanelVectors] = {};

  constexpr TileTable() { fill(std::make_integer_sequence<int, kMaxTileRows * kWidePanelVectors>{}); }

 private:
  template <int... I>
  constexpr void fill(std::integer_sequence<int, I...>) {
    (set<I / kWidePanelVectors + 1, I % kWidePanelVectors + 1>(), ...);
  }
  template <int M, int NV>
  constexpr void set() {
    if constexpr (M * NV * Chains <= kAccumulators && (Chains == 1 || NV <= kTwoChainVectors))
      tiles[M - 1][NV - 1] = multiply_tile<T, M, NV, Chains>;
  }
};

template <class T>
MultiplyTile<T> multiply_tile_for(int rows, int vectors, int chains) {
  static constexpr TileTable<T, 1> one;
  static constexpr TileTable<T, 2> two;
  return (chains == 2 ? two.tiles : one.tiles)[rows - 1][vectors - 1];
}
