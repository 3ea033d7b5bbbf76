// Who computes what: a worker's columns, the segments of rows that it takes through time, and what becomes of their
// states between steps. Included inside a per-ISA namespace.
//
// The states lie in two compact buffers (the previous step's and this one's), row stride `stride`, whatever the layout
// of the tensors: the microkernel streams them, and the epilogue copies each finished state to where the output wants
// it.

template <class K>
struct Worker {
  const Problem<typename K::Storage>& problem;
  const Panels& panels;  // of W_hh
  const Panel* cut;      // each of them: to find one takes divisions, as long as a short tile's product
  const Plan& plan;
  int64_t panel_begin, panel_end;    // my columns, in panels
  int64_t column_begin, column_end;  // the same in elements, at most H
  int64_t stride;                    // of a state row
  StepBarrier& peers;                // who shares my rows and computes their other columns
  int peer, peer_count;
  bool retired;  // a peer has taken my work over
  K& kernel;

  // Panel j, as far as it is the part of rows [begin, end) of so many: each tile of the panel before it brings that, if
  // panels come from L3. A tile that is alone in its panel is shorter than the next one's way; then all that matters is
  // the stream from L3, and the hardware's prefetcher sees to that.
  Fetch fetch(const typename K::Packed* packed, int64_t j, int64_t begin, int64_t end, int64_t rows) const {
    if (!plan.streams || end - begin == rows || j < panel_begin || j >= panel_end) return {this, 0};
    const int64_t bytes = cut[j].width * panels.lanes * panels.depth * sizeof(typename K::Packed);
    const char* panel = reinterpret_cast<const char*>(packed + panels.offset(cut[j]));
    return {panel + begin * bytes / rows, (end - begin) * bytes / rows / panels.depth};
  }

  // Where step s begins to multiply its first panel, if it turns in L1: with the last block of the panel's sums, if
  // that is three quarters of a whole one (of less, the detour takes longer), which the step before ended with. If it
  // is the only panel, that began there too, and so ended with one before.
  int64_t first_row(int64_t s) const {
    const int64_t block = K::tiling.sum_block, blocks = block ? (panels.depth + block / 4) / block : 0;
    const bool alone = panel_end - panel_begin == 1;
    return std::max<int64_t>(0, blocks - 1 - (alone && s % 2 == 0)) * block;
  }

  // The end of a step that peers share. What a peer that lost its core would do, one of the others does from now on.
  void meet_peers() {
    const bool late = peers.arrive_and_wait(peer);
    const int survivor = peers.takeover();
    if (survivor < 0) {
      if (late) peers.propose_takeover(peer);
    } else {
      retired = survivor != peer;
      peer_count = 1;
      panel_begin = column_begin = 0;
      panel_end = panels.count;
      column_end = problem.shape.hidden;
    }
  }
};

// Rows of one group that one worker takes through time: rows first, first + step, ... , count of them.
struct Segment {
  int64_t group, first, step, count;
  int64_t state_row;  // where they lie in the state buffers: contiguous, behind those of the workers before

  int64_t row(int64_t i) const { return first + i * step; }
  int64_t alive(const Rows& rows, int64_t t) const {
    if (!rows.ragged()) return count;
    const int64_t n = rows.alive_at[t] - first;
    return n <= 0 ? 0 : std::min(count, (n + step - 1) / step);
  }
};

// Both buffers, since a reversed row may enter at any step.
template <class K>
void seed_states(const Worker<K>& me, const Segment& seg, typename K::State* const states[2]) {
  const auto& p = me.problem;
  const int64_t columns = me.column_end - me.column_begin;
  for (int64_t i = 0; i < seg.count; ++i) {
    const int64_t row = p.rows.batch_index(seg.row(i));
    for (int b = 0; b < 2; ++b) {
      typename K::State* state = states[b] + i * me.stride + me.column_begin;
      convert_row(state, p.seed.at(seg.group, row) + me.column_begin, columns);
      if (p.masks_states()) multiply_row(state, p.mask.at(seg.group, row) + me.column_begin, columns);
    }
  }
}

