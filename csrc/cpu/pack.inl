// Packing one panel of M (W or its transpose): P[k][c] = M[column + c][k], zero past H, so that the
// microkernel streams it. Included inside a per-ISA namespace.

template <class T>
void pack_panel(const Weight<T>& w, int64_t group, bool transpose, const Panels& panels, int64_t j, T* packed) {
  const int64_t hidden = panels.hidden, column = panels.first(j) * panels.lanes;
  const int64_t width = panels.width(j) * panels.lanes;
  const int64_t valid = std::min(width, hidden - column);
  // M[c][k] = origin[c * along_c + k * along_k]
  const int64_t along_c = transpose ? w.column_stride : w.row_stride;
  const int64_t along_k = transpose ? w.row_stride : w.column_stride;
  const T* origin = w.data + group * hidden * w.row_stride + column * along_c;
  T* panel = packed + panels.offset(j);
  if (along_c == 1) {
    for (int64_t k = 0; k < hidden; ++k) {
      std::memcpy(panel + k * width, origin + k * along_k, valid * sizeof(T));
      std::fill(panel + k * width + valid, panel + (k + 1) * width, T(0));
    }
    return;
  }
  // A transposition: in square blocks of a cache line, so that each line fetched is used whole.
  constexpr int64_t kBlock = 64 / sizeof(T);
  for (int64_t k0 = 0; k0 < hidden; k0 += kBlock) {
    const int64_t k1 = std::min(k0 + kBlock, hidden);
    for (int64_t c0 = 0; c0 < width; c0 += kBlock) {
      const int64_t c1 = std::min(c0 + kBlock, width);
      for (int64_t k = k0; k < k1; ++k)
        for (int64_t c = c0; c < c1; ++c) panel[k * width + c] = c < valid ? origin[c * along_c + k * along_k] : T(0);
    }
  }
}
