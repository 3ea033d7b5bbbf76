#include "planner.h"

#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace rnn_ext {

namespace {

// The cost model counts cycles of one core. Its figures are those of current x86 server cores; they only
// have to rank the grids below, and the ranking is far from the margin for most shapes.
constexpr double kLoadPorts = 2;         // vector loads a cycle that hit L1
constexpr double kL2BytesPerCycle = 44;  // sustained, streaming
constexpr double kL3BytesPerCycle = 10;  // likewise
constexpr double kMemoryBytesPerCycle = 4;
constexpr double kNotOverlapped = 0.25;   // of FMAs and loads from beyond L1, what takes less time
constexpr double kEpilogueCycles = 12;    // a vector of tanh, its loads and stores
constexpr double kRowStepCycles = 20;     // calls and address arithmetic of a row in a step
constexpr double kWaitCycles = 300;       // for the later of two who meet after a step, beside what meeting takes
constexpr double kLaunchCycles = 12000;   // waking the pool and joining it: about 4 us
constexpr double kPackedLineCycles = 80;  // a line of W that another core has packed, once a call

// More threads for less than this would not be noticed, but for what they take from others and what others take from
// them.
constexpr double kWorthMoreThreads = 1.15;

// Steps whose inputs are made ahead: several tiles' worth, so that W_ih comes from L2 once for all of them.
constexpr int64_t kStepsAhead = 64;

// See worth_packing and projects. All of them are where the two ways took equal time on an AVX-512 core.
constexpr int64_t kHiddenPerRow = 8, kRowsWorthPacking = 16, kRowsWorthPacking16 = 2, kElementsWorthPacking = 1 << 14,
                  kRowsLikeAGemm = 8;

// See projects: of so many rows the two ways take equal time on AVX2, and on AVX-512 a GEMM takes 1.05 times as long.
constexpr int64_t kRowsWorthL3 = 8;

// From here on a tile takes long enough for what its epilogue wants to come meanwhile. At half of that, asking for it
// costs 1 to 5 %.
constexpr int64_t kHiddenWorthFetching = 256;

// See worth_turning: with three rows, or where a block is a sixteenth of W, it costs some percent instead.
constexpr int kTurningRows = 2, kBlocksWorthTurning = 8;

// A quarter of a cache is left to everything else that a step touches.
constexpr double kCacheShare = 0.75;

// Two FMAs a cycle of latency 4 need so many sums in flight, and a few more to be at ease.
constexpr int kSumsInFlight = 8;

// Bytes of a row of a panel that comes from beyond L2, at the most. What L2 keeps of one step for the next, it keeps by
// whole panels, so that narrow ones leave less of it unused: on AVX-512 half a kilobyte cost 3 to 5 % at B = 1, H = 896
// to 1024. On AVX2 this much is 8 vectors, the widest there are.
constexpr int kStreamedRowBytes = 256;

// What a block of a wide panel's sums takes: that much of W is still in L1 when the next step begins with it.
double block_bytes(const Tiling& k) { return k.sum_block * k.wide_panel_vectors * k.lanes * k.packed_bytes; }

// Whether that is worth it, of so many bytes of W: multiplying by a part of a panel costs something, too. And with more
// rows, FMAs take longer than what comes from L2.
bool worth_turning(double rows, double bytes, const Tiling& k, const Machine& m) {
  return rows <= kTurningRows && bytes > m.l1 && bytes <= kBlocksWorthTurning * block_bytes(k);
}

double weight_bytes_per_cycle(double bytes, double in_l1, const Machine& m, double vector_bytes) {
  const double from_l1 = kLoadPorts * vector_bytes;
  auto mixed = [=](double kept, double near, double far) {
    return 1 / (kept / bytes / near + (1 - kept / bytes) / far);
  };
  if (bytes < kCacheShare * m.l1) return from_l1;
  if (bytes < kCacheShare * m.l2) return mixed(in_l1, from_l1, kL2BytesPerCycle);
  // Serpentine order finds what L2 still holds of the last step.
  if (bytes < kCacheShare * m.l3) return mixed(kCacheShare * m.l2, kL2BytesPerCycle, kL3BytesPerCycle);
  return kMemoryBytesPerCycle;
}

// How many vectors wide the panels of a worker's share of W, of so many bytes, are at the most, for so many rows.
int widest_panel(int64_t rows, double share, const Machine& m, const Tiling& k) {
  int widest = rows <= k.wide_panel_rows ? k.wide_panel_vectors : k.panel_vectors;
  if (k.tile_vectors > 0 && rows > 0) {
    // The tallest of these rows' tiles, which are as few as can be and of nearly one height (for_each_tile).
    const int most = k.tile_vectors / k.panel_vectors;
    const int64_t tiles = (rows + most - 1) / most;
    const int tallest = static_cast<int>((rows + tiles - 1) / tiles);
    if (tallest * k.panel_vectors <= kSumsInFlight) widest = k.wide_panel_vectors;
    widest = std::min(widest, k.tile_vectors / tallest);
    // From L2 a panel comes once for each tile: a narrower one for all rows at once is 1.05 to 1.19 times as fast at 8
    // rows on AVX-512. (From L3 it would be 0.86.)
    if (rows > most && rows <= k.tile_rows && share > m.l1 && share <= m.l2)
      widest = std::min<int>(widest, k.tile_vectors / static_cast<int>(rows));
  }
  const int vector_row_bytes = k.lanes * k.depth_multiple * k.packed_bytes;
  return share > m.l2 ? std::min(widest, std::max(k.panel_vectors, kStreamedRowBytes / vector_row_bytes)) : widest;
}

struct Grid {
  int rows, columns;
};

// Of one group, that a worker takes through a step.
int64_t rows_together(const Shape& s, Grid grid) {
  return std::min(s.batch, (s.groups * s.batch + grid.rows - 1) / grid.rows);
}

// Whether a worker makes inputs of several steps at once, which fill tiles then.
bool makes_ahead(const Shape& s, const Tiling& k, int64_t rows) {
  return s.features > 0 && rows <= k.wide_panel_rows && !s.ragged;
}

// What one worker of a grid multiplies: so many rows by so many vectors of columns of W_hh and W_ih.
struct Share {
  double rows, vectors, depth, weight_bytes;
};

Share share_of(const Shape& s, const Tiling& k, Grid grid) {
  const double rows = std::max<double>(1, (s.groups * s.batch + grid.rows - 1) / grid.rows);
  const double groups = std::max<double>(1, std::min<double>(s.groups, rows / std::max<int64_t>(1, s.batch)));
  const double vectors = ((s.hidden + k.lanes - 1) / k.lanes + grid.columns - 1.0) / grid.columns;
  const double depth = static_cast<double>(s.hidden + s.features);
  return {rows, vectors, depth, groups * depth * vectors * k.lanes * k.packed_bytes};
}

// Whether row workers pack for themselves. What each keeps in its L2 anyway it has there sooner than it comes from the
// core that has packed it: a line takes 8 cycles to be packed, and ten times that to come. But of weights that
// stay in L3, which all share, one copy is enough.
bool packs_alone(const Shape& s, const Tiling& k, const Machine& m, Grid grid) {
  const Share mine = share_of({s.time, s.batch, 1, s.hidden, s.features}, k, {1, grid.columns});
  return grid.columns == 1 && (grid.rows == 1 || mine.weight_bytes <= kCacheShare * m.l2);
}

// What a call on more than one thread takes before its first step.
double start_cycles(const Shape& s, const Tiling& k, const Machine& m, Grid grid) {
  const bool shares = k.packs && !packs_alone(s, k, m, grid);
  const double from_others = shares ? share_of(s, k, grid).weight_bytes * (1 - 1.0 / grid.rows) : 0;
  return kLaunchCycles + from_others / 64 * kPackedLineCycles;
}

double step_cycles(const Shape& s, const Tiling& k, const Machine& m, Grid grid) {
  const Share my = share_of(s, k, grid);
  const double tiled_rows = std::ceil(my.rows / k.row_multiple) * k.row_multiple;
  const double fma = tiled_rows * my.depth * my.vectors / k.multiply_adds_per_cycle;
  // W_ih is there once for many steps, where inputs are made ahead.
  const double bytes =
      makes_ahead(s, k, rows_together(s, grid)) ? my.weight_bytes * s.hidden / my.depth : my.weight_bytes;
  const double in_l1 = worth_turning(my.rows, bytes, k, m) ? block_bytes(k) : 0;
  const double weight_stream = bytes / weight_bytes_per_cycle(bytes, in_l1, m, k.lanes * k.packed_bytes);
  // The two overlap, but not wholly.
  double cycles = std::max(fma, weight_stream) + kNotOverlapped * std::min(fma, weight_stream) +
                  my.rows * (my.vectors * kEpilogueCycles + kRowStepCycles);
  if (grid.columns > 1) {
    const double others = (s.hidden + k.lanes - 1) / k.lanes - my.vectors;
    const double lines = my.rows * others * k.lanes * k.state_bytes / 64;
    cycles += kWaitCycles + m.meeting.barrier_cycles + lines * m.meeting.state_line_cycles;
  }
  return cycles;
}

// The grid of least cycles, for all steps; and what one thread would take.
struct Choice {
  Grid grid = {1, 1};
  double cycles, serial_cycles;
};

Choice choose_grid(const Shape& s, const Tiling& k, const Machine& m, int threads, bool may_share_columns) {
  const int64_t vectors = (s.hidden + k.lanes - 1) / k.lanes;
  Choice best;
  best.cycles = best.serial_cycles = s.time * step_cycles(s, k, m, best.grid);
  double least = best.serial_cycles / kWorthMoreThreads;
  const int64_t most_columns = may_share_columns ? std::min<int64_t>(threads, std::max<int64_t>(1, vectors)) : 1;
  for (int columns = 1; columns <= most_columns; ++columns) {
    const Grid grid = {static_cast<int>(std::clamp<int64_t>(s.groups * s.batch, 1, threads / columns)), columns};
    if (grid.rows * grid.columns == 1) continue;
    const double cycles = start_cycles(s, k, m, grid) + s.time * step_cycles(s, k, m, grid);
    if (cycles < least) {
      least = best.cycles = cycles;
      best.grid = grid;
    }
  }
  return best;
}

Machine ask_machine() {
  Machine machine = {32 << 10, 512 << 10, 8 << 20};
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  auto ask = [](int name, int64_t* size) {
    const int64_t answer = sysconf(name);
    if (answer > 0) *size = answer;
  };
  ask(_SC_LEVEL1_DCACHE_SIZE, &machine.l1);
  ask(_SC_LEVEL2_CACHE_SIZE, &machine.l2);
  ask(_SC_LEVEL3_CACHE_SIZE, &machine.l3);
#endif
#if defined(__x86_64__)
  // AMD's core complexes. By name and not by a measurement: it decides who multiplies by W_ih, and so on bits. Its
  // size from the processor: glibc's is that of all complexes, 320 MiB where a core can use 32.
  machine.near_l3 = __builtin_cpu_is("amd");
  unsigned a, ways, sets, d;
  if (machine.near_l3 && __get_cpuid_count(0x8000001d, 3, &a, &ways, &sets, &d) && ways > 0)
    machine.l3 = (int64_t(ways >> 22) + 1) * ((ways >> 12 & 0x3ff) + 1) * ((ways & 0xfff) + 1) * (int64_t(sets) + 1);
#endif
  return machine;
}

}  // namespace

