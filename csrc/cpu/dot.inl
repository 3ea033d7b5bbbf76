// bfloat16 through vdpbf16ps, which adds a product of pairs to each float lane. Included inside a per-ISA namespace.

struct Pairs {
  typedef uint32_t Element __attribute__((may_alias));  // two bfloat16
  using Sum = float;
  static RNN_EXT_INLINE Vec<float> multiply_add(Vec<float> sum, Element a, Vec<float> p) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)p);
  }
};

struct DotKernel {
  using Storage = bfloat16;
  using Sum = float;
  using State = bfloat16;
  using Packed = bfloat16;
  static constexpr int kSums = kAccumulators * kLanes<Sum>;
  // One vdpbf16ps, 32 multiply-adds, a cycle: AMD from Zen 4. (Intel's cores start one in two cycles.)
  static constexpr Tiling tiling = {kLanes<Sum>, 2, 2, 2, kPanelVectors, kWidePanelVectors, kWidePanelRows, 0, 1, 2.0};

  explicit DotKernel(const Panels&) {}
  static void pack(const Weight<bfloat16>& w, int64_t group, bool transpose, const Panels& panels, int64_t j,
                   Packed* packed) {
    pack_pairs(w, group, transpose, panels, j, packed);
  }
  static int tallest(int width) { return max_tile_rows(width); }
  void prepare(int64_t /*rows*/) {}
  void multiply(const State* a, int64_t stride, int rows, const Packed* panel, int columns, int chains, int64_t depth,
                Sum* sums, Fetch fetch) {
    const int width = vectors_of<Sum>(columns);
    using Element = Pairs::Element;
    multiply_tile_for<Pairs>(rows, width, chains)(reinterpret_cast<const Element*>(a), stride / 2,
                                                  reinterpret_cast<const Element*>(panel), depth / 2, sums,
                                                  width * kLanes<Sum>, false, {fetch.from, 2 * fetch.bytes_a_row});
  }
};