// kernel.multiply_onto, but for the block of the sums that is made first: the one from row `first` of the panel on. It
// waits for its turn, so that the bits are the same.
template <class K>
void multiply_from(int64_t first, K& kernel, const typename K::State* a, int64_t stride, int rows,
                   const typename K::Packed* panel, int columns, int chains, int64_t depth, typename K::Sum* sums,
                   int64_t pitch, bool add) {
  using Sum = typename K::Sum;
  const int width = vectors_of<Sum>(columns) * K::tiling.lanes;
  auto multiply = [&](int64_t begin, int64_t end, Sum* to, int64_t to_pitch, bool onto) {
    kernel.multiply_onto(a + begin, stride, rows, panel + begin * width, columns, chains, end - begin, to, to_pitch,
                         onto);
  };
  if (first == 0) return multiply(0, depth, sums, pitch, add);
  alignas(64) Sum waiting[K::kSums];
  const int64_t next = std::min(first + K::tiling.sum_block, depth);
  multiply(first, next, waiting, width, false);
  multiply(0, first, sums, pitch, add);
  for (int i = 0; i < rows; ++i)
    for (int c = 0; c < width; c += K::tiling.lanes)
      store(sums + i * pitch + c, load(sums + i * pitch + c) + load(waiting + i * width + c));
  if (next < depth) multiply(next, depth, sums, pitch, true);
}

// Asks for what peers have made of the rows that are multiplied next: all at once, since a line takes longer to come
// from another core than a few of them take to be multiplied.
template <class K>
void fetch_states(const Worker<K>& me, const typename K::State* states, int64_t rows) {
  constexpr int64_t line = 64 / sizeof(typename K::State);
  for (int64_t i = 0; i < rows; ++i) {
    const auto* const row = states + i * me.stride;
    for (int64_t c = 0; c < me.column_begin; c += line) __builtin_prefetch(row + c);
    for (int64_t c = me.column_end; c < me.problem.shape.hidden; c += line) __builtin_prefetch(row + c);
  }
}

// What stands between a finished step and the next, for the rows that go on: a reset row's state is zeros, and M's
// mask, unless M is transposed, belongs to what it multiplies.
template <class K>
void carry_over(const Worker<K>& me, const Segment& seg, int64_t rows, const bool* resets, typename K::State* states) {
  const auto& p = me.problem;
  const int64_t columns = me.column_end - me.column_begin;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = p.rows.batch_index(seg.row(i));
    typename K::State* state = states + i * me.stride + me.column_begin;
    if (resets && resets[row])
      std::fill(state, state + columns, typename K::State{});
    else if (p.masks_states())
      multiply_row(state, p.mask.at(seg.group, row) + me.column_begin, columns);
  }
}

// What follows a 16-bit state's last column is multiplied too (pairs.inl).
template <class K>
void clear_padding(const Worker<K>& me, const Segment& seg, typename K::State* const states[2]) {
  if (me.column_end < me.problem.shape.hidden) return;
  for (int64_t i = 0; i < seg.count; ++i)
    for (int b = 0; b < 2; ++b)
      std::memset(states[b] + i * me.stride + me.column_end, 0,
                  (me.stride - me.column_end) * sizeof(typename K::State));
}

// Calls visit(begin, end) for each tile of so many rows: as few tiles as fit the registers, all of nearly one height,
// since a low tile wastes FMA slots.
template <class Visit>
RNN_EXT_INLINE void for_each_tile(int64_t rows, int64_t tallest, Visit visit) {
  const int64_t tiles = (rows + tallest - 1) / tallest;
  for (int64_t tile = 0; tile < tiles; ++tile) visit(tile * rows / tiles, (tile + 1) * rows / tiles);
}

// Calls visit(segment) for each segment of row worker `w` of `workers`.
template <class Visit>
void for_each_segment(const Shape& shape, const Rows& rows, int64_t w, int64_t workers, Visit visit) {
  const int64_t batch = shape.batch;
  if (rows.ragged() && shape.groups % workers != 0) {
    // Long rows come first, so neighbours are dealt out in turn, and every worker ends at about the
    // same time. Its rows lie together in the state buffers, behind those of the workers before it.
    const int64_t count = w < batch ? (batch - w + workers - 1) / workers : 0;
    const int64_t before = w * (batch / workers) + std::min(w, batch % workers);
    for (int64_t g = 0; g < shape.groups && count > 0; ++g)
      visit(Segment{g, w, workers, count, before * shape.groups + g * count});
    return;
  }
  // One even cut of all G*B rows: whole groups to a worker where there are enough of them.
  const int64_t all = shape.groups * batch;
  const int64_t end = (w + 1) * all / workers;
  for (int64_t row = w * all / workers; row < end;) {
    const int64_t g = row / batch, first = row % batch;
    const int64_t count = std::min(batch - first, end - row);
    visit(Segment{g, first, 1, count, row});
    row += count;
  }
}