Machine this_machine() {
  static const Machine machine = ask_machine();
  return machine;
}

Plan make_plan(const Shape& shape, const Tiling& tiling, const Machine& machine, int threads, bool may_share_columns) {
  const int64_t all_rows = shape.groups * shape.batch;
  const int64_t vectors = (shape.hidden + tiling.lanes - 1) / tiling.lanes;
  const Choice choice = choose_grid(shape, tiling, machine, threads, may_share_columns);
  const Grid best = choice.grid;

  Plan plan;
  plan.row_workers = best.rows;
  plan.column_workers = best.columns;
  const int64_t rows = rows_together(shape, best);
  const int64_t share = (vectors + best.columns - 1) / best.columns * tiling.lanes * shape.hidden * tiling.packed_bytes;
  plan.streams = share > kCacheShare * machine.l2;
  // Of a row, a panel is a quarter of a kilobyte; whole rows are streams that the hardware's prefetchers see, and are
  // fewer pages: 3 to 10 % for large batches. But L2 then serves all weights once for each tile, where with panels
  // first each is in L2 while it is used, whatever else has been there: at 0.6 of L2 that costs 6 %.
  const int64_t weights = share + share / std::max<int64_t>(1, shape.hidden) * shape.features;
  plan.tiles_first = weights <= machine.l2 / 2 && rows > tiling.wide_panel_rows;
  plan.fetches_rows = rows * shape.hidden * tiling.state_bytes > machine.l1 && shape.hidden >= kHiddenWorthFetching;
  plan.turns_in_l1 = worth_turning(rows, share, tiling, machine);
  const int widest = widest_panel(rows, share, machine, tiling);
  // As few as the registers allow, and the same number for every column worker.
  auto panels_for = [&](int64_t vectors_a_panel) {
    const int64_t fewest = (vectors + vectors_a_panel - 1) / vectors_a_panel;
    return std::min(vectors, (fewest + best.columns - 1) / best.columns * best.columns);
  };
  plan.panels = panels_for(widest);
  // A row's epilogue is entered once, not once for each panel, and has more vectors under way: on AVX2, whose panels
  // are 16 columns, 5 to 15 %.
  plan.whole_rows = plan.tiles_first && tiling.sum_block > 0 && plan.panels > best.columns;
  plan.chains = vectors <= tiling.two_chain_vectors ? 2 : 1;
  const Panels panels(shape.hidden, shape.hidden, tiling, plan.panels);
  for (int64_t j = 0; j < panels.count; ++j) plan.cut.push_back(panels.at(j));
  // Whole cache lines, and one more: at H = 1024 rows would otherwise lie 4096 bytes apart, and all of a tile's rows
  // fall into one set of the L1 cache.
  const int64_t line = 64 / tiling.state_bytes;
  auto stride_of = [=](int64_t columns) { return ((columns + line - 1) / line + 1) * line; };
  plan.state_stride = stride_of(panels.padded_columns());
  auto packed_bytes = [&](const Panels& p) { return tiling.packs ? p.packed_size() * tiling.packed_bytes : 0; };
  plan.packs_alone = packs_alone(shape, tiling, machine, best);
  plan.packed_bytes = plan.places(shape.groups) * packed_bytes(panels);
  plan.states_bytes = 2 * all_rows * plan.state_stride * tiling.state_bytes + (2 * plan.workers() + 1) * kApart;
  if (shape.features > 0) {
    plan.ahead = makes_ahead(shape, tiling, rows);
    plan.projection_panels = plan.ahead ? panels_for(tiling.panel_vectors) : plan.panels;
    const Panels ih(shape.hidden, shape.features, tiling, plan.projection_panels);
    plan.packed_bytes += plan.places(shape.groups) * (packed_bytes(ih) + ih.padded_columns() * tiling.packed_bytes);
    plan.x_stride = stride_of(shape.features);
    // Of inputs each worker makes its own columns, of rows of x it wants all.
    const int64_t columns = plan.ahead     ? best.rows * std::min(shape.time, kStepsAhead) * panels.padded_columns()
                            : shape.ragged ? plan.workers() * plan.x_stride
                                           : 0;
    // A row more, for the case that fewer workers come and share the room.
    plan.inputs_bytes = columns * (rows + 1) * tiling.packed_bytes;
  }
  plan.cycles = choice.cycles;
  plan.serial_cycles = choice.serial_cycles;
  return plan;
}

