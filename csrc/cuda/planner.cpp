#include "cuda/planner.h"

#include <stdexcept>

namespace rnn_ext::cuda {

Plan make_plan(const Shape& shape, int element_bytes, const Device& device) {
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
  Plan plan;
  auto stepwise = [&](std::string why) {
    plan.why = "stepwise, a launch for each step: " + std::move(why);
    return plan;
  };
  const std::string hidden = std::to_string(shape.hidden);
  if (element_bytes == 8) return stepwise("float64");
  int tile = 0;
  while (tile < kResidentTileCount && kResidentTiles[tile].hidden < shape.hidden) ++tile;
  if (tile == kResidentTileCount) return stepwise("W at H = " + hidden + " does not fit one block");
  const ResidentTile& t = kResidentTiles[tile];
  // One row a block while every row finds a multiprocessor to itself: a step is then as short as it can be. Beyond
  // that, rows that share a block share its reading of W and of the clock.
  const int rows = shape.groups * shape.batch <= device.multiprocessors ? 1 : t.rows;
  const int64_t shared = resident_shared_bytes(t, rows);
  if (shared > device.shared_bytes)
    return stepwise("W at H = " + hidden + " takes " + std::to_string(shared) +
                    " bytes of shared memory, the device has " + std::to_string(device.shared_bytes));
  plan.variant = Variant::resident;
  plan.tile = tile;
  plan.rows = rows;
  plan.threads = t.threads();
  plan.shared_bytes = shared;
  plan.why = "resident, W in a block of " + std::to_string(plan.threads) + " threads as a " + std::to_string(t.hidden) +
             " x " + std::to_string(t.hidden) + " tile, " + std::to_string(rows) + (rows == 1 ? " row" : " rows") +
             " of the batch in a block";
  return plan;
}

}  // namespace rnn_ext::cuda
