// bfloat16 weights for instructions that multiply pairs: a panel is [depth / 2][columns][2], so that neighbours in k
// lie in one 32-bit lane. States are bfloat16 as well, their padding zero, since it is multiplied (by zeros). AVX-512
// only. Included inside a per-ISA namespace.

constexpr int kPairs = kLanes<float>;  // in a vector

RNN_EXT_INLINE Vec<float> pair_up(Vec16 low, Vec16 high) {
  return (Vec<float>)(__builtin_convertvector(low, Unsigned32) | __builtin_convertvector(high, Unsigned32) << 16);
}

// The first n of 16 or 32 elements, the others zero; n may be out of range on either side.
RNN_EXT_INLINE Vec16 first_of_16(const bfloat16* p, int64_t n) {
  const int64_t count = std::clamp<int64_t>(n, 0, 16);
  return (Vec16)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
}
RNN_EXT_INLINE Vec<float> first_of_32(const bfloat16* p, int64_t n) {
  const int64_t count = std::clamp<int64_t>(n, 0, 32);
  return (Vec<float>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p);
}

// P[k / 2][c][k % 2] = M[column + c][k], zero past H either way; see pack.inl.
inline void pack_pairs(const Weight<bfloat16>& w, int64_t group, bool transpose, const Panels& panels, int64_t j,
                       bfloat16* packed) {
  const int64_t hidden = panels.hidden, column = panels.first(j) * panels.lanes;
  const int64_t width = panels.width(j) * panels.lanes;
  const int64_t along_c = transpose ? w.column_stride : w.row_stride;
  const int64_t along_k = transpose ? w.row_stride : w.column_stride;
  const bfloat16* origin = w.data + group * hidden * w.row_stride + column * along_c;
  float* panel = reinterpret_cast<float*>(packed + panels.offset(j));
  for (int64_t c0 = 0; c0 < width; c0 += kPairs) {
    const int64_t columns = hidden - column - c0;
    if (along_c == 1) {
      for (int64_t k = 0; k < panels.depth; k += 2) {
        const bfloat16* row = origin + c0 + k * along_k;
        const Vec16 low = first_of_16(row, k < hidden ? columns : 0);
        const Vec16 high = first_of_16(row + along_k, k + 1 < hidden ? columns : 0);
        store(panel + k / 2 * width + c0, pair_up(low, high));
      }
      continue;
    }
    for (int64_t k0 = 0; k0 < panels.depth; k0 += 2 * kPairs) {
      Vec<float> rows[kPairs];
#pragma GCC unroll 16
      for (int c = 0; c < kPairs; ++c)
        rows[c] = first_of_32(origin + (c0 + c) * along_c + k0, c < columns ? hidden - k0 : 0);
      transpose_block<float>(rows);
#pragma GCC unroll 16
      for (int k = 0; k < kPairs; ++k)
        if (k0 + 2 * k < panels.depth) store(panel + (k0 / 2 + k) * width + c0, rows[k]);
    }
  }
}
