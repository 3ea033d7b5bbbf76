// The loop over time: one worker's share of a call. Included inside a per-ISA namespace.
//
// Every worker goes through all T steps in one parallel region.
//
// K is one of the kernels, VectorKernel, DotKernel, AmxKernel or RowKernel: how tiles are multiplied, and in what
// formats.

// `projected` makes the input; null where it is given.
template <class K>
void run_segment(Worker<K>& me, const Segment& seg, const typename K::Packed* packed,
                 typename K::State* const states[2], ProjectedInput<K>* projected) {
  using S = typename K::Storage;
  using State = typename K::State;
  using Sum = typename K::Sum;
  const Problem<S>& p = me.problem;
  // Of one tile. It stays in L1.
  alignas(64) Sum sums[K::kSums];
  const Panels& panels = me.panels;
  const int tallest = me.kernel.tallest(panels.widest());
  const int64_t steps = p.shape.time, hidden = p.shape.hidden;
  const int64_t group_column = seg.group * hidden;
  const bool reversed = p.direction[seg.group] < 0, leaks = p.leaks();
  const FinishRows<S, State> finish = finish_rows_for<S, State>(p.epilogue);

  // Of a tile's whole rows, which begin at a cache line.
  const int64_t row_pitch = panels.padded_columns();
  std::vector<Sum> room(me.plan.whole_rows ? tallest * row_pitch + 64 / sizeof(Sum) : 0);
  Sum* const row_sums = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64 / sizeof(Sum);

  int64_t alive_before = 0;
  for (int64_t s = 0; s < steps && !me.retired; ++s) {
    const int64_t my_columns = me.column_end - me.column_begin;
    const int64_t t = reversed ? steps - 1 - s : s;
    const State* previous = states[s & 1];
    State* current = states[(s + 1) & 1];
    auto at = [&](const auto& sequence) { return sequence.at(p.rows, t + seg.group * sequence.lag) + group_column; };
    const S* input = p.input.data ? at(p.input) : nullptr;
    const S* factor = p.factor.data ? at(p.factor) : nullptr;
    S* output = at(p.output);

    const int64_t alive = seg.alive(p.rows, t);
    // The other rows begin here, from a ready product or from zero.
    const int64_t going = p.seed_kind == Seed::state ? alive : std::min(alive, alive_before);

    me.kernel.prepare(going);

    // Serpentine: odd steps go backwards, so that the panels used last, still in cache, come first.
    const bool backwards = s & 1;
    const int64_t first_panel = backwards ? me.panel_end - 1 : me.panel_begin;
    const int64_t first_row = me.plan.turns_in_l1 ? me.first_row(s) : 0;

    const Step<S, State> step = {p, seg, t, input, factor, output, current, me.stride, alive_before, going};
    auto batch_index = [&](int64_t i) { return p.rows.batch_index(seg.row(i)); };

    // A tile's sums in a panel: at `to`, `pitch` apart, unless the input that they are added to lies elsewhere.
    auto sums_of = [&](const Panel& panel, int64_t i0, int64_t i1, Sum* to,
                       int64_t& pitch) __attribute__((always_inline)) {
      if (me.plan.fetches_rows) fetch_rows(step, i0, i1, panel.column, panel.columns);
      if constexpr (K::tiling.projects) {
        if (projected) to = projected->begin_sums(s, panel, i0, i1, to, &pitch);
      }
      const typename K::Packed* const weights = packed + panels.offset(panel);
      const State* const rows = previous + i0 * me.stride;
      const int count = static_cast<int>(std::min(i1, going) - i0);
      const int64_t first = panel.index == first_panel ? first_row : 0;
      if constexpr (K::tiling.projects || K::tiling.sum_block > 0) {
        if (projected || first > 0 || me.plan.whole_rows) {
          if (count > 0)
            multiply_from(first, me.kernel, rows, me.stride, count, weights, panel.columns, me.plan.chains,
                          panels.depth, to, pitch, projected != nullptr);
          return to;
        }
      }
      me.kernel.multiply(rows, me.stride, count, weights, panel.columns, me.plan.chains, panels.depth, to,
                         me.fetch(packed, backwards ? panel.index - 1 : panel.index + 1, i0, i1, going));
      return to;
    };
    auto multiply_and_finish = [&](const Panel& panel, int64_t i0, int64_t i1) __attribute__((always_inline)) {
      int64_t pitch = panel.width * panels.lanes;
      Sum* const done = sums_of(panel, i0, i1, sums, pitch);
      finish(step, i0, i1, done, pitch, panel.column, panel.columns);
    };
    const int64_t tiled = projected ? alive : going;
    if (me.plan.whole_rows) {
      for_each_tile(tiled, tallest, [&](int64_t i0, int64_t i1) {
        int64_t pitch = row_pitch;
        for (int64_t j = me.panel_begin; j < me.panel_end; ++j)
          sums_of(me.cut[j], i0, i1, row_sums + me.cut[j].column - me.column_begin, pitch);
        finish(step, i0, i1, row_sums, pitch, me.column_begin, my_columns);
      });
    } else if (me.plan.tiles_first) {
      for_each_tile(tiled, tallest, [&](int64_t i0, int64_t i1) {
        for (int64_t j = me.panel_begin; j < me.panel_end; ++j) multiply_and_finish(me.cut[j], i0, i1);
      });
    } else {
      for (int64_t n = me.panel_begin; n < me.panel_end; ++n) {
        const Panel& panel = me.cut[backwards ? me.panel_end - 1 - (n - me.panel_begin) : n];
        for_each_tile(tiled, tallest, [&](int64_t i0, int64_t i1) { multiply_and_finish(panel, i0, i1); });
      }
    }
    for (int64_t i = tiled; i < alive; ++i) {
      for (int64_t j = me.panel_begin; j < me.panel_end; ++j) {
        const auto [index, column, width, columns] = me.cut[j];
        std::fill(sums, sums + width * panels.lanes, Sum(0));
        if (p.seed_kind == Seed::product && !leaks)
          convert_row(sums, p.seed.at(seg.group, batch_index(i)) + column, columns);
        finish(step, i, i + 1, sums, 0, column, columns);
      }
    }

    const int64_t alive_next = s + 1 < steps ? seg.alive(p.rows, reversed ? t - 1 : t + 1) : 0;
    for (int64_t i = std::min(alive, alive_next); i < alive; ++i) {
      S* last = p.last.at(seg.group, batch_index(i)) + me.column_begin;
      if (leaks)  // What lies in `current` may be scaled for the next step.
        std::memcpy(last, output + p.output.offset(p.rows, seg.row(i)) + me.column_begin, my_columns * sizeof(S));
      else
        convert_row(last, current + i * me.stride + me.column_begin, my_columns);
    }
    if (p.rows.resets || p.masks_states()) {
      // Of the later of the two steps between which the boundary lies.
      const bool* resets = p.rows.resets ? p.rows.resets + (reversed ? t : t + 1) * p.shape.batch : nullptr;
      carry_over(me, seg, std::min(alive, alive_next), resets, current);
    }
    if (!p.output.packed()) {
      // As many at once as lie side by side.
      auto ended = [&](int64_t i) { return output + p.output.offset(p.rows, seg.row(i)) + me.column_begin; };
      for (int64_t i = alive; i < seg.count;) {
        S* const begin = ended(i);
        S* end = begin;
        do end += my_columns;
        while (++i < seg.count && ended(i) == end);
        clear_row(begin, end - begin);
      }
    }
    alive_before = alive;
    if (me.peer_count > 1) {
      me.meet_peers();
      fetch_states(me, current, alive_next);
    }
  }
}

