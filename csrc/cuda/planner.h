// Which kernel a problem gets on a device: a pure function of both, without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "recurrence.h"

namespace rnn_ext::cuda {

// Their directions are a kernel's argument, of 4 KiB in all.
constexpr int kMaxGroups = 2048;

// What the runtime says of a device.
struct Device {
  int capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int shared_bytes = 0;  // that one block may ask for
};

enum class Variant : int {
  resident,  // W in one block's registers and shared memory for the whole sequence
  stepwise,  // a launch for each step
};

// How `resident` cuts a matrix of at most hidden x hidden: a thread has `outputs` rows of `depth` elements each, in
// chunks of four, and `slices` threads, neighbours in a warp, share the depth. `held` of a thread's chunks are in
// registers, the others in shared memory.
struct ResidentTile {
  int hidden, outputs, depth, held;
  int rows;  // of the batch that one block takes where there are enough of them; else it takes one

  constexpr int slices() const { return hidden / depth; }
  constexpr int threads() const { return hidden / outputs * slices(); }
  constexpr int chunks() const { return outputs * depth / 4; }
  // Elements between the states of neighbouring rows: a warp writes all rows' at once, and they meet different banks.
  constexpr int stride(int rows) const { return hidden + (rows > 1 ? 32 / rows : 0); }
};

// A thread of the third has 64 weights in registers, of the 255 that it may use. One of the last may use 128; with 56
// weights among them nvcc finds room for all but a few of its other values, and the rest of W, read from shared memory
// once a step, just fits an A100's.
constexpr ResidentTile kResidentTiles[] = {
    {32, 4, 4, 4, 4},
    {64, 4, 4, 4, 4},
    {128, 8, 8, 16, 4},
    {256, 8, 16, 14, 2},
};
constexpr int kResidentTileCount = sizeof(kResidentTiles) / sizeof(kResidentTiles[0]);

// Steps whose input is on its way while an earlier one computes; their copies take as many buffers.
constexpr int kAhead = 3;

// Shared memory of a block that takes `rows` rows: two states of each, the weights that registers do not hold, and the
// inputs and factors ahead of time, a word for each value that a thread finishes.
constexpr int64_t resident_shared_bytes(const ResidentTile& tile, int rows) {
  const int values = rows * tile.outputs > tile.slices() ? rows * tile.outputs / tile.slices() : 1;
  const int64_t states = 2 * rows * tile.stride(rows), weights = 4 * (tile.chunks() - tile.held);
  return 4 * (states + (weights + kAhead * 2 * values) * tile.threads());
}

struct Plan {
  Variant variant = Variant::stepwise;
  int tile = 0;  // of kResidentTiles
  int rows = 0;  // of the batch in one block
  int threads = 0;
  int64_t shared_bytes = 0;
  std::string why;
};

// element_bytes: of the dtype; 8 is float64. Throws std::invalid_argument for sizes that kernels cannot count: T and H
// near 2^31, B over two million, more than kMaxGroups groups.
Plan make_plan(const Shape& shape, int element_bytes, const Device& device);

}  // namespace rnn_ext::cuda
