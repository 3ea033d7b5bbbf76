// The planner, without the hardware: invariants over a grid of machines, instruction sets and shapes.
#include <algorithm>
#include <set>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/panels.h"
#include "cpu/planner.h"

using namespace rnn_ext;

namespace {

constexpr Machine kMachines[] = {
    {32 << 10, 256 << 10, 8 << 20},                              // a laptop of 2015
    {48 << 10, 2 << 20, 105 << 20},                              // Sapphire Rapids
    {32 << 10, 1 << 20, 32 << 20, {280, 16}, /*near_l3=*/true},  // Zen 4
    {128 << 10, 12 << 20, 0},                                    // Apple M1: no L3
};

int check_invariants(const Shape& shape, const Tiling& tiling, const Machine& machine, int threads) {
  const Plan plan = make_plan(shape, tiling, machine, threads);
  const Panels panels(shape.hidden, shape.hidden, tiling, plan.panels);
  CHECK(plan.row_workers >= 1 && plan.column_workers >= 1 && plan.workers() <= threads, "H=%ld: %d x %d of %d",
        long(shape.hidden), plan.row_workers, plan.column_workers, threads);
  CHECK(plan.row_workers <= std::max<int64_t>(1, shape.groups * shape.batch), "a worker without a row");
  CHECK(panels.count >= plan.column_workers, "a worker without a panel: %ld panels, %d workers", long(panels.count),
        plan.column_workers);
  CHECK(static_cast<int64_t>(plan.cut.size()) == panels.count, "%zu panels of %ld", plan.cut.size(),
        long(panels.count));
  int64_t column = 0;
  for (const Panel& panel : plan.cut) {
    CHECK(panel.column == column && panel.columns > 0 && panel.columns <= panel.width * tiling.lanes,
          "a panel's place");
    column += panel.columns;
  }
  CHECK(column == shape.hidden, "H=%ld: panels of %ld columns", long(shape.hidden), long(column));
  CHECK(!(plan.tiles_first && plan.streams), "weights from L3 once for each tile");
  for (int64_t j = 0; j < panels.count; ++j)
    CHECK(panels.width(j) >= 1 && panels.width(j) <= tiling.wide_panel_vectors, "panel of %d vectors", panels.width(j));
  CHECK(plan.state_stride >= std::max(panels.padded_columns(), panels.depth), "state rows overlap");
  CHECK(plan.state_stride * tiling.state_bytes % 64 == 0, "state rows begin within a cache line");
  CHECK(panels.depth >= shape.hidden && panels.depth < shape.hidden + tiling.depth_multiple, "depth");
  CHECK(panels.count % plan.column_workers == 0, "workers with unequal numbers of panels");
  int64_t packed = panels.packed_size();
  if (shape.features > 0) {
    const Panels ih(shape.hidden, shape.features, tiling, plan.projection_panels);
    packed += ih.packed_size() + ih.padded_columns();
    CHECK(ih.count % plan.column_workers == 0, "H=%ld: panels of W_ih that two workers share", long(shape.hidden));
    CHECK(!plan.ahead || !shape.ragged, "steps made ahead whose rows are not evenly spaced");
    CHECK(plan.ahead || ih.count == panels.count || shape.time * shape.batch == 0,
          "tiles of one step are of panels that differ");
    // Where several steps are made ahead they fill tiles, however few rows each has.
    const int widest = plan.ahead ? tiling.panel_vectors : tiling.wide_panel_vectors;
    for (int64_t j = 0; j < ih.count; ++j) CHECK(ih.width(j) <= widest, "panel of %d", ih.width(j));
  }
  CHECK(plan.packed_bytes == (plan.packs_alone ? plan.row_workers : shape.groups) * packed * tiling.packed_bytes,
        "packed size");
  CHECK(!plan.packs_alone || plan.column_workers == 1, "a place for each row worker, of which there may come more");
  CHECK(plan.states_bytes ==
            2 * shape.groups * shape.batch * plan.state_stride * tiling.state_bytes + (2 * plan.workers() + 1) * kApart,
        "states size");
  CHECK(!plan.turns_in_l1 || panels.packed_size() * tiling.packed_bytes / plan.column_workers <= machine.l2,
        "turns in L1 with what comes from L3");
  CHECK(!reason(plan, shape).empty() && plan.cycles <= plan.serial_cycles, "unexplained");
  // The order of summation may depend on H and the instruction set alone.
  const Plan alone = make_plan({shape.time, 1, 1, shape.hidden, shape.features}, tiling, machine, 1);
  CHECK(plan.chains == alone.chains, "H=%ld: chains depend on more than H", long(shape.hidden));
  return failures;
}

int check_panels() {
  for (int lanes : {4, 8, 16}) {
    const Tiling tiling = {lanes, 4, 4, 1, 4, 8, 3, 4, 1, 2.0};
    for (int64_t hidden = 1; hidden < 600; ++hidden) {
      const int64_t vectors = (hidden + lanes - 1) / lanes;
      for (int64_t count = (vectors + 7) / 8; count <= vectors; ++count) {
        const Panels p(hidden, hidden, tiling, count);
        int64_t columns = 0;
        for (int64_t j = 0; j < p.count; ++j) {
          CHECK(p.offset(j) == columns * hidden, "H=%ld panel %ld misplaced", long(hidden), long(j));
          CHECK(p.width(j) >= 1 && p.width(j) <= 8, "H=%ld panel %ld is %d wide", long(hidden), long(j), p.width(j));
          CHECK(p.width(j) <= p.width(0) + 1 && p.width(0) <= p.width(j) + 1, "H=%ld uneven", long(hidden));
          columns += p.width(j) * lanes;
        }
        CHECK(columns >= hidden && columns - hidden < lanes, "H=%ld: %ld columns", long(hidden), long(columns));
      }
    }
  }
  return failures;
}

}  // namespace

