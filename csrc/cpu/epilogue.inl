// What becomes of a finished sum: y = epilogue(sum + input), to the state and to the output.
// Included inside a per-ISA namespace.

template <Epilogue E, class T>
RNN_EXT_INLINE Vec<T> finish(Vec<T> a, Vec<T> f) {
  const Vec<T> zero = {};
  if constexpr (E == Epilogue::tanh) return tanh<T>(a);
  // As torch's ReLU, which keeps NaN: only what compares below zero is cut.
  if constexpr (E == Epilogue::relu) return a < zero ? zero : a;
  if constexpr (E == Epilogue::tanh_derivative) return (T(1) - f * f) * a;
  // Likewise: NaN is not cut.
  if constexpr (E == Epilogue::relu_derivative) return f <= zero ? zero : a;
  if constexpr (E == Epilogue::given_derivative) return f * a;
}

// `columns` elements of one row. state holds the sum and receives y; its padding may be overwritten.
template <Epilogue E, class T>
void finish_row(T* state, const T* input, const T* factor, T* output, int64_t columns) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
#pragma GCC unroll 4
  for (; c + L <= columns; c += L) {
    Vec<T> a = load(state + c);
    if (input) a += load(input + c);
    const Vec<T> y = finish<E, T>(a, uses_factor(E) ? load(factor + c) : a);
    store(state + c, y);
    store(output + c, y);
  }
  if (c < columns) {
    const int rest = static_cast<int>(columns - c);
    Vec<T> a = load(state + c);
    if (input) a += load_first(input + c, rest);
    const Vec<T> y = finish<E, T>(a, uses_factor(E) ? load_first(factor + c, rest) : a);
    store(state + c, y);
    store_first(output + c, y, rest);
  }
}
