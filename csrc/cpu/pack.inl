// Packing one panel of M (W, its transpose or W_ih): P[k][c] = M[column + c][k], zero past H, so that the
// microkernel streams it. Included inside a per-ISA namespace.
//
// Either c or k runs along contiguous memory (op.cpp sees to that): rows of P are then copied, or square blocks
// of one vector's width transposed in registers.

// One round of the transposition of L rows: rows i and i + S exchange their off-diagonal S x S blocks.
template <class T, int S, int... J>
RNN_EXT_INLINE void exchange_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, J...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((J & S) ? L + J - S : J)...);
  b = __builtin_shufflevector(a, b, ((J & S) ? L + J : J + S)...);
  a = low;
}

// rows[i][j] becomes rows[j][i].
template <class T, int S = 1>
RNN_EXT_INLINE void transpose_block(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if ((i & S) == 0) exchange_blocks<T, S>(rows[i], rows[i + S], std::make_integer_sequence<int, L>{});
  if constexpr (2 * S < L) transpose_block<T, 2 * S>(rows);
}

template <class S>
void pack_panel(const Weight<S>& w, int64_t group, bool transpose, const Panels& panels, int64_t j,
                Compute<S>* packed) {
  using T = Compute<S>;
  constexpr int L = kLanes<T>;
  const int64_t hidden = panels.hidden, inner = panels.inner, column = panels.first(j) * panels.lanes;
  const int64_t width = panels.width(j) * panels.lanes;
  const int64_t valid = std::min(width, hidden - column);
  // M[c][k] = origin[c * along_c + k * along_k]
  const int64_t along_c = transpose ? w.column_stride : w.row_stride;
  const int64_t along_k = transpose ? w.row_stride : w.column_stride;
  const S* origin = w.data + group * hidden * w.row_stride + column * along_c;
  T* panel = packed + panels.offset(j);
  if (along_c == 1) {
    for (int64_t k = 0; k < inner; ++k) {
      convert_row(panel + k * width, origin + k * along_k, valid);
      std::fill(panel + k * width + valid, panel + (k + 1) * width, T(0));
    }
    return;
  }
  for (int64_t c0 = 0; c0 < width; c0 += L) {
    for (int64_t k0 = 0; k0 < inner; k0 += L) {
      const int depth = static_cast<int>(std::min<int64_t>(L, inner - k0));
      const S* block = origin + c0 * along_c + k0;
      Vec<T> rows[L];
#pragma GCC unroll 16
      for (int c = 0; c < L; ++c) {
        if (c0 + c >= valid)
          rows[c] = Vec<T>{};
        else
          rows[c] = depth == L ? load(block + c * along_c) : load_first(block + c * along_c, depth);
      }
      transpose_block<T>(rows);
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k)
        if (k < depth) store(panel + (k0 + k) * width + c0, rows[k]);
    }
  }
}
