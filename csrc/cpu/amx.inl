// bfloat16 in the matrix unit (AMX): tiles of 16 rows of 64 bytes. One tdpbf16ps adds the product of a 16 x 32 tile of
// states and a 32 x 16 tile of weights, 8192 multiply-adds in 16 cycles, to a 16 x 16 tile of sums. Included inside a
// per-ISA namespace.
//
// Eight tile registers: sums 0 to 3, states 4 and 5, weights 6 and 7. With more than 16 rows a block is 2 x 2 tiles, so
// that weights coming from L2 (2 KiB per 4 products, 64 cycles) keep up; with fewer it is 1 x 4, since a product takes
// 52 cycles until its sum may be added to again. Fewer rows in a tile take as long as 16, except for loading them.

struct alignas(64) TileConfig {  // as ldtilecfg reads it
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// One block: M tiles of states by N of weights. The second tile of states begins `second` rows after the first; they
// overlap where the rows are odd in number, and what both compute has the same bits.
template <int M, int N>
void multiply_block(const bfloat16* a, int64_t stride, int64_t second, const bfloat16* panel, int64_t depth, float* c) {
  static_assert((M == 1 && N <= 4) || (M == 2 && N <= 2), "no such tile registers");
  constexpr int64_t kRow = N * 64;  // bytes of a panel's row of pairs, and of a row of sums
  // GCC's tile loads do not say that they read memory.
  asm volatile("" ::: "memory");
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (N > 2 || M == 2) _tile_zero(2);
  if constexpr (N > 3 || (M == 2 && N > 1)) _tile_zero(3);
  const char* p = reinterpret_cast<const char*>(panel);
  for (int64_t k = 0; k < depth; k += 32, p += 16 * kRow) {
    _tile_loadd(4, a + k, stride * 2);
    if constexpr (M == 2) _tile_loadd(5, a + second * stride + k, stride * 2);
    _tile_loadd(6, p, kRow);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (M == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (N > 1) {
      _tile_loadd(7, p + 64, kRow);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (M == 2) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (N > 2) {
      _tile_loadd(6, p + 128, kRow);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (N > 3) {
      _tile_loadd(7, p + 192, kRow);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, c, kRow);
  if constexpr (N > 1) _tile_stored(1, c + 16, kRow);
  if constexpr (M == 1 && N > 2) _tile_stored(2, c + 32, kRow);
  if constexpr (M == 1 && N > 3) _tile_stored(3, c + 48, kRow);
  if constexpr (M == 2) _tile_stored(2, c + second * N * 16, kRow);
  if constexpr (M == 2 && N > 1) _tile_stored(3, c + second * N * 16 + 16, kRow);
  asm volatile("" ::: "memory");
}

class AmxKernel {
 public:
  using Storage = bfloat16;
  using Sum = float;
  using State = bfloat16;
  using Packed = bfloat16;
  static constexpr int kTile = 16;  // rows of a tile
  static constexpr int kSums = 1024;
  static constexpr Tiling tiling = {16, 2, 2, 32, 2, 4, kTile, 0, kTile, 32.0};

  explicit AmxKernel(const Panels& panels)
      : tallest_(panels.vectors <= tiling.panel_vectors * panels.count ? 2 * kTile : kTile) {}
  AmxKernel(const AmxKernel&) = delete;
  // A thread that has left its tiles dirty pays for them at every context switch.
  ~AmxKernel() {
    if (configured_ > 0) _tile_release();
  }

  static void pack(const Weight<bfloat16>& w, int64_t group, bool transpose, const Panels& panels, int64_t j,
                   Packed* packed) {
    pack_pairs(w, group, transpose, panels, j, packed);
  }
  int tallest(int /*width*/) const { return tallest_; }

  // Rows come in blocks of nearly one height; all tiles are as high as the highest block, or half of it.
  void prepare(int64_t rows) {
    if (rows == prepared_ || rows == 0) return;
    prepared_ = rows;
    const int64_t blocks = (rows + tallest_ - 1) / tallest_, highest = (rows + blocks - 1) / blocks;
    two_ = highest > kTile;
    const int64_t height = two_ ? (highest + 1) / 2 : highest;
    if (height == configured_) return;
    configured_ = height;
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = static_cast<uint8_t>(i < 6 ? height : kTile);
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
  }

  // What is fetched ahead is not worth it here: at H = 1024, where weights come from L3, a step takes three times as
  // long as at 512, where they do not, for four times the work.
  void multiply(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int /*chains*/,
                int64_t depth, Sum* sums, Fetch /*fetch*/) {
    static constexpr decltype(&multiply_block<1, 1>) one[] = {multiply_block<1, 1>, multiply_block<1, 2>,
                                                              multiply_block<1, 3>, multiply_block<1, 4>};
    static constexpr decltype(&multiply_block<2, 1>) two[] = {multiply_block<2, 1>, multiply_block<2, 2>};
    (two_ ? two : one)[vectors_of<Sum>(columns) - 1](a, stride, rows - configured_, panel, depth, sums);
  }

 private:
  int tallest_;
  int64_t prepared_ = 0, configured_ = 0;
  bool two_ = false;
};
