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
RNN_EXT_INLINE void finish_row(const Compute<S>* sums, const S* input, const S* factor, State* state, S* output,
                               int64_t columns) {
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

// The same where states leak (recurrence.h): `leaking` is the unmasked state before, null for zeros, and `leak` what
// part of it stays, an S or bool, null for all. A transposed (A) takes the leak of the step before, and its factor
// scales only what the next step multiplies.
template <Epilogue E, class S, class Z, class State>
void finish_leaky_row(const Compute<S>* sums, const S* input, const S* factor, const Z* leak, const S* leaking,
                      bool transpose, State* state, S* output, int64_t columns) {
  using T = Compute<S>;
  constexpr int L = kLanes<T>;
  const Vec<T> zero = {}, one = zero + T(1);
  for (int64_t c = 0; c < columns; c += L) {
    const int rest = static_cast<int>(columns - c);
    const bool whole = rest >= L;
    auto read = [&](const S* p) { return whole ? load(p + c) : load_first(p + c, rest); };
    auto read_leak = [&] {
      if constexpr (std::is_same_v<Z, bool>)
        return whole ? load_bools<T>(leak + c) : load_first_bools<T>(leak + c, rest);
      else
        return read(leak);
    };
    const Vec<T> z = leak ? read_leak() : one, kept = leaking ? z * read(leaking) : zero, a = load(sums + c);
    const Vec<T> in = input ? read(input) : zero;
    const Vec<T> f = uses_factor(E) ? read(factor) : one;
    Vec<T> y;
    if constexpr (!uses_factor(E))
      y = kept + (one - z) * finish<E, T>(a + in, f);
    else
      y = in + kept + (transpose ? a : f * a);
    const Rounded<S> rounded(y);
    const Rounded<S> multiplied(uses_factor(E) && transpose ? f * rounded.widened() : y);
    if (whole)
      rounded.store_to(output + c);
    else
      rounded.store_first_to(output + c, rest);
    if constexpr (!std::is_same_v<State, S>)
      store(state + c, multiplied.widened());
    else if (whole)
      multiplied.store_to(state + c);
    else
      multiplied.store_first_to(state + c, rest);
  }
}