bool meeting_matters(const Shape& shape, const Tiling& tiling, Machine machine, int threads) {
  machine.meeting = {};
  return choose_grid(shape, tiling, machine, threads, true).grid.columns > 1;
}

bool worth_packing(const Shape& s, bool in_16_bits) {
  // Matrix units and conversions to float leave no more.
  if (in_16_bits) return s.time * s.batch > kRowsWorthPacking16;
  // Without, a sum's lanes are to be added up in the end, which for H terms takes about 8 / H of the time that packing
  // takes for H steps; and where a step has several rows each reads the weights anew.
  const int64_t enough = std::max<int64_t>(1, s.hidden / kHiddenPerRow);
  return s.time * s.batch > (s.batch == 1 ? enough : std::min(enough, kRowsWorthPacking));
}

bool projects(const Shape& s, const Tiling& tiling, const Machine& machine) {
  if (!tiling.projects || s.features == 0) return false;
  const int64_t rows = s.time * s.batch;
  if (!tiling.packs) return rows <= kRowsLikeAGemm;
  // Packing W_ih takes about a cycle an element. A GEMM of few rows reads it as it lies, for some microseconds more.
  if (rows < kRowsWorthPacking && s.hidden * s.features > kElementsWorthPacking) return false;
  // Larger weights would come from L3 in each step; a GEMM of the whole sequence blocks them. But where L3 is near,
  // some rows' multiplications do not wait for it, and there is no u to be written, and to be read again.
  const int64_t nearby = machine.near_l3 && s.batch >= kRowsWorthL3 ? machine.l3 : machine.l2;
  return s.hidden * (s.hidden + s.features) * tiling.packed_bytes <= kCacheShare * nearby;
}

std::string reason(const Plan& plan, const Shape& shape) {
  char text[256];
  const double gain = plan.serial_cycles / plan.cycles;
  if (plan.workers() == 1)
    std::snprintf(text, sizeof text, "%lld steps of about %.0f cycles leave more threads nothing to gain",
                  static_cast<long long>(shape.time),
                  plan.cycles / static_cast<double>(std::max<int64_t>(1, shape.time)));
  else if (plan.column_workers == 1)
    std::snprintf(text, sizeof text, "%lld rows split over %d threads, no barrier: about %.1fx one thread",
                  static_cast<long long>(shape.groups * shape.batch), plan.row_workers, gain);
  else
    std::snprintf(text, sizeof text,
                  "columns of W split over %d threads, one barrier a step, so that each keeps its share of "
                  "W in its cache: about %.1fx one thread",
                  plan.column_workers, gain);
  return text;
}

}  // namespace rnn_ext
