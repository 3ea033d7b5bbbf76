// The inner product: C[i][:] = sum_k A[i][k] * P[k][:], or that much more, for a tile of rows and one packed panel.
// Included inside a per-ISA namespace.
//
// Contract
//   A: the states, or x, row stride lda, `depth` values a row, any alignment.
//   P: one panel, [depth][NV vectors], contiguous (pack.inl); columns past H are zero.
//   C: M rows of NV whole vectors, row stride ldc; unless `add`, what was there does not matter.
//   Every element of C is summed in one order, fixed by H and the ISA alone (below). So a row's result
//   is the same bits in whatever tile, panel width, thread or batch it is computed.
//
// Register budget: the accumulators, NV panel vectors and one broadcast must fit the register file, 32
// on AVX-512 and 16 elsewhere; two FMA ports of latency 4 want at least 8 accumulators in flight.

constexpr int kAccumulators = kVectorBytes == 64 ? 24 : 12;
// Where a panel is no wider than three vectors, 8 rows have sums for all registers, too, and each panel load feeds 8
// FMAs.
constexpr int kMaxTileRows = kVectorBytes == 64 ? 8 : 6;
// Vectors a panel: as wide as 6 rows allow, so that each panel load feeds 6 FMAs.
constexpr int kPanelVectors = kAccumulators / 6;
// With few rows there is too little work to hide FMA latency in a narrow panel, and each load of a row's state is for
// few FMAs. Up to so many rows, panels are as wide as the registers allow, but no wider than 8 vectors (planner.cpp).
constexpr int kWidePanelVectors = 8;
constexpr int kWidePanelRows = 3;
// Up to this many vectors the whole of H is narrower than 8 accumulators at one row, and each sum is two chains over
// k (even, odd): side by side in a tile of few rows, one after the other in a high one. A function of H alone: see the
// contract.
constexpr int kTwoChainVectors = 4;

// Length of a sum's blocks: the sum of each is added to the total so far, which waits in C. One long chain of FMAs
// would round H times at the size of the whole sum; PyTorch's dot products, which split theirs over vector lanes,
// would then be 3 to 4 times as accurate at H = 200. The price is one load, add and store per 64 FMAs.
constexpr int64_t kSumBlock = 64;

// What is multiplied: one number of A with a vector of P.
template <class T>
struct Numbers {
  using Element = T;
  using Sum = T;
  static RNN_EXT_INLINE Vec<T> multiply_add(Vec<T> sum, T a, Vec<T> p) { return sum + splat(a) * p; }
};

// What a tile brings from L3 into L2 while it multiplies, for the tiles of the panel after its own: so many bytes for
// each k, up to two cache lines. The hardware's prefetcher looks ahead by a few lines only, and a panel's first tile,
// which takes half as long as its panel's way from L3, would wait.
struct Fetch {
  const void* from;
  int64_t bytes_a_row;
};
// Tiles of fewer rows are mostly alone in their panel, and short of load slots.
constexpr int kFetchingRows = 4;

template <class Inner>
using MultiplyTile = void (*)(const typename Inner::Element* a, int64_t lda, const typename Inner::Element* panel,
                              int64_t depth, typename Inner::Sum* c, int64_t ldc, bool add, Fetch fetch);

// Of a sum's chains, `Together` are computed side by side.
template <class Inner, int M, int NV, int Chains, int Together>
void multiply_tile(const typename Inner::Element* a, int64_t lda, const typename Inner::Element* panel, int64_t depth,
                   typename Inner::Sum* c, int64_t ldc, bool add, Fetch fetch) {
  using T = typename Inner::Sum;
  constexpr int L = kLanes<T>;
  const char* fetched = static_cast<const char*>(fetch.from);
  // One load for all rows, where loads and not FMAs are what takes the time: with 2 and 3 rows on AVX-512 half as fast
  // again. Tiles of more rows come out so anyway.
  constexpr bool loads_once = kVectorBytes == 64 && M > 1;
  // The other way round where a wide panel's vectors would not all find a register beside 12 sums: the rows' numbers
  // stay there, and one vector after the other is loaded.
  constexpr bool by_vectors = kVectorBytes != 64 && M > 1 && M < NV;
  for (int64_t begin = 0; begin < depth; begin += kSumBlock) {
    const int64_t end = std::min(begin + kSumBlock, depth);
    for (int pass = 0; pass < Chains / Together; ++pass) {
      Vec<T> acc[Together][M][NV] = {};
      auto step = [&](int64_t k, int chain) __attribute__((always_inline)) {
        if constexpr (by_vectors) {
          Vec<T> x[M];
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) x[m] = in_register(splat<T>(a[m * lda + k]));
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            const Vec<T> p = in_register(load(reinterpret_cast<const T*>(panel) + (k * NV + v) * L));
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) acc[chain][m][v] += x[m] * p;
          }
          return;
        }
        Vec<T> p[NV];
        if constexpr (M >= kFetchingRows && Chains == 1) {
          __builtin_prefetch(fetched, 0, 2);
          __builtin_prefetch(fetched + fetch.bytes_a_row / 2, 0, 2);
          fetched += fetch.bytes_a_row;
        }
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<T> x = load(reinterpret_cast<const T*>(panel) + (k * NV + v) * L);
          p[v] = loads_once ? in_register(x) : x;
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const typename Inner::Element x = a[m * lda + k];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) acc[chain][m][v] = Inner::multiply_add(acc[chain][m][v], x, p[v]);
        }
      };
      int64_t k = begin + pass;
      for (; k + Together <= end; k += Chains) {
        step(k, 0);
        if constexpr (Together == 2) step(k + 1, 1);
      }
      if constexpr (Together == 2) {
        if (k < end) step(k, 0);
      }
      const bool first = !add && begin == 0 && pass == 0;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          T* total = c + m * ldc + v * L;
          Vec<T> sum = first ? acc[0][m][v] : load(total) + acc[0][m][v];
          if constexpr (Together == 2) sum += acc[1][m][v];
          store(total, sum);
        }
      }
    }
  }
}

