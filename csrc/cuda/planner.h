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

// What the states and W are, and what multiplies them. tf32: float32, multiplied by tensor cores, which take 10 bits of
// each factor's mantissa.
enum class Format : int { float64, float32, tf32, float16, bfloat16 };

// The bytes of an element that tensor cores multiply.
constexpr int tensor_bytes(Format format) { return format == Format::tf32 ? 4 : 2; }

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
// A thread of the third has 64 weights in registers, of the 255 that it may use; one of the fourth 128 of its 256
// own; one of a team's 112 or 128: a block of 64 columns has all of its W in registers up to H = 384, one of 32 up to
// 1024. With more, nvcc spills other values.
constexpr FloatTile kFloatTiles[] = {
    {32, 4, 8, 4, 1, 4},     {64, 4, 16, 4, 1, 4},  {128, 8, 16, 16, 2, 4},
    {256, 16, 16, 32, 4, 2}, {64, 8, 32, 28, 0, 4}, {32, 4, 32, 32, 0, 4},
};
constexpr int kResidentTiles = 4, kFloatTileCount = sizeof(kFloatTiles) / sizeof(kFloatTiles[0]);
constexpr int kWideTile = 4, kNarrowTile = 5;

// How a block's warps deal its part of M to tensor cores (tensor.cuh): in fragments of 16 of its columns and 32 bytes
// of the depth, four registers of a warp each. A warp holds `held` fragments, the others are in shared memory.
struct TensorTile {
  int columns, warps, held;

  // Of the batch at once: the n of an mma.
  static constexpr int kRows = 8;
  // The mma's of a tile of 16 columns in a chunk of the depth, 64 bytes of it, which is what an ldmatrix brings.
  static constexpr int kSteps = 2, kChunkBytes = 64;

  constexpr int threads() const { return 32 * warps; }
  // Tiles of 16 columns that a warp has. With two, warps read the states half as often, but twice as many split the
  // depth and hand sums over. An mma's states are 256 bytes of shared memory, a tile's sums 512, written and read: two
  // tiles pay from about 12 fragments a warp on. And of as many tiles as warps each would have sums of two rows.
  constexpr int tiles() const {
    const int block = columns / 16, fewest = block > warps ? block / warps : 1;
    return fewest == 1 && (held >= 12 || block == warps) && block % 2 == 0 ? 2 : fewest;
  }
  constexpr int groups() const { return columns / 16 / tiles(); }  // of warps with the same tiles
  constexpr int splits() const { return warps / groups(); }        // of the depth, a warp of each group
  // A lane has so many sums of its warp's tiles, and each of so many warps of a group finishes as many of them.
  constexpr int sums() const { return 4 * tiles(); }
  constexpr int finishers() const { return splits() < sums() ? splits() : sums(); }
  constexpr int values() const { return sums() / finishers(); }
  // Floats that are handed over from one warp to one finisher, to one finisher, and in all.
  constexpr int from_one() const { return 32 * values(); }
  constexpr int to_one() const { return (splits() - 1) * from_one(); }
  constexpr int handed() const { return groups() * finishers() * to_one(); }

  constexpr int held_chunks() const { return held / (tiles() * kSteps); }
  // Elements of a state that are multiplied, zeros from `hidden` on.
  constexpr int depth(int64_t hidden, int element_bytes) const {
    const int chunk = kChunkBytes / element_bytes;
    return static_cast<int>((hidden + chunk - 1) / chunk * chunk);
  }
  // Elements from one state to the next: an odd number of 16 bytes, so that the rows of ldmatrix meet each bank once.
  constexpr int stride(int64_t hidden, int element_bytes) const {
    return depth(hidden, element_bytes) + 16 / element_bytes;
  }
  // The fragments that registers do not hold, each warp as many.
  constexpr int64_t weight_bytes(int64_t hidden, int element_bytes) const {
    const int chunks = (depth(hidden, element_bytes) * element_bytes / kChunkBytes + splits() - 1) / splits();
    return chunks > held_chunks() ? int64_t{chunks - held_chunks()} * tiles() * kSteps * threads() * 16 : 0;
  }
  // Those, and sums that are handed over, in two halves.
  constexpr int64_t multiply_bytes(int64_t hidden, int element_bytes) const {
    return weight_bytes(hidden, element_bytes) + 2 * 4 * int64_t{handed()};
  }
};

// The first are `resident`'s, with all of W in registers, or of the third half. A block of the fourth, for
// clusters, has it up to H = 384, one of the fifth up to 768, one of the last up to 1536. With more, nvcc spills. TF32
// has half of that: all at H = 64 and 128, of the third a quarter, and in teams up to 192, 384 and 768.
constexpr TensorTile kTensorTiles[] = {{64, 8, 4}, {128, 8, 16}, {256, 16, 8}, {128, 8, 24}, {64, 8, 24}, {32, 8, 24}};
constexpr int kResidentTensorTiles = 3, kClusterTensorTile = 3, kWideTensorTile = 4, kNarrowTensorTile = 5;

// The flags of the blocks of a launch, as many bytes as keep what comes after them on a cache line of its own.
constexpr int64_t flag_bytes(int64_t blocks) { return (4 * blocks + 127) / 128 * 128; }

struct Plan {
  Variant variant = Variant::stepwise;
  bool tensor = false;  // by tensor cores
  int tile = 0;         // of kTensorTiles or kFloatTiles
  int tile_rows = 0;    // of the batch that a block multiplies at once
  int rows = 0;         // that a team takes at a time: one tile, or several
  int blocks = 1;       // of a team
  int teams = 0;        // that run; where they are fewer than there is work for, they take turns (persistent)
  int threads = 0;      // of a block
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;
  double cycles = 0;  // of a step, by the model of planner.cpp
  std::string why;
};

// A variant's best plan for sizes that kernels can count, or none where it cannot have the problem. In TF32: one with
// tensor cores.
std::optional<Plan> plan_for(Variant variant, const Shape& shape, Format format, const Device& device);

// The fastest of those, by the model; where TF32 is allowed, of those in float32 as well. Throws std::invalid_argument
// for sizes that kernels cannot count: T and H near 2^31, B over two million, more than kMaxGroups groups.
Plan make_plan(const Shape& shape, Format format, const Device& device);

}  // namespace rnn_ext::cuda
