// Which kernel a problem gets on a device: a pure function of both, without a GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "recurrence.h"

namespace rnn_ext::cuda {

// Their directions are a kernel's argument, of 4 KiB in all.
constexpr int kMaxGroups = 2048;

// What the runtime says of a device.
struct Device {
  int capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int shared_bytes = 0;    // that one block may ask for
  int cluster_blocks = 0;  // of the largest cluster; 0 where there are none
};

// The blocks of the largest cluster: 8 where there are clusters at all, 16 on data centres' GPUs if a kernel insists.
// CUDA itself says so of a kernel alone; NVIDIA's guides say it of architectures.
constexpr int kPortableCluster = 8;
constexpr int cluster_blocks(int capability) {
  return capability < 90 ? 0 : capability < 110 ? 2 * kPortableCluster : kPortableCluster;
}

// What the states and W are, and what multiplies them.
enum class Format : int { float64, float32, tf32, float16, bfloat16 };

enum class Variant : int {
  resident,    // W in one block's registers and shared memory for the whole sequence
  cluster,     // in those of a cluster of blocks, which hand each other their states through distributed shared memory
  persistent,  // in those of blocks all over the device, which hand each other their states through L2
  stepwise,    // a launch for each step
};

// Steps, or tiles of rows, whose input is on its way while an earlier one computes; their copies take as many buffers.
constexpr int kAhead = 3;

// How a block cuts its part of M, `columns` rows of it: a thread has `outputs` of them, and `slices` threads,
// neighbours in a warp, share the depth in chunks of four. `held` of a thread's chunks are in registers, the others in
// shared memory.
struct FloatTile {
  int columns, outputs, slices, held;
  int depth;  // chunks along the depth, of tiles for one H; 0: as many as H asks for
  int rows;   // of the batch at once, where there are enough of them; else one

  constexpr int threads() const { return columns / outputs * slices; }
  constexpr int chunks(int64_t hidden) const {
    return depth ? depth : static_cast<int>((hidden + 4 * slices - 1) / (4 * slices));
  }
  // Elements between the states of neighbouring rows: a warp writes all rows' at once, and they meet different banks.
  constexpr int stride(int64_t hidden, int rows) const {
    return 4 * slices * chunks(hidden) + (rows > 1 ? 32 / rows : 0);
  }
  // Neighbouring sums of a row that a thread finishes.
  constexpr int values(int rows) const { return rows * outputs > slices ? rows * outputs / slices : 1; }
  constexpr int64_t weight_bytes(int64_t hidden) const {
    const int64_t left = chunks(hidden) * outputs - held;
    return left > 0 ? 16 * left * threads() : 0;
  }
};

// The first are `resident`'s, of H up to their columns; then there are two for teams of blocks.
//
// A thread of the third has 64 weights in registers, of the 255 that it may use. One of the fourth may use 128; with 56
// weights among them nvcc finds room for all but a few of its other values, and the rest of W, read from shared memory
// once a step, just fits an A100's. One of a team may use 255, and holds 128: a block of 64 columns has all of its W in
// registers up to H = 512, one of 32 up to 1024.
constexpr FloatTile kFloatTiles[] = {
    {32, 4, 8, 4, 1, 4},     {64, 4, 16, 4, 1, 4},  {128, 8, 16, 16, 2, 4},
    {256, 16, 16, 36, 4, 2}, {64, 8, 32, 28, 0, 4}, {32, 4, 32, 32, 0, 4},
};
constexpr int kResidentTiles = 4, kFloatTileCount = sizeof(kFloatTiles) / sizeof(kFloatTiles[0]);
constexpr int kWideTile = 4, kNarrowTile = 5;

// Shared memory of a block: `buffers` of the states of `rows` rows, in tiles of `tile_rows`; the weights that registers
// do not hold; inputs and factors ahead of time, a word for each value that a thread finishes.
constexpr int64_t shared_bytes(const FloatTile& tile, int64_t hidden, int buffers, int rows, int tile_rows) {
  return 4 * int64_t{buffers} * rows * tile.stride(hidden, tile_rows) + tile.weight_bytes(hidden) +
         4 * int64_t{kAhead} * 2 * tile.values(tile_rows) * tile.threads();
}

// The flags of the blocks of a launch, as many bytes as keep what comes after them on a cache line of its own.
constexpr int64_t flag_bytes(int64_t blocks) { return (4 * blocks + 127) / 128 * 128; }

struct Plan {
  Variant variant = Variant::stepwise;
  int tile = 0;       // of kFloatTiles
  int tile_rows = 0;  // of the batch that a block multiplies at once
  int rows = 0;       // that a team takes at a time: one tile, or several
  int blocks = 1;     // of a team
  int teams = 0;      // that run; where they are fewer than there is work for, they take turns (persistent)
  int threads = 0;    // of a block
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;
  double cycles = 0;  // of a step, by the model of planner.cpp
  std::string why;
};

// A variant's best plan for sizes that kernels can count, or none where it cannot have the problem.
std::optional<Plan> plan_for(Variant variant, const Shape& shape, Format format, const Device& device);

// The fastest of those, by the model. Throws std::invalid_argument for sizes that kernels cannot count: T and H near
// 2^31, B over two million, more than kMaxGroups groups.
Plan make_plan(const Shape& shape, Format format, const Device& device);

}  // namespace rnn_ext::cuda