constexpr int max_tile_rows(int vectors) {
  const int rows = kAccumulators / vectors;
  return rows < kMaxTileRows ? rows : kMaxTileRows;
}

// tiles[rows - 1][vectors - 1]; null where the accumulators would not fit.
template <class Inner, int Chains>
struct TileTable {
  MultiplyTile<Inner> tiles[kMaxTileRows][kWidePanelVectors] = {};

  constexpr TileTable() { fill(std::make_integer_sequence<int, kMaxTileRows * kWidePanelVectors>{}); }

 private:
  template <int... I>
  constexpr void fill(std::integer_sequence<int, I...>) {
    (set<I / kWidePanelVectors + 1, I % kWidePanelVectors + 1>(), ...);
  }
  template <int M, int NV>
  constexpr void set() {
    if constexpr (M * NV <= kAccumulators && (Chains == 1 || NV <= kTwoChainVectors))
      tiles[M - 1][NV - 1] = multiply_tile < Inner, M, NV, Chains, M * NV * Chains <= kAccumulators ? Chains : 1 > ;
  }
};

template <class Inner>
MultiplyTile<Inner> multiply_tile_for(int rows, int vectors, int chains) {
  static constexpr TileTable<Inner, 1> one;
  static constexpr TileTable<Inner, 2> two;
  return (chains == 2 ? two.tiles : one.tiles)[rows - 1][vectors - 1];
}

// The inner product in the vector units, in the format that sums are computed in. This, DotKernel (dot.inl) and
// AmxKernel (amx.inl) are what recurrence.inl is written against.
template <class S>
struct VectorKernel {
  using Storage = S;
  using Sum = Compute<S>;
  using State = Sum;
  using Packed = Sum;
  // The largest tile, in elements.
  static constexpr int kSums = kAccumulators * kLanes<Sum>;
  // It projects x where that can be multiplied as it lies there.
  static constexpr Tiling tiling = {kLanes<Sum>,
                                    sizeof(Packed),
                                    sizeof(State),
                                    1,
                                    kPanelVectors,
                                    kWidePanelVectors,
                                    kWidePanelRows,
                                    kTwoChainVectors,
                                    1,
                                    2.0,
                                    std::is_same_v<S, Sum>,
                                    /*packs=*/true,
                                    kSumBlock,
                                    kAccumulators,
                                    kMaxTileRows};

  explicit VectorKernel(const Panels&) {}
  static void pack(const Weight<S>& w, int64_t group, bool transpose, const Panels& panels, int64_t j, Packed* packed) {
    pack_panel(w, group, transpose, panels, j, packed);
  }
  static int tallest(int width) { return max_tile_rows(width); }
  // Before the tiles of a step in which `rows` rows are multiplied.
  void prepare(int64_t /*rows*/) {}
  // By all columns of a panel but its padding.
  void multiply(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int chains, int64_t depth,
                Sum* sums, Fetch fetch) {
    const int width = vectors_of<Sum>(columns);
    multiply_tile_for<Numbers<Sum>>(rows, width, chains)(a, stride, panel, depth, sums, width * kLanes<Sum>, false,
                                                         fetch);
  }
  // To sums that lie `pitch` apart, or onto them. Weights are near enough then to come by themselves (planner.h,
  // projects).
  void multiply_onto(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int chains,
                     int64_t depth, Sum* sums, int64_t pitch, bool add) {
    multiply_tile_for<Numbers<Sum>>(rows, vectors_of<Sum>(columns), chains)(a, stride, panel, depth, sums, pitch, add,
                                                                            {a, 0});
  }
};
