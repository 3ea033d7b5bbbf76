// The CUDA planner over devices from Turing to Blackwell: within their limits, total, and monotone.
#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "check.h"
#include "cuda/planner.h"

using namespace rnn_ext;
using namespace rnn_ext::cuda;

namespace {

struct Named {
  const char* name;
  Device device;
};
// Compute capability, multiprocessors, bytes of shared memory for one block, blocks of a cluster: NVIDIA's programming
// guide, tables of compute capabilities.
constexpr Named kDevices[] = {
    {"T4", {75, 40, 65536, 0}},      {"A100", {80, 108, 166912, 0}},   {"RTX 4090", {89, 128, 101376, 0}},
    {"H100", {90, 132, 232448, 16}}, {"B200", {100, 148, 232448, 16}},
};

// Registers of a multiprocessor, and the most that a thread may use, which nvcc allots in units of 8.
constexpr int kRegisters = 65536, kThreadRegisters = 255;

// What any plan must be for its kernel to start, and to have all of W.
int check_plan(const char* name, const Shape& shape, Format format, const Plan& plan, const Device& device) {
  const long hidden = long(shape.hidden), batch = long(shape.batch);
  CHECK(!plan.why.empty() && plan.cycles > 0, "%s H=%ld: no reason", name, hidden);
  if (plan.variant == Variant::stepwise) return failures;
  const bool tensor = plan.tensor, persistent = plan.variant == Variant::persistent;
  const FloatTile& tile = kFloatTiles[plan.tile];
  const TensorTile& tensor_tile = kTensorTiles[plan.tile];
  const int columns = tensor ? tensor_tile.columns : tile.columns, rows = tensor ? TensorTile::kRows : tile.rows;
  const int threads = tensor ? tensor_tile.threads() : tile.threads();
  CHECK(int64_t{plan.blocks} * columns >= shape.hidden, "%s H=%ld: %d blocks of %d columns", name, hidden, plan.blocks,
        columns);
  const int bytes = tensor ? tensor_bytes(format) : 4;
  const int64_t state =
      bytes * int64_t{tensor ? tensor_tile.stride(shape.hidden, bytes) : tile.stride(shape.hidden, plan.tile_rows)};
  const int64_t multiply = tensor ? tensor_tile.multiply_bytes(shape.hidden, bytes) : tile.weight_bytes(shape.hidden);
  const int values = tensor ? tensor_tile.values() : tile.values(plan.tile_rows);
  CHECK(plan.shared_bytes <= device.shared_bytes &&
            plan.shared_bytes == (persistent ? 1 : 2) * plan.rows * state + multiply + 8 * kAhead * values * threads,
        "%s H=%ld: %ld bytes of shared memory", name, hidden, long(plan.shared_bytes));
  CHECK(plan.threads == threads && threads <= 1024 && threads % 32 == 0, "%s H=%ld: %d threads", name, hidden, threads);
  // A block has a multiprocessor to itself, and there its threads find the weights that they hold, and what is theirs
  // besides: sums, and 40 for states, addresses and the rest.
  const int registers = std::min(kThreadRegisters, kRegisters / threads / 8 * 8);
  const int held = 4 * (tensor ? tensor_tile.held : tile.held);
  const int sums = tensor ? 2 * tensor_tile.sums() : plan.tile_rows * tile.outputs;
  CHECK(held + sums + 40 <= registers, "%s H=%ld: %d registers of %d", name, hidden, held + sums + 40, registers);
  CHECK(plan.rows % plan.tile_rows == 0 && ((!tensor && plan.tile_rows == 1) || plan.tile_rows == rows),
        "%s H=%ld B=%ld: %d rows in tiles of %d", name, hidden, batch, plan.rows, plan.tile_rows);
  const int64_t items = shape.groups * ((shape.batch + plan.rows - 1) / plan.rows);
  switch (plan.variant) {
    case Variant::resident:
      CHECK(plan.blocks == 1 && plan.teams == items && plan.rows == plan.tile_rows &&
                plan.tile < (tensor ? kResidentTensorTiles : kResidentTiles),
            "%s H=%ld: %d teams of %d", name, hidden, plan.teams, plan.blocks);
      break;
    case Variant::cluster:
      CHECK(plan.blocks <= device.cluster_blocks && plan.teams == items, "%s H=%ld: a cluster of %d", name, hidden,
            plan.blocks);
      break;
    default:
      // All at the same time, one to a multiprocessor.
      CHECK(plan.teams * plan.blocks <= device.multiprocessors && plan.teams <= items && plan.teams > 0,
            "%s H=%ld: %d teams of %d", name, hidden, plan.teams, plan.blocks);
      const int64_t states = int64_t{bytes} * plan.teams * 2 * plan.rows * plan.blocks * columns;
      CHECK(plan.workspace_bytes == states + flag_bytes(plan.teams * plan.blocks), "%s H=%ld: workspace", name, hidden);
  }
  return failures;
}

constexpr Format kFormats[] = {Format::float64, Format::float32, Format::tf32, Format::float16, Format::bfloat16};

bool has_tensor_cores(Format format, const Device& device) {
  return format == Format::float16 ? device.capability >= 75
                                   : (format == Format::bfloat16 || format == Format::tf32) && device.capability >= 80;
}

// Plans within the device's limits, the fastest by the model, and as H grows:
//   a variant that has once not fitted does not fit again;
//   the estimate never falls below half of a smaller H's: H grows in steps of tiles;
//   the choice goes from one block to many, and to a launch for each step; back again only where the two are about as
//   fast, as they are at the edges of tiles.
int check_growing_hidden(const Named& named, Format format, int64_t batch) {
  const Device& device = named.device;
  bool fitted[3] = {true, true, true};
  double last = 0;
  Variant furthest = Variant::resident;
  for (int64_t hidden = 1; hidden <= 8192; hidden += hidden < 300 ? 1 : 257) {
    for (int64_t groups : {1, 2}) {
      const Shape shape = {100, batch, groups, hidden};
      const Plan plan = make_plan(shape, format, device);
      const Format chosen = format == Format::tf32 && !plan.tensor ? Format::float32 : format;
      if (check_plan(named.name, shape, chosen, plan, device)) return failures;
      CHECK(format != Format::float64 || plan.variant == Variant::stepwise, "%s: float64", named.name);
      CHECK(!plan.tensor || has_tensor_cores(format, device), "%s: tensor cores", named.name);
      CHECK(plan.tensor || plan.variant == Variant::stepwise || format == Format::float32 || format == Format::tf32,
            "%s: 16 bits by multiply-adds", named.name);
      for (Variant variant : {Variant::resident, Variant::cluster, Variant::persistent}) {
        const std::optional<Plan> other = plan_for(variant, shape, format, device);
        if (other && check_plan(named.name, shape, format, *other, device)) return failures;
        CHECK(!other || other->cycles >= plan.cycles, "%s H=%ld: not the fastest", named.name, long(hidden));
        bool& fits = fitted[static_cast<int>(variant)];
        CHECK(fits || !other, "%s B=%ld: H=%ld fits, a smaller did not", named.name, long(batch), long(hidden));
        fits = other.has_value();
      }
      if (groups > 1) continue;
      CHECK(plan.cycles >= 0.5 * last, "%s B=%ld H=%ld: %g cycles after %g", named.name, long(batch), long(hidden),
            plan.cycles, last);
      last = plan.cycles;
      if (plan.variant < furthest) {
        std::optional<Plan> other = plan_for(furthest, shape, format, device);
        if (format == Format::tf32 && furthest != Variant::stepwise) {
          const std::optional<Plan> in_float32 = plan_for(furthest, shape, Format::float32, device);
          if (in_float32 && (!other || in_float32->cycles < other->cycles)) other = in_float32;
        }
        CHECK(other && other->cycles <= 1.5 * plan.cycles, "%s B=%ld H=%ld: %g cycles, and further %g", named.name,
              long(batch), long(hidden), plan.cycles, other ? other->cycles : 0.0);
      }
      furthest = std::max(furthest, plan.variant);
    }
  }
  return failures;
}

// More rows are never estimated at less, nor does leave to multiply in TF32 make anything slower.
int check_growing_batch(const Named& named, Format format, int64_t hidden) {
  double last = 0;
  for (int64_t batch = 1; batch <= 1024; batch += batch < 150 ? 1 : 13) {
    const Shape shape = {100, batch, 1, hidden};
    const double cycles = make_plan(shape, format, named.device).cycles;
    CHECK(cycles >= last, "%s H=%ld B=%ld: %g cycles after %g", named.name, long(hidden), long(batch), cycles, last);
    last = cycles;
    CHECK(format != Format::tf32 || cycles <= make_plan(shape, Format::float32, named.device).cycles,
          "%s H=%ld B=%ld: TF32 is slower", named.name, long(hidden), long(batch));
  }
  return failures;
}

int check_device(const Named& named) {
  for (Format format : kFormats) {
    for (int64_t batch : {1, 2, 16, 100, 133, 1024})
      if (check_growing_hidden(named, format, batch)) return failures;
    for (int64_t hidden : {1, 64, 100, 128, 256, 384, 700, 1024, 1500, 2048, 3000, 8192})
      if (check_growing_batch(named, format, hidden)) return failures;
  }
  return failures;
}

// The shapes the variants are for, on the devices they are for.
int check_choices() {
  const Device t4 = kDevices[0].device, a100 = kDevices[1].device, h100 = kDevices[3].device;
  const struct {
    Shape shape;
    Device device;
    Variant want;
  } choices[] = {
      {{100, 1, 1, 64}, t4, Variant::resident},       {{100, 16, 1, 256}, a100, Variant::resident},
      {{100, 1, 1, 512}, h100, Variant::cluster},     {{100, 16, 1, 1024}, a100, Variant::persistent},
      {{100, 1, 1, 2048}, h100, Variant::persistent}, {{100, 4096, 1, 2048}, a100, Variant::stepwise},
      {{100, 1, 1, 8192}, h100, Variant::stepwise},
  };
  for (const auto& c : choices) {
    const Plan plan = make_plan(c.shape, Format::float32, c.device);
    CHECK(plan.variant == c.want, "sm_%d B=%ld H=%ld: %s", c.device.capability, long(c.shape.batch),
          long(c.shape.hidden), plan.why.c_str());
  }
  // A multiprocessor of these two has 64 lanes for float32, the others have 128.
  for (const Named& named : kDevices) {
    const bool few = named.device.capability <= 80;
    const double less = plan_for(Variant::resident, {100, 1, 1, 64}, Format::float32, named.device)->cycles;
    const double more = plan_for(Variant::resident, {100, 1, 1, 128}, Format::float32, named.device)->cycles;
    const double want = (128.0 * 128 - 64.0 * 64) / (few ? 64 : 128);
    CHECK(more - less == want, "%s: %g cycles more for W of four times the size, not %g", named.name, more - less,
          want);
  }
  return failures;
}

// The parts of W lie where the kernel looks for them: every element once.
int check_tiles() {
  for (const FloatTile& tile : kFloatTiles) {
    CHECK(tile.slices <= 32 && 32 % tile.slices == 0, "tile of %d: a sum is spread over warps", tile.columns);
    CHECK(tile.threads() % 32 == 0 && tile.columns % tile.outputs == 0, "tile of %d", tile.columns);
    if (tile.depth)
      CHECK(4 * tile.depth * tile.slices == tile.columns && tile.held <= tile.depth * tile.outputs, "tile of %d",
            tile.columns);
  }
  return failures;
}

int check_tensor_tiles() {
  for (const TensorTile& tile : kTensorTiles) {
    CHECK(16 * tile.tiles() * tile.groups() == tile.columns && tile.groups() * tile.splits() == tile.warps,
          "tile of %d: some warps have more", tile.columns);
    CHECK(tile.values() * tile.finishers() == tile.sums() && tile.finishers() % 2 == 0, "tile of %d", tile.columns);
  }
  return failures;
}

int check_limits() {
  const Device device = kDevices[1].device;
  int refused = 0;
  for (const Shape& shape : {Shape{int64_t{1} << 31, 1, 1, 1}, Shape{1, int64_t{1} << 22, 1, 1},
                             Shape{1, 1, kMaxGroups + 1, 1}, Shape{1, 1, 1, int64_t{1} << 26}}) {
    try {
      make_plan(shape, Format::float32, device);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused == 4, "%d of 4 sizes that cannot be counted are refused", refused);
  // Whatever is not refused has a plan: nothing, and as much as can be counted.
  for (const Shape& shape :
       {Shape{0, 0, 0, 0}, Shape{1, 1, 1, 0}, Shape{INT32_MAX - kAhead, 65535 * 32, kMaxGroups, INT32_MAX / 64}})
    CHECK(!make_plan(shape, Format::float32, device).why.empty(), "no plan");
  return failures;
}

}  // namespace

int main() {
  for (const Named& named : kDevices)
    if (check_device(named)) return 1;
  if (check_choices() || check_tiles() || check_tensor_tiles() || check_limits()) return 1;
  std::printf("CUDA planner: %zu devices\n", std::size(kDevices));
  return 0;
}