template <class K>
void run(const Problem<typename K::Storage>& problem, const Plan& plan, const Workspace& space, int worker,
         int workers) {
  const Shape& shape = problem.shape;
  // Should fewer workers have come than planned, all of them split rows: slower, and right.
  const bool as_planned = workers == plan.workers();
  const int column_workers = as_planned ? plan.column_workers : 1;
  const int row_workers = workers / column_workers;
  const int row_worker = worker / column_workers, column_worker = worker % column_workers;

  const Panels panels(shape.hidden, shape.hidden, K::tiling, plan.panels);
  const Panels projection_panels(shape.hidden, shape.features, K::tiling, plan.projection_panels);
  K kernel(panels);
  const int64_t begin = column_worker * panels.count / column_workers;
  const int64_t end = (column_worker + 1) * panels.count / column_workers;
  StepBarrier all(space.arrivals, 0, workers);
  StepBarrier peers(space.arrivals + workers, row_worker * column_workers, column_workers, shape.groups * shape.time);
  Worker<K> me = {problem,
                  panels,
                  space.cut,
                  plan,
                  begin,
                  end,
                  std::min(shape.hidden, panels.first(begin) * panels.lanes),
                  std::min(shape.hidden, panels.first(end) * panels.lanes),
                  plan.state_stride,
                  peers,
                  column_worker,
                  column_workers,
                  false,
                  kernel};
  // W_hh in all places, W_ih in all, and their biases.
  const int64_t places = plan.places(shape.groups);
  auto* const packed = static_cast<typename K::Packed*>(space.packed);
  auto* const packed_ih = packed + (K::tiling.packs ? places * panels.packed_size() : 0);
  auto* const biases = packed_ih + (K::tiling.packs ? places * projection_panels.packed_size() : 0);
  auto place_of = [&](int64_t group) { return plan.packs_alone ? row_worker : group; };
  auto* const states = static_cast<typename K::State*>(space.states);
  auto states_of = [&](const Segment& seg, typename K::State* pair[2]) {
    constexpr int64_t page = kApart / sizeof(typename K::State);
    for (int b = 0; b < 2; ++b)
      pair[b] =
          states + (b * shape.groups * shape.batch + seg.state_row) * me.stride + (b * workers + row_worker + 1) * page;
  };

  // Panels of my own columns, which so land in my own cache: all of them, or each `parts`-th.
  auto pack = [&](int64_t g, int part, int parts) {
    const int64_t place = place_of(g);
    auto for_my_share = [&](const Panels& p, auto pack_one) {
      for (int64_t j = begin * p.count / panels.count; j < end * p.count / panels.count; ++j)
        if ((g + j) % parts == part) pack_one(j);
    };
    // A single step from zeros or a product multiplies no state.
    if constexpr (K::tiling.packs) {
      if (shape.time > 1 || problem.seed_kind == Seed::state)
        for_my_share(panels, [&](int64_t j) {
          K::pack(problem.weight, g, problem.transpose, panels, j, packed + place * panels.packed_size());
        });
    }
    if constexpr (K::tiling.projects) {
      for_my_share(projection_panels, [&](int64_t j) {
        if constexpr (K::tiling.packs)
          K::pack(problem.projection.weight, g, false, projection_panels, j,
                  packed_ih + place * projection_panels.packed_size());
        fill_bias(problem.projection, projection_panels, g, j, biases + place * panels.padded_columns());
      });
    }
  };
  if (!plan.packs_alone)
    for (int64_t g = 0; g < shape.groups; ++g) pack(g, row_worker, row_workers);
  for_each_segment(shape, problem.rows, row_worker, row_workers, [&](const Segment& seg) {
    typename K::State* pair[2];
    states_of(seg, pair);
    if (problem.seed_kind == Seed::state) seed_states(me, seg, pair);
    if constexpr (sizeof(typename K::State) == 2) clear_padding(me, seg, pair);
  });
  if (workers > 1 && !plan.packs_alone) all.arrive_and_wait(worker);
  auto weights_of = [&](const auto& w, const typename K::Packed* packed_weights, const Panels& p, int64_t group) {
    if constexpr (K::tiling.packs)
      return packed_weights + place_of(group) * p.packed_size();
    else
      return w.data + group * p.hidden * p.inner;
  };
  for_each_segment(shape, problem.rows, row_worker, row_workers, [&](const Segment& seg) {
    if (plan.packs_alone) pack(seg.group, 0, 1);
    typename K::State* pair[2];
    states_of(seg, pair);
    const auto* const weights = weights_of(problem.weight, packed, panels, seg.group);
    if constexpr (K::tiling.projects) {
      if (shape.features > 0) {
        // My rows' part of it; of inputs made ahead with those who share their columns: each makes its own.
        const int64_t parts = plan.ahead ? row_workers : workers, part = plan.ahead ? row_worker : worker;
        const int64_t size = plan.inputs_bytes / sizeof(typename K::Sum) / parts;
        ProjectedInput<K> projected(
            me, seg, projection_panels, weights_of(problem.projection.weight, packed_ih, projection_panels, seg.group),
            biases + place_of(seg.group) * panels.padded_columns(),
            static_cast<typename K::Sum*>(space.inputs) + part * size, size / (seg.count * panels.padded_columns()));
        return run_segment(me, seg, weights, pair, &projected);
      }
    }
    run_segment<K>(me, seg, weights, pair, nullptr);
  });
}
