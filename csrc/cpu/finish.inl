// What follows the product: from a tile's sums to the states and the output, for whole tiles of a segment's rows. A
// function for each epilogue and format, which run_segment chooses once a call. Included inside a per-ISA namespace.

// One step of a segment: where its rows stand in the tensors, without their own offsets.
template <class S, class State>
struct Step {
  const Problem<S>& problem;
  const Segment& seg;
  int64_t t;
  const S *input, *factor;  // null where there is none
  S* output;
  State* current;        // states, the segment's first row; and
  int64_t stride;        // elements between them
  int64_t alive_before;  // rows that have a step before this one
  int64_t going;         // rows that have a state to multiply; those after them begin here
};

// finish_row where states leak, all that this takes included: apart, so that it does not weigh on calls without a leak.
// The state buffers hold what M multiplies, masked or scaled, so what leaks is read where the step before has put it
// out. A row that begins here has no step before: its seed leaks, all of it if that is a product.
template <Epilogue E, class S, class State>
[[gnu::noinline]] void finish_leaky_state(const Step<S, State>& step, int64_t i, const Compute<S>* sums, int64_t column,
                                          int64_t columns) {
  const auto& p = step.problem;
  const Segment& seg = step.seg;
  const bool begins = i >= step.alive_before;
  const int64_t b = p.rows.batch_index(seg.row(i)), at = seg.group * p.shape.hidden + column;
  const int64_t t_before = p.direction[seg.group] < 0 ? step.t + 1 : step.t - 1;
  auto element = [&](const auto& sequence, int64_t time) { return sequence.at(p.rows, time, seg.row(i)) + at; };
  const S* leaking = nullptr;
  if (begins)
    leaking = p.seed_kind == Seed::none ? nullptr : p.seed.at(seg.group, b) + column;
  else if (!(p.rows.resets && p.rows.resets[std::max(step.t, t_before) * p.shape.batch + b]))
    leaking = element(p.output, t_before);
  auto finish = [&](const auto& leak) {
    // A transposed row that begins has no leak of a step before, and no state of which a part would stay (op.cpp).
    const bool all = begins && (p.seed_kind == Seed::product || p.transpose);
    finish_leaky_row<E, S>(sums, p.input.data ? element(p.input, step.t) : nullptr,
                           uses_factor(E) ? element(p.factor, step.t) : nullptr,
                           all ? nullptr : element(leak, p.transpose ? t_before : step.t), leaking, p.transpose,
                           step.current + i * step.stride + column, element(p.output, step.t), columns);
  };
  p.kept.data ? finish(p.kept) : finish(p.leak);
}

// For some columns of rows [begin, end), whose sums lie `pitch` apart. All rows in one call, so that the tables of tanh
// are loaded into registers once.
template <Epilogue E, class S, class State>
void finish_rows(const Step<S, State>& step, int64_t begin, int64_t end, Compute<S>* sums, int64_t pitch,
                 int64_t column, int64_t columns) {
  const auto& p = step.problem;
  const Segment& seg = step.seg;
  if (p.masks_sums())
    for (int64_t i = begin; i < std::min(end, step.going); ++i)
      multiply_row(sums + (i - begin) * pitch, p.mask.at(seg.group, p.rows.batch_index(seg.row(i))) + column, columns);
  if constexpr (may_leak(E)) {
    if (p.leaks()) {
      for (int64_t i = begin; i < end; ++i)
        finish_leaky_state<E, S>(step, i, sums + (i - begin) * pitch, column, columns);
      return;
    }
  }
  // Whether there is an input is asked here, or GCC would keep the tables of tanh twice, in registers and beside them.
  auto finish = [&](auto has_input) __attribute__((always_inline)) {
    for (int64_t i = begin; i < end; ++i) {
      auto at = [&](auto* first, const auto& sequence) { return first + sequence.offset(p.rows, seg.row(i)) + column; };
      finish_row<E, S>(sums + (i - begin) * pitch, has_input ? at(step.input, p.input) : nullptr,
                       uses_factor(E) ? at(step.factor, p.factor) : nullptr, step.current + i * step.stride + column,
                       at(step.output, p.output), columns);
    }
  };
  step.input ? finish(std::true_type()) : finish(std::false_type());
}

template <class S, class State>
using FinishRows = void (*)(const Step<S, State>& step, int64_t begin, int64_t end, Compute<S>* sums, int64_t pitch,
                            int64_t column, int64_t columns);

template <class S, class State>
FinishRows<S, State> finish_rows_for(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::tanh: return finish_rows<Epilogue::tanh, S, State>;
    case Epilogue::relu: return finish_rows<Epilogue::relu, S, State>;
    case Epilogue::tanh_derivative: return finish_rows<Epilogue::tanh_derivative, S, State>;
    case Epilogue::relu_derivative: return finish_rows<Epilogue::relu_derivative, S, State>;
    case Epilogue::given_derivative: return finish_rows<Epilogue::given_derivative, S, State>;
  }
  return nullptr;
}

// Asks for what finish_rows will read and write, while the tile before it multiplies. Inline, since GCC 12 drops calls
// that only prefetch.
template <class S, class State>
RNN_EXT_INLINE void fetch_rows(const Step<S, State>& step, int64_t begin, int64_t end, int64_t column,
                               int64_t columns) {
  constexpr int64_t line = 64 / sizeof(S);
  const auto& p = step.problem;
  for (int64_t i = begin; i < end; ++i) {
    auto fetch = [&](const auto* first, const auto& sequence) {
      if (!first) return;
      const auto* const row = first + sequence.offset(p.rows, step.seg.row(i)) + column;
      for (int64_t c = 0; c < columns; c += line) __builtin_prefetch(row + c);
    };
    fetch(step.input, p.input);
    fetch(step.factor, p.factor);
    fetch(step.output, p.output);
  }
}
