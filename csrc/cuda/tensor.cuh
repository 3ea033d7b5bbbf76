// How a block multiplies states by its rows of M with tensor cores: eight rows of the batch at once, M in registers for
// the whole sequence, and in shared memory where those are full.
//
//   products  M's rows are the A of an mma (16 outputs x depth), the states its B (depth x 8 rows of the batch).
//   states    lie in shared memory as they come, one after the other. 64 bytes of each of the eight are a chunk of the
//             depth: one ldmatrix brings the B's of the two mma's that take them.
//   warps     have kTiles tiles of 16 outputs each, which share the B's. Warps with the same tiles split the depth,
//             chunk by chunk in turn, hand each other their partial sums through shared memory, and each finishes some.
#pragma once

#include "cuda/device.cuh"
#include "cuda/planner.h"

namespace rnn_ext::cuda {

// T: half, bfloat16, or float in TF32. A block has kColumns rows of M, columns of the new state; a warp holds kHeld
// fragments of M, of four registers each (TensorTile). One object for each thread of the block, for a whole launch.
template <class T, int kColumns_, int kWarps, int kHeld>
class TensorMultiply {
  // A local copy wherever it is asked something that is not a constant: device code has no address of it.
  static constexpr TensorTile kCut = {kColumns_, kWarps, kHeld};
  static constexpr int kTileColumns = 16, kSteps = TensorTile::kSteps;
  // Elements in a chunk, in 16 bytes, in a register.
  static constexpr int kChunk = TensorTile::kChunkBytes / sizeof(T), kLine = 16 / sizeof(T),
                       kInRegister = 4 / sizeof(T);
  static constexpr int kTiles = kCut.tiles(), kGroups = kCut.groups(), kSplits = kCut.splits();
  static_assert(kTileColumns * kTiles * kGroups == kColumns_ && kGroups * kSplits == kWarps, "each warp has as much");
  static constexpr int kHeldChunks = kCut.held_chunks();
  // Chunks of the states that are fetched before their turn, four mma's ahead: about the latency of ldmatrix. And those
  // of M that come from shared memory at once. Of 16 warps a scheduler has others to turn to, and a thread 128
  // registers.
  static constexpr int kFetched = kWarps > 8 ? 1 : kTiles == 1 ? 3 : 2, kAtOnce = kWarps > 8 ? 1 : 2;
  static_assert(kHeldChunks > 0 && kHeldChunks * kTiles * kSteps == kHeld, "registers hold whole chunks");
  static constexpr int kSums = kCut.sums(), kFinishers = kCut.finishers();
  static_assert(kSums % kFinishers == 0, "each finishes as many");
  // A lane's sums are of two rows in turn; a finisher takes each kFinishers-th.
  static_assert(kFinishers % 2 == 0, "a thread finishes one row's");

 public:
  using State = T;
  static constexpr int kThreads = kWarps * kWarp, kColumns = kColumns_, kRows = TensorTile::kRows;
  static constexpr int kValues = kCut.values();
  // From one column that a thread finishes to the next.
  static constexpr int kSpread = 4 * kFinishers;
  // A block may have columns from depth(hidden) on.
  static constexpr bool kInside = false;

  static constexpr int depth(int hidden) {
    constexpr TensorTile tile = kCut;
    return tile.depth(hidden, sizeof(T));
  }
  static constexpr int stride(int hidden) {
    constexpr TensorTile tile = kCut;
    return tile.stride(hidden, sizeof(T));
  }
  static constexpr int64_t shared_bytes(int hidden) {
    constexpr TensorTile tile = kCut;
    return tile.multiply_bytes(hidden, sizeof(T));
  }

