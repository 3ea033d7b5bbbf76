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

// `columns` elements of one row. The state is what the output holds, rounded to its format S; it is kept as State, S
// itself or the format the sums are computed in. The sums are padded to whole vectors, and so is the state, except
// where State is 16 bits wide: its padding has to stay zero (pairs.inl).
template <Epilogue E, class S, class State>
void finish_row(const Compute<S>* sums, const S* input, const S* factor, State* state, S* output, int64_t columns) {
  using T = Compute<S>;
  constexpr int L = kLanes<T>;
  int64_t c = 0;
#pragma GCC unroll 4
  for (; c + L <= columns; c += L) {
    Vec<T> a = load(sums + c);
    if (input) a += load(input + c);
    const Rounded<S> y(finish<E, T>(a, uses_factor(E) ? load(factor + c) : a));
    y.store_to(output + c);
    if constexpr (std::is_same_v<State, S>)
      y.store_to(state + c);
    else
      store(state + c, y.widened());
  }
  if (c < columns) {
    const int rest = static_cast<int>(columns - c);
    Vec<T> a = load(sums + c);
    if (input) a += load_first(input + c, rest);
    const Rounded<S> y(finish<E, T>(a, uses_factor(E) ? load_first(factor + c, rest) : a));
    y.store_first_to(output + c, rest);
    if constexpr (sizeof(State) == 2)
      y.store_first_to(state + c, rest);
    else
      store(state + c, y.widened());
  }
}