int main() {
  if (check_panels()) return 1;
  for (const Machine& machine : kMachines)
    for (const Isa* isa : compiled_isas())
      for (const Tiling& tiling : {isa->f32.tiling, isa->f64.tiling, isa->f16.tiling, isa->bf16.tiling})
        for (int threads : {1, 2, 3, 8, 64})
          for (int64_t time : {0, 1, 10, 100000})
            for (int64_t batch : {0, 1, 2, 3, 7, 32, 257})
              for (int64_t groups : {1, 2, 5})
                for (int64_t hidden : {1, 2, 15, 16, 17, 63, 64, 65, 129, 256, 1000, 1024, 4096})
                  for (int64_t features : {0, 1, 100})
                    for (bool ragged : {false, true})
                      if (check_invariants({time, batch, groups, hidden, features, ragged}, tiling, machine, threads))
                        return 1;

  // What a person would do, on a machine with 2 MiB of L2 a core.
  const Machine& machine = kMachines[1];
  // With AVX-512's float kernels, which pack weights or take them as they lie; or, where none are compiled, such
  // figures.
#if defined(__x86_64__)
  const Tiling packing = compiled_isas().back()->f32.tiling, by_rows = compiled_isas().back()->f32_rows.tiling;
#else
  const Tiling packing = {16, 4, 4, 1, 4, 8, 3, 4, 1, 2.0, true, true, 64, 24, 8};
  const Tiling by_rows = {16, 4, 4, 1, 4, 8, 3, 0, 1, 1.0, true, false};
#endif
  auto plan = [&](int64_t t, int64_t b, int64_t g, int64_t h, int threads) {
    return make_plan({t, b, g, h}, packing, machine, threads);
  };
  CHECK(plan(100, 1, 1, 64, 2).workers() == 1, "a step of a tenth of a microsecond is not worth a barrier");
  CHECK(plan(1000, 1, 1, 192, 2).workers() == 1, "a barrier takes as long as is gained by half of 144 KiB of W");
  CHECK(plan(100, 1, 1, 512, 2).column_workers == 2, "half a MiB of W takes longer than a barrier");
  Machine near = machine;
  near.meeting = {280, 16};  // cores that share a cache
  CHECK(make_plan({1000, 1, 1, 192}, packing, near, 2).column_workers == 2, "a barrier takes a fifth of a step");
  CHECK(make_plan({1000, 1, 1, 64}, packing, near, 2).column_workers == 1, "a barrier takes two steps");
  CHECK(plan(100, 1, 1, 256, 1).turns_in_l1 && plan(100, 2, 1, 256, 1).turns_in_l1, "256 KiB of W come from L2");
  CHECK(!plan(100, 1, 1, 64, 1).turns_in_l1, "16 KiB of W stay in L1");
  CHECK(!plan(100, 3, 1, 256, 1).turns_in_l1, "with rows enough L2 is not what takes the time");
  CHECK(!plan(100, 1, 1, 512, 1).turns_in_l1, "32 KiB of 1 MiB are not worth it");
  CHECK(plan(100, 32, 1, 256, 2).row_workers == 2, "rows for every core need no barrier");
  CHECK(plan(100, 1, 1, 1024, 2).column_workers == 2, "each core keeps half of W in its L2");
  CHECK(plan(100, 1, 2, 256, 2).row_workers == 2, "two directions go to two cores");
  CHECK(make_plan({100, 4, 1, 256, 256}, packing, machine, 2).row_workers == 2,
        "W_ih comes from L2 once for many steps, so that a second core for other rows is worth more than for columns");
  CHECK(plan(100, 32, 1, 256, 2).packs_alone, "256 KiB come from another core later than they are packed");
  CHECK(!plan(50, 64, 1, 1024, 2).packs_alone, "4 MiB of W are once in the L3 that both read");
  auto projected = [&](const Shape& shape, bool as_they_lie = false) {
    return projects(shape, as_they_lie ? by_rows : packing, machine);
  };
  CHECK(projected({100, 32, 1, 64, 64}), "W_ih and W_hh of 64 fit any L2");
  CHECK(!projected({1, 1, 1, 256, 256}), "one row is not worth packing W_ih");
  CHECK(!projected({100, 32, 1, 1024, 1024}), "4 MiB of W_ih would come from L3 in each step");
  const Machine& zen = kMachines[2];
  CHECK(projects({100, 32, 1, 1024, 1024}, packing, zen), "8 MiB of weights come from an L3 that is near");
  CHECK(!projects({100, 4, 1, 1024, 1024}, packing, zen), "four rows would wait for it");
  CHECK(!projects({100, 32, 1, 2048, 2048}, packing, zen), "32 MiB of weights would come from memory");
  CHECK(projected({1, 1, 1, 1024, 1024}, true) && !projected({100, 1, 1, 1024, 1024}, true), "of a GEMM's rows");
  CHECK(!worth_packing({1, 1, 1, 64}, false) && !worth_packing({16, 1, 1, 1024}, false), "a few steps");
  CHECK(worth_packing({100, 1, 1, 64}, false) && worth_packing({1, 32, 1, 1024}, false), "many rows");
  CHECK(!worth_packing({1, 1, 1, 64}, true) && worth_packing({16, 1, 1, 1024}, true), "16 bits");
  CHECK(!plan(100, 1, 1, 512, 1).streams, "1 MiB of W stays in L2");
  CHECK(plan(50, 64, 1, 1024, 2).streams, "each of two workers of other rows has all 4 MiB of W");
  CHECK(!plan(100, 1, 1, 768, 2).streams, "half of 2.25 MiB stays in L2");
  CHECK(plan(100, 1, 1, 1024, 1).panels > plan(100, 1, 1, 1024, 2).panels,
        "panels are narrow where L2 keeps half of W");
  // 16 vectors of columns: tiles of 6 rows by 4 vectors, of which 8 rows would be two, or of 8 by 3.
  CHECK(plan(100, 6, 1, 256, 1).panels == 4 && plan(100, 16, 1, 256, 1).panels == 4, "each load feeds 6 FMAs");
  CHECK(plan(100, 7, 1, 256, 1).panels == 6 && plan(100, 8, 1, 256, 1).panels == 6, "W comes from L2 once, not twice");
  CHECK(plan(100, 8, 1, 64, 1).panels == 1, "16 KiB of W are in L1 for the second tile");
  CHECK(plan(1, 1, 1, 64, 64).workers() == 1, "one small step is not worth waking a thread");
  if (failures == 0) std::printf("planner: all invariants hold\n");
  return failures != 0;
}
