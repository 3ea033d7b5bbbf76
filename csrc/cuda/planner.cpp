#include "cuda/planner.h"

#include <algorithm>
#include <stdexcept>

namespace rnn_ext::cuda {
namespace {

// The model: cycles of a step, the longest way through it. Multiply-adds at the rate of a multiprocessor's lanes, or
// what it reads from shared memory at 128 bytes a cycle, whichever is longer; and what no width shortens. Those are
// orders of magnitude, for a choice between variants that differ by more: kFinish is what the compiler's schedule says
// of sums, tanh and the barrier (docs/cuda.md); a cluster's barrier and stores, a flag through L2 and a launch are a
// fraction of a microsecond, one to two, and two to three on the devices that have been written about.
constexpr double kLanes = 128, kSharedBytesPerCycle = 128, kFinish = 500, kCluster = 700, kDevice = 2500,
                 kLaunch = 5000, kMemory = 700;
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tile of rows through a block.
double tile_cycles(const FloatTile& tile, int64_t hidden, int rows) {
  const int64_t depth = 4 * int64_t{tile.slices} * tile.chunks(hidden);
  // Each warp reads all of the states, or as many of its threads as share a slice the same part of them at once.
  const int64_t states = 4 * depth * rows * (tile.threads() / 32);
  return std::max(static_cast<double>(tile.columns * depth * rows) / kLanes,
                  static_cast<double>(tile.weight_bytes(hidden) + states) / kSharedBytesPerCycle) +
         kFinish;
}

std::string plural(int64_t n, const char* what) { return std::to_string(n) + ' ' + what + (n == 1 ? "" : "s"); }

// One that teams of `blocks` blocks each carry out, `rows` rows at a time in tiles of `tile_rows`; none if a block has
// not the shared memory.
std::optional<Plan> team_plan(Variant variant, int tile_index, int tile_rows, int64_t rows, const Shape& shape,
                              const Device& device) {
  const FloatTile& tile = kFloatTiles[tile_index];
  const bool persistent = variant == Variant::persistent;
  Plan plan;
  plan.variant = variant;
  plan.tile = tile_index;
  plan.tile_rows = tile_rows;
  plan.rows = static_cast<int>(rows);
  plan.threads = tile.threads();
  plan.blocks = static_cast<int>(std::max<int64_t>(1, ceil_div(shape.hidden, tile.columns)));
  plan.shared_bytes = shared_bytes(tile, shape.hidden, persistent ? 1 : 2, plan.rows, tile_rows);
  if (plan.shared_bytes > device.shared_bytes) return std::nullopt;
  const int64_t items = shape.groups * ceil_div(shape.batch, rows), at_once = device.multiprocessors / plan.blocks;
  if (at_once == 0) return std::nullopt;
  plan.teams = static_cast<int>(persistent ? std::min(items, at_once) : items);
  if (persistent)
    plan.workspace_bytes =
        flag_bytes(plan.teams * plan.blocks) + int64_t{4} * plan.teams * 2 * plan.rows * plan.blocks * tile.columns;
  const double exchange = variant == Variant::resident ? 0 : variant == Variant::cluster ? kCluster : kDevice;
  const double tiles = static_cast<double>(rows / tile_rows) * tile_cycles(tile, shape.hidden, tile_rows);
  plan.cycles = static_cast<double>(ceil_div(items, at_once)) * (tiles + exchange);
  plan.why = (variant == Variant::resident  ? "resident, W in a block's registers and shared memory: "
              : variant == Variant::cluster ? "cluster, W in a cluster's registers and shared memory: "
                                            : "persistent, W in the registers and shared memory of many blocks: ") +
             plural(items, "part") + " of " + plural(rows, "row") + ", each " + plural(plan.blocks, "block") + " of " +
             plural(plan.threads, "thread") + (items > at_once ? ", " + std::to_string(at_once) + " at a time" : "");
  return plan;
}

// The better of two plans; of equals the first.
void keep_better(std::optional<Plan>& best, std::optional<Plan> other) {
  if (other && (!best || other->cycles < best->cycles)) best = std::move(other);
}

// With one row, or with tiles of rows, as many of them as make the fewest rounds of all rows shortest.
std::optional<Plan> best_of_tile(Variant variant, int tile_index, const Shape& shape, const Device& device) {
  const FloatTile& tile = kFloatTiles[tile_index];
  std::optional<Plan> best = team_plan(variant, tile_index, 1, 1, shape, device);
  const int64_t most = variant == Variant::resident ? tile.rows : std::max<int64_t>(shape.batch, tile.rows);
  for (int64_t rows = tile.rows; rows < most + tile.rows; rows += tile.rows) {
    std::optional<Plan> plan = team_plan(variant, tile_index, tile.rows, rows, shape, device);
    if (!plan) break;
    keep_better(best, std::move(plan));
  }
  return best;
}

Plan stepwise_plan(const Shape& shape, const Device& device) {
  Plan plan;
  // Blocks of 32 x 64 sums, four at a time on a multiprocessor, at half of its lanes' rate; or their slabs of 16, each
  // of which waits for memory. float64 is slower, but has no other variant to be compared with.
  const double blocks = static_cast<double>(shape.groups * ceil_div(shape.batch, 32) * ceil_div(shape.hidden, 64));
  const double rounds = std::max(1.0, blocks / std::max(1, 4 * device.multiprocessors));
  const double hidden = static_cast<double>(shape.hidden);
  plan.cycles = kLaunch + rounds * std::max(4 * 32 * 64 * hidden / (kLanes / 2), hidden / 16 * kMemory);
  plan.why = "stepwise, a launch for each step: ";
  return plan;
}

}  // namespace

std::optional<Plan> plan_for(Variant variant, const Shape& shape, Format format, const Device& device) {
  if (variant == Variant::stepwise) return stepwise_plan(shape, device);
  if (format == Format::float64) return std::nullopt;
  std::optional<Plan> best;
  switch (variant) {
    case Variant::resident:
      for (int tile = 0; tile < kResidentTiles && !best; ++tile)
        if (shape.hidden <= kFloatTiles[tile].columns) best = best_of_tile(variant, tile, shape, device);
      break;
    case Variant::cluster:
      if (ceil_div(shape.hidden, kFloatTiles[kWideTile].columns) <= device.cluster_blocks)
        best = best_of_tile(variant, kWideTile, shape, device);
      break;
    default:
      for (int tile : {kWideTile, kNarrowTile}) keep_better(best, best_of_tile(variant, tile, shape, device));
  }
  return best;
}

Plan make_plan(const Shape& shape, Format format, const Device& device) {
  // Kernels count in four bytes, and a grid's second dimension has two.
  auto at_most = [](const char* name, int64_t size, int64_t limit) {
    if (size > limit)
      throw std::invalid_argument("the CUDA kernels take " + std::string(name) + " of at most " +
                                  std::to_string(limit) + ", got " + std::to_string(size));
  };
  at_most("T", shape.time, INT32_MAX - kAhead);
  at_most("B", shape.batch, 65535 * 32);
  at_most("G", shape.groups, kMaxGroups);
  at_most("H", shape.hidden, INT32_MAX / 64);
  std::optional<Plan> best;
  for (Variant variant : {Variant::resident, Variant::cluster, Variant::persistent})
    keep_better(best, plan_for(variant, shape, format, device));
  Plan stepwise = stepwise_plan(shape, device);
  if (best && best->cycles <= stepwise.cycles) return *best;
  stepwise.why += format == Format::float64 ? "float64"
                  : best                    ? "teams of blocks would take more turns than it takes time"
                                            : "W at H = " + std::to_string(shape.hidden) + " does not fit the device";
  return stepwise;
}

}  // namespace rnn_ext::cuda
