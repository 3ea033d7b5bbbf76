#include "cuda/planner.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace rnn_ext::cuda {
namespace {

// The model: cycles of a step, the longest way through it. Multiply-adds at the rate of a multiprocessor's lanes or of
// its tensor cores (an A100's, in 16 bits; half of that in TF32), or what it reads from shared memory at 128 bytes a
// cycle, whichever is longer; and what no width shortens. Those are orders of magnitude, for a choice between variants
// that differ by more: kFinish and kTensorFinish are what the compiler's schedule says of sums, tanh and the barrier
// (docs/cuda.md), of tensor cores' sums through shared memory and of up to four values for each thread; a cluster's
// barrier and stores, a flag through L2 and a launch are a fraction of a microsecond, one to two, and two to three on
// the devices that have been written about.
constexpr double kTensorRate = 1024, kSharedBytesPerCycle = 128, kFinish = 500, kTensorFinish = 1200, kCluster = 700,
                 kDevice = 2500, kLaunch = 5000, kMemory = 700;

// Float32 multiply-adds of a multiprocessor in a cycle: NVIDIA's programming guide, throughput of instructions.
double lanes(const Device& device) { return device.capability == 75 || device.capability == 80 ? 64 : 128; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One of the tiles of either kind, with as many rows of the batch at once.
struct Cut {
  bool tensor;
  int element_bytes;  // of the states, in shared memory and on their way there
  int tile, columns, threads, rows, values, state_bytes;
  int64_t multiply_bytes;  // of shared memory, beyond the states
  double cycles;           // of those rows through a block

  // Of a block: `buffers` of the states of so many rows; what multiplying takes; inputs and factors ahead of time, a
  // word for each value that a thread finishes.
  int64_t shared_bytes(int buffers, int64_t all_rows) const {
    return buffers * all_rows * state_bytes + multiply_bytes + 4 * int64_t{kAhead} * 2 * values * threads;
  }
};

double tile_cycles(double products, double rate, int64_t bytes, double finish) {
  return std::max(products / rate, static_cast<double>(bytes) / kSharedBytesPerCycle) + finish;
}

Cut float_cut(int index, int rows, int64_t hidden, const Device& device) {
  const FloatTile& tile = kFloatTiles[index];
  const int64_t depth = 4 * int64_t{tile.slices} * tile.chunks(hidden), weights = tile.weight_bytes(hidden);
  // Each warp reads all of the states, or as many of its threads as share a slice the same part of them at once.
  const int64_t states = 4 * depth * rows * (tile.threads() / 32);
  return {false,
          4,
          index,
          tile.columns,
          tile.threads(),
          rows,
          tile.values(rows),
          4 * tile.stride(hidden, rows),
          weights,
          tile_cycles(static_cast<double>(tile.columns * depth * rows), lanes(device), weights + states, kFinish)};
}

Cut tensor_cut(int index, int64_t hidden, int bytes) {
  const TensorTile& tile = kTensorTiles[index];
  const int64_t depth = tile.depth(hidden, bytes);
  // A group of warps reads all of the states, each its part of the depth; and sums are written and read.
  const int64_t states = bytes * depth * TensorTile::kRows * tile.groups(), sums = 2 * 4 * tile.handed();
  const double products = static_cast<double>(tile.columns * depth * TensorTile::kRows);
  return {
      true,
      bytes,
      index,
      tile.columns,
      tile.threads(),
      TensorTile::kRows,
      tile.values(),
      bytes * tile.stride(hidden, bytes),
      tile.multiply_bytes(hidden, bytes),
      tile_cycles(products, kTensorRate * 2 / bytes, tile.weight_bytes(hidden, bytes) + states + sums, kTensorFinish)};
}

std::string plural(int64_t n, const char* what) { return std::to_string(n) + ' ' + what + (n == 1 ? "" : "s"); }

// One that teams of blocks carry out, `rows` rows at a time; none if a block has not the shared memory, or the device
// not the blocks.
std::optional<Plan> team_plan(Variant variant, const Cut& cut, int64_t rows, const Shape& shape, const Device& device) {
  const bool persistent = variant == Variant::persistent;
  Plan plan;
  plan.variant = variant;
  plan.tensor = cut.tensor;
  plan.tile = cut.tile;
  plan.tile_rows = cut.rows;
  plan.rows = static_cast<int>(rows);
  plan.threads = cut.threads;
  plan.blocks = static_cast<int>(std::max<int64_t>(1, ceil_div(shape.hidden, cut.columns)));
  plan.shared_bytes = cut.shared_bytes(persistent ? 1 : 2, rows);
  if (plan.shared_bytes > device.shared_bytes) return std::nullopt;
  const int64_t items = shape.groups * ceil_div(shape.batch, rows), at_once = device.multiprocessors / plan.blocks;
  if (at_once == 0) return std::nullopt;
  plan.teams = static_cast<int>(persistent ? std::min(items, at_once) : items);
  if (persistent) {
    const int64_t width = int64_t{plan.blocks} * cut.columns;
    plan.workspace_bytes =
        flag_bytes(plan.teams * plan.blocks) + int64_t{cut.element_bytes} * plan.teams * 2 * plan.rows * width;
  }
  const double exchange = variant == Variant::resident ? 0 : variant == Variant::cluster ? kCluster : kDevice;
  const double tiles = static_cast<double>(rows / cut.rows) * cut.cycles;
  plan.cycles = static_cast<double>(ceil_div(items, at_once)) * (tiles + exchange);
  plan.why = (variant == Variant::resident  ? "resident, W in a block's registers and shared memory: "
              : variant == Variant::cluster ? "cluster, W in a cluster's registers and shared memory: "
                                            : "persistent, W in the registers and shared memory of many blocks: ") +
             plural(items, "part") + " of " + plural(rows, "row") + ", each " + plural(plan.blocks, "block") + " of " +
             plural(plan.threads, "thread") +
             (!cut.tensor              ? ""
              : cut.element_bytes == 4 ? " with tensor cores in TF32"
                                       : " with tensor cores") +
             (items > at_once ? ", " + std::to_string(at_once) + " at a time" : "");
  return plan;
}

// The better of two plans; of equals the first.
void keep_better(std::optional<Plan>& best, std::optional<Plan> other) {
  if (other && (!best || other->cycles < best->cycles)) best = std::move(other);
}

// With one tile of rows, or as many as make all rounds of all rows shortest.
std::optional<Plan> best_rows(Variant variant, const Cut& cut, const Shape& shape, const Device& device) {
  std::optional<Plan> best;
  const int64_t most = variant == Variant::resident || cut.rows == 1 ? cut.rows : std::max<int64_t>(shape.batch, 1);
  for (int64_t rows = cut.rows; rows < most + cut.rows; rows += cut.rows) {
    std::optional<Plan> plan = team_plan(variant, cut, rows, shape, device);
    if (!plan) break;
    keep_better(best, std::move(plan));
  }
  return best;
}

// The tiles that a variant may have, in the order of its preference.
std::vector<Cut> cuts_of(Variant variant, const Shape& shape, Format format, const Device& device) {
  std::vector<Cut> cuts;
  const bool tensor = format == Format::float16 ? device.capability >= 75 : device.capability >= 80;
  if (format == Format::float32) {
    const int first = variant == Variant::resident ? 0 : kWideTile;
    const int end = variant == Variant::resident  ? kResidentTiles
                    : variant == Variant::cluster ? kWideTile + 1
                                                  : kFloatTileCount;
    for (int tile = first; tile < end; ++tile)
      for (int rows : {1, kFloatTiles[tile].rows}) cuts.push_back(float_cut(tile, rows, shape.hidden, device));
  } else if (format != Format::float64 && tensor) {
    const int first = variant == Variant::resident  ? 0
                      : variant == Variant::cluster ? kClusterTensorTile
                                                    : kWideTensorTile;
    const int end = variant == Variant::resident  ? kResidentTensorTiles
                    : variant == Variant::cluster ? kClusterTensorTile + 1
                                                  : kNarrowTensorTile + 1;
    for (int tile = first; tile < end; ++tile) cuts.push_back(tensor_cut(tile, shape.hidden, tensor_bytes(format)));
  }
  // A block that is a team of its own has all columns, and no more than it needs.
  const int most = variant == Variant::cluster ? device.cluster_blocks : variant == Variant::resident ? 1 : INT32_MAX;
  cuts.erase(std::remove_if(cuts.begin(), cuts.end(),
                            [&](const Cut& cut) { return ceil_div(shape.hidden, cut.columns) > most; }),
             cuts.end());
  if (variant == Variant::resident)
    cuts.erase(std::remove_if(cuts.begin(), cuts.end(), [&](const Cut& cut) { return cut.tile > cuts[0].tile; }),
               cuts.end());
  return cuts;
}

Plan stepwise_plan(const Shape& shape, const Device& device) {
  Plan plan;
  // Blocks of 32 x 64 sums, four at a time on a multiprocessor, at half of its lanes' rate; or their slabs of 16, each
  // of which waits for memory. float64 is slower, but has no other variant to be compared with.
  const double blocks = static_cast<double>(shape.groups * ceil_div(shape.batch, 32) * ceil_div(shape.hidden, 64));
  const double rounds = std::max(1.0, blocks / std::max(1, 4 * device.multiprocessors));
  const double hidden = static_cast<double>(shape.hidden);
  plan.cycles = kLaunch + rounds * std::max(4 * 32 * 64 * hidden / (lanes(device) / 2), hidden / 16 * kMemory);
  plan.why = "stepwise, a launch for each step: ";
  return plan;
}

}  // namespace

std::optional<Plan> plan_for(Variant variant, const Shape& shape, Format format, const Device& device) {
  if (variant == Variant::stepwise) return stepwise_plan(shape, device);
  std::optional<Plan> best;
  for (const Cut& cut : cuts_of(variant, shape, format, device))
    keep_better(best, best_rows(variant, cut, shape, device));
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
  for (Variant variant : {Variant::resident, Variant::cluster, Variant::persistent}) {
    if (format == Format::tf32) keep_better(best, plan_for(variant, shape, Format::float32, device));
    keep_better(best, plan_for(variant, shape, format, device));
  }
  Plan stepwise = stepwise_plan(shape, device);
  if (best && best->cycles <= stepwise.cycles) return *best;
  stepwise.why += format == Format::float64 ? "float64"
                  : format == Format::bfloat16 && device.capability < 80
                      ? "tensor cores that take bfloat16 begin with sm_80"
                  : best ? "teams of blocks would take more turns than it takes time"
                         : "W at H = " + std::to_string(shape.hidden) + " does not fit the device";
  return stepwise;
}

}  // namespace rnn_ext::cuda