  // M[j][k] is element(j, k), zero where j or k is beyond H; the first of the block's rows is j = `first`. `shared` is
  // shared_bytes(hidden) long, aligned to 16 bytes.
  template <class Element>
  __device__ __forceinline__ TensorMultiply(int hidden, int first, unsigned char* shared, Element element)
      : lane_(static_cast<int>(threadIdx.x) % kWarp) {
    // The same in all lanes, as a shuffle's result is and threadIdx.x / kWarp, to the compiler, is not.
    const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarp, 0);
    group_ = warp % kGroups;
    split_ = warp / kGroups;
    chunks_ = (depth(hidden) / kChunk - split_ + kSplits - 1) / kSplits;
    state_ = lane_ % 8 * stride(hidden) + split_ * kChunk + lane_ / 8 * kLine;
    weights_ = reinterpret_cast<uint4*>(shared) + threadIdx.x;
    taken_ = reinterpret_cast<float*>(shared + weight_bytes(hidden)) + group_ * kFinishers * kToOne + lane_ * kValues;
    given_ = taken_ + split_ * kFromOne;
    taken_ += split_ * kToOne;

    // Fragment n of chunk i, whose registers go 8 rows on, then half the depth. The lane comes from itself: a number
    // that the compiler does not know to be the same, so that it keeps no addresses from one fragment to the next.
    auto fragment = [&](int i, int n) {
      const int lane = __shfl_sync(kFullWarp, lane_, lane_);
      const int row = first + (group_ * kTiles + n / kSteps) * kTileColumns + lane / 4;
      const int depth = (i * kSplits + split_) * kChunk + (n % kSteps * 8 + lane % 4) * kInRegister;
      auto both = [&](int j, int k) {
        if constexpr (kInRegister == 1)
          return __float_as_uint(stored(element(j, k)));
        else
          return element(j, k).bits | static_cast<uint32_t>(element(j, k + 1).bits) << 16;
      };
      return make_uint4(both(row, depth), both(row + 8, depth), both(row, depth + 4 * kInRegister),
                        both(row + 8, depth + 4 * kInRegister));
    };
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i) {
#pragma unroll
      for (int n = 0; n < kTiles * kSteps; ++n) {
        held_[i][n] = fragment(i, n);
        // Keeps the loads of later fragments behind it, which would want registers of their own.
        __syncwarp();
      }
    }
#pragma unroll 1
    for (int i = kHeldChunks; i < chunks_; ++i) {
#pragma unroll 1
      for (int n = 0; n < kTiles * kSteps; ++n) *weight(i, n) = fragment(i, n);
    }
  }

  // What a state is stored as: from the number that M multiplies.
  static __device__ __forceinline__ State stored(float multiplied) {
    if constexpr (kInRegister == 1)
      return round_tf32(multiplied);
    else
      return from_float<T>(multiplied);
  }

  // The sums of kRows states, the first at `states`. All threads of the block call it together; between two calls they
  // need no barrier.
  __device__ __forceinline__ void operator()(const State* states, float (&sums)[kValues]) {
    const State* const state = states + state_;
    float partial[kTiles * kSteps][4] = {};
    uint32_t b[kFetched][4];
    auto fetch = [&](int i, uint32_t (&to)[4]) { ldmatrix_x4(to, state + i * kSplits * kChunk); };
#pragma unroll
    for (int i = 0; i < kFetched && i < kHeldChunks; ++i)
      if (i < chunks_) fetch(i, b[i]);
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i) {
      if (i >= chunks_) break;
#pragma unroll
      for (int n = 0; n < kTiles * kSteps; ++n) multiply(partial[n], held_[i][n], b[i % kFetched], n % kSteps);
      if (i + kFetched < kHeldChunks && i + kFetched < chunks_) fetch(i + kFetched, b[i % kFetched]);
    }
#pragma unroll kAtOnce
    for (int i = kHeldChunks; i < chunks_; ++i) {
      fetch(i, b[0]);
#pragma unroll
      for (int n = 0; n < kTiles * kSteps; ++n) multiply(partial[n], *weight(i, n), b[0], n % kSteps);
    }

    float whole[kSums];
