// The CUDA planner over devices from Turing to Blackwell: within their limits, total, and monotone.
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
// Compute capability, multiprocessors, bytes of shared memory for one block: NVIDIA's programming guide, tables of
// compute capabilities.
constexpr Named kDevices[] = {
    {"T4", {75, 40, 65536}},     {"A100", {80, 108, 166912}},  {"RTX 4090", {89, 128, 101376}},
    {"H100", {90, 132, 232448}}, {"B200", {100, 148, 232448}},
};

int check_device(const Named& named) {
  for (int element_bytes : {2, 4, 8}) {
    for (int64_t batch : {1, 2, 16, 100, 133, 1024}) {
      bool fitted = true;
      for (int64_t hidden = 1; hidden <= 8192; hidden += hidden < 300 ? 1 : 257) {
        for (int64_t groups : {1, 2}) {
          const Plan plan = make_plan({100, batch, groups, hidden}, element_bytes, named.device);
          CHECK(!plan.why.empty(), "%s H=%ld: no reason", named.name, long(hidden));
          const bool resident = plan.variant == Variant::resident;
          CHECK(!resident || element_bytes < 8, "%s H=%ld: float64 is resident", named.name, long(hidden));
          if (groups == 1) {
            // What does not fit at one H does not at a larger.
            CHECK(fitted || !resident, "%s B=%ld: H=%ld fits, a smaller did not", named.name, long(batch),
                  long(hidden));
            fitted = resident;
          }
          if (!resident) continue;
          const ResidentTile& tile = kResidentTiles[plan.tile];
          CHECK(tile.hidden >= hidden && (plan.tile == 0 || kResidentTiles[plan.tile - 1].hidden < hidden),
                "%s H=%ld has the tile of %d", named.name, long(hidden), tile.hidden);
          CHECK(plan.shared_bytes <= named.device.shared_bytes, "%s H=%ld: %ld bytes of shared memory", named.name,
                long(hidden), long(plan.shared_bytes));
          CHECK(plan.threads <= 1024 && plan.threads % 32 == 0, "%s H=%ld: %d threads", named.name, long(hidden),
                plan.threads);
          // The weights a thread holds leave it registers for sums, states and addresses.
          CHECK(4 * tile.held + plan.rows * tile.outputs + 4 * plan.rows <= (plan.threads > 256 ? 128 : 255) - 32,
                "%s H=%ld: too many registers", named.name, long(hidden));
          CHECK(plan.rows == (groups * batch <= named.device.multiprocessors ? 1 : tile.rows),
                "%s H=%ld B=%ld: %d rows a block", named.name, long(hidden), long(batch), plan.rows);
        }
      }
    }
  }
  return failures;
}

// The parts of W lie where the kernel looks for them: every element once.
int check_tiles() {
  for (const ResidentTile& tile : kResidentTiles) {
    CHECK(tile.threads() * tile.outputs * tile.depth == tile.hidden * tile.hidden, "tile of %d", tile.hidden);
    CHECK(tile.slices() <= 32 && 32 % tile.slices() == 0, "tile of %d: a sum is spread over warps", tile.hidden);
    CHECK(tile.depth % 4 == 0 && tile.held <= tile.chunks(), "tile of %d", tile.hidden);
  }
  return failures;
}

int check_limits() {
  const Device device = kDevices[1].device;
  int refused = 0;
  for (const Shape& shape : {Shape{int64_t{1} << 31, 1, 1, 1}, Shape{1, int64_t{1} << 22, 1, 1},
                             Shape{1, 1, kMaxGroups + 1, 1}, Shape{1, 1, 1, int64_t{1} << 26}}) {
    try {
      make_plan(shape, 4, device);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused == 4, "%d of 4 sizes that cannot be counted are refused", refused);
  return failures;
}

}  // namespace

int main() {
  for (const Named& named : kDevices)
    if (check_device(named)) return 1;
  if (check_tiles() || check_limits()) return 1;
  std::printf("CUDA planner: %zu devices\n", std::size(kDevices));
  return 0;
}
