// The inner product without packed panels: C[i][c] = sum_k A[i][k] * W[c][k], W's rows read as they lie, for calls of
// so few rows and steps that packing W would take longer than all that is done with it. Included inside a per-ISA
// namespace.
//
// A vector holds neighbours in k, and a sum is one vector until its lanes are added up in the end: an order of its own,
// so results are not the bits of the packed kernels. Weights are contiguous (op.cpp's way_of sees to that), which
// makes them "packed" as they are: panel j begins where its first row does, at Panels::offset(j).

// Sums of lanes: lane i of the result is that of v[i].
template <class T, int S = 1>
RNN_EXT_INLINE Vec<T> sums_of_lanes(Vec<T> (&v)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  // Lanes i and i + S of v[i] and v[i + S] meet: half as many vectors, each of twice as many sums.
#pragma GCC unroll 16
  for (int i = 0; i < L; i += 2 * S) {
    exchange_blocks<T, S>(v[i], v[i + S], std::make_integer_sequence<int, L>{});
    v[i] += v[i + S];
  }
  if constexpr (2 * S < L)
    return sums_of_lanes<T, 2 * S>(v);
  else
    return v[0];
}

// Rows of W read side by side: as many sums in flight as hide an FMA's latency, two a cycle of four. More would be
// streams that the prefetchers do not follow, and where W's rows lie 4096 bytes apart, lines of one set of the L1
// cache.
constexpr int kRowsAtOnce = 8;

// One row of A with up to a vector's width of rows of W.
template <class T, class S>
Vec<T> multiply_rows(const T* a, const S* w, int columns, int64_t depth) {
  constexpr int L = kLanes<T>, N = std::min(L, kRowsAtOnce);
  Vec<T> acc[L] = {};
#pragma GCC unroll 16
  for (int first = 0; first < L; first += N) {
    const S* row[N];
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) row[c] = w + std::min(first + c, columns - 1) * depth;
    int64_t k = 0;
    for (; k + L <= depth; k += L) {
      const Vec<T> x = load(a + k);
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) acc[first + c] += x * load(row[c] + k);
    }
    if (k < depth) {
      const int rest = static_cast<int>(depth - k);
      const Vec<T> x = load_first(a + k, rest);
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) acc[first + c] += x * load_first(row[c] + k, rest);
    }
  }
  return sums_of_lanes<T>(acc);
}

template <class S>
struct RowKernel {
  using Storage = S;
  using Sum = Compute<S>;
  using State = Sum;
  using Packed = S;
  static constexpr int kSums = kAccumulators * kLanes<Sum>;
  // Each product loads its weights anew, so half of the FMAs a cycle.
  static constexpr Tiling tiling = {kLanes<Sum>,
                                    sizeof(S),
                                    sizeof(State),
                                    1,
                                    kPanelVectors,
                                    kWidePanelVectors,
                                    kWidePanelRows,
                                    0,
                                    1,
                                    1.0,
                                    std::is_same_v<S, Sum>,
                                    /*packs=*/false};

  explicit RowKernel(const Panels&) {}
  static int tallest(int width) { return max_tile_rows(width); }
  void prepare(int64_t /*rows*/) {}
  void multiply(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int chains, int64_t depth,
                Sum* sums, Fetch /*fetch*/) {
    multiply_onto(a, stride, rows, panel, columns, chains, depth, sums, vectors_of<Sum>(columns) * kLanes<Sum>, false);
  }
  void multiply_onto(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int /*chains*/,
                     int64_t depth, Sum* sums, int64_t pitch, bool add) {
    for (int first = 0; first < columns; first += kLanes<Sum>) {
      for (int i = 0; i < rows; ++i) {
        Sum* const c = sums + i * pitch + first;
        const Vec<Sum> sum = multiply_rows(a + i * stride, panel + first * depth, columns - first, depth);
        store(c, add ? load(c) + sum : sum);
      }
    }
  }
};