#pragma unroll
    for (int v = 0; v < kSums; ++v) whole[v] = partial[v / 4 * kSteps][v % 4] + partial[v / 4 * kSteps + 1][v % 4];
    finish(whole, sums);
  }

  // Where this thread's sums belong: in one row, and from this column on, kSpread apart; the same at every step.
  __device__ __forceinline__ int row() const { return lane_ % 4 * 2 + first_sum() % 2; }
  __device__ __forceinline__ int column() const {
    return (group_ * kTiles + first_sum() / 4) * kTileColumns + first_sum() % 4 / 2 * 8 + lane_ / 4;
  }
  // Whether this thread finishes sums.
  __device__ __forceinline__ bool mine() const { return kFinishers == kSplits || split_ < kFinishers; }

 private:
  static constexpr int kFromOne = kCut.from_one(), kToOne = kCut.to_one(), kHanded = kCut.handed();
  static_assert(kValues <= 4, "handed over at once");

  static constexpr int64_t weight_bytes(int hidden) {
    constexpr TensorTile tile = kCut;
    return tile.weight_bytes(hidden, sizeof(T));
  }
  __device__ __forceinline__ uint4* weight(int i, int n) const {
    return weights_ + ((i - kHeldChunks) * kTiles * kSteps + n) * kThreads;
  }
  // Which of a lane's sums is its first, the others each kFinishers further.
  __device__ __forceinline__ int first_sum() const { return split_ % kFinishers; }

  // d += a b, where b is the chunk's matrices 2 `step` and 2 `step` + 1.
  static __device__ __forceinline__ void multiply(float (&d)[4], uint4 a, const uint32_t (&b)[4], int step) {
    if constexpr (kInRegister == 1) {
      const float m[4] = {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w)};
      const float y[2] = {__uint_as_float(b[2 * step]), __uint_as_float(b[2 * step + 1])};
      mma_tf32(d, m, y);
    } else {
      const uint32_t m[4] = {a.x, a.y, a.z, a.w}, y[2] = {b[2 * step], b[2 * step + 1]};
      mma<T>(d, m, y);
    }
  }

  // A finisher's sums in shared memory, as one load or store: given to it, and added to what it has.
  static __device__ __forceinline__ void give(float* to, const float (&sums)[kValues]) {
    if constexpr (kValues == 1)
      *to = sums[0];
    else if constexpr (kValues == 2)
      *reinterpret_cast<float2*>(to) = make_float2(sums[0], sums[1]);
    else
      *reinterpret_cast<float4*>(to) = make_float4(sums[0], sums[1], sums[2], sums[3]);
  }
  static __device__ __forceinline__ void take(const float* from, float (&sums)[kValues]) {
    if constexpr (kValues == 1) {
      sums[0] += *from;
    } else if constexpr (kValues == 2) {
      const float2 two = *reinterpret_cast<const float2*>(from);
      sums[0] += two.x;
      sums[1] += two.y;
    } else {
      const float4 four = *reinterpret_cast<const float4*>(from);
      sums[0] += four.x;
      sums[1] += four.y;
      sums[2] += four.z;
      sums[3] += four.w;
    }
  }

  // Adds up the sums of the warps that split the depth, each in an order of its own that is always the same. They are
  // handed over in [2][group][finisher][other warp][lane][kValues]: in turn the one half and the other, so that whoever
  // writes a half again has met at the barrier between all those who have read it.
  __device__ __forceinline__ void finish(const float (&whole)[kSums], float (&sums)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) sums[i] = 0;
#pragma unroll
    for (int f = 0; f < kFinishers; ++f) {
      // Copied before the question whose they are, lest the compiler index `whole` with the answer.
      float values[kValues];
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] = whole[f + i * kFinishers];
      if (f == split_) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) sums[i] = values[i];
      } else {
        // The finisher itself is not among the others, and those after it move up.
        give(given_ + half_ + f * kToOne - (split_ > f ? kFromOne : 0), values);
      }
    }
    __syncthreads();
    if (mine()) {
#pragma unroll
      for (int other = 0; other < kSplits - 1; ++other) take(taken_ + half_ + other * kFromOne, sums);
    }
    half_ = kHanded - half_;
  }

  int lane_, group_, split_;
  int chunks_;      // of the depth, this warp's
  int state_;       // where the lane's address for ldmatrix is, from a state on
  int half_ = 0;    // where the next sums are handed over
  uint4* weights_;  // this thread's, in shared memory
  float *given_, *taken_;
  uint4 held_[kHeldChunks][kTiles * kSteps];
};

}  // namespace rnn_ext::cuda
