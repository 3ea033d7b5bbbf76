// States times a block's part of M with multiply-adds: W in registers and shared memory for the whole sequence.
//
//   W        thread (o, p) of the block, p < slices, holds M[j][k] for its `outputs` rows j = o * outputs + ... and for
//            its slice of the columns k, which come in chunks of four: chunk q of slice p is k = (q * slices + p) * 4 +
//            ... So the slices of a warp read neighbouring 16 bytes of a state, all banks once.
//   sums     each thread has rows * outputs partial sums; its slices add them up and scatter them in one butterfly,
//            after which every thread has whole sums of its own to finish. A thread counts its outputs from those that
//            will be its own, so that of two halves it gives the second away: no lane has to ask which.
#pragma once

#include "cuda/planner.h"
#include "cuda/track.cuh"

namespace rnn_ext::cuda {

// Adds v up over the kSpan * 2 lanes that differ in the bits of kSpan * 2 - 1, and leaves each lane kCount / (kSpan *
// 2) of the kCount sums, or one that it shares with others. Down to kUnordered of them a lane keeps the first half of
// what it has, then the half that the lane's bit names.
template <int kCount, int kSpan, int kUnordered, int kSize>
__device__ __forceinline__ void add_and_scatter(float (&v)[kSize], int slice) {
  constexpr int kHalf = kCount / 2;
  if constexpr (kHalf >= 1) {
    const bool upper = kCount <= kUnordered && (slice & kSpan);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? v[kHalf + i] : v[i], sent = upper ? v[i] : v[kHalf + i];
      v[i] = kept + __shfl_xor_sync(kFullWarp, sent, kSpan);
    }
  } else {
    v[0] += __shfl_xor_sync(kFullWarp, v[0], kSpan);
  }
  if constexpr (kSpan > 1) add_and_scatter<(kHalf > 1 ? kHalf : 1), kSpan / 2, kUnordered>(v, slice);
}

// Of kRows states at once, with the tile kFloatTiles[kTile]. One object for each thread.
template <int kTile, int kRows_>
class FloatMultiply {
  // A local copy wherever it is asked something that is not a constant: to device code the table has no address.
  static constexpr FloatTile kCut = kFloatTiles[kTile];
  static constexpr int kOutputs = kCut.outputs, kSlices = kCut.slices, kHeld = kCut.held, kDepth = kCut.depth;
  static constexpr int kSums = kRows_ * kOutputs;
  // Sums lie in the order of outputs, rows, and the outputs that one thread finishes of a row: the butterfly scatters
  // the first over slices, then rows.
  static constexpr int kTogether = kCut.values(kRows_), kRowSums = kRows_ * kTogether;
  // Neighbouring slices with the same outputs, and of those the ones with the same row, the sharers of each sum, of
  // which the first finishes it.
  static constexpr int kAlike = kSlices / (kOutputs / kTogether), kSharers = kAlike / kRows_;
  static_assert(kSharers >= 1, "each sum is some slice's");
  // Chunks along the depth that a thread has some of in registers.
  static constexpr int kHeldDepth = (kHeld + kOutputs - 1) / kOutputs;

 public:
  using State = float;  // as states lie in shared memory
  static constexpr int kThreads = kCut.threads(), kRows = kRows_, kColumns = kCut.columns;
  // What a thread finishes: kValues neighbours in one row.
  static constexpr int kValues = kTogether, kSpread = 1;
  // A block's columns are all below depth(hidden), which is a multiple of them.
  static constexpr bool kInside = true;
  static_assert(4 * kSlices * (kDepth ? kDepth : 1) % kColumns == 0);

  static constexpr int stride(int hidden) {
    constexpr FloatTile tile = kCut;
    return tile.stride(hidden, kRows);
  }
  static constexpr int depth(int hidden) { return 4 * kSlices * chunks(hidden); }
  static constexpr int64_t shared_bytes(int hidden) {
    constexpr FloatTile tile = kCut;
    return tile.weight_bytes(hidden);
  }
  static __device__ __forceinline__ State stored(float y) { return y; }

  // element(j, k): M[j][k] as stored in W, zero beyond H. `first`: the block's first row of M. `shared`:
  // weight_bytes(hidden).
  template <class Element>
  __device__ __forceinline__ FloatMultiply(int hidden, int first, unsigned char* shared, Element element)
      : thread_(static_cast<int>(threadIdx.x) % kThreads),
        depth_(chunks(hidden)),
        stride_(stride(hidden) / 4),
        weights_(reinterpret_cast<float4*>(shared)) {
    auto chunk = [&](int n) {
      const int j = first + thread_ / kSlices * kOutputs + (n % kOutputs ^ own_outputs()),
                k = (n / kOutputs * kSlices + slice()) * 4;
      auto value = [&](int k) { return to_float(element(j, k)); };
      return make_float4(value(k), value(k + 1), value(k + 2), value(k + 3));
    };
#pragma unroll
    for (int n = 0; n < kHeld; ++n) held_[n] = chunk(n);
    for (int n = kHeld; n < depth_ * kOutputs; ++n) weights_[(n - kHeld) * kThreads + thread_] = chunk(n);
  }

  // Where this thread's sums belong, in the block's part: and whether they are its own to finish.
  __device__ __forceinline__ int row() const { return slice() % kAlike / kSharers; }
  __device__ __forceinline__ int column() const { return thread_ / kSlices * kOutputs + own_outputs(); }
  __device__ __forceinline__ bool mine() const { return slice() % kSharers == 0; }

  // All threads of the block together; `states` are the first of kRows.
  __device__ __forceinline__ void operator()(const State* states, float (&values)[kValues]) const {
    const float4* const y = reinterpret_cast<const float4*>(states);
    float sums[kSums] = {};
#pragma unroll
    for (int q = 0; q < kHeldDepth; ++q)
      if (kDepth || q < depth_) add<true>(y, q, sums);
    if constexpr (kDepth) {
#pragma unroll
      for (int q = kHeldDepth; q < kDepth; ++q) add<false>(y, q, sums);
    } else {
      for (int q = kHeldDepth; q < depth_; ++q) add<false>(y, q, sums);
    }
    add_and_scatter<kSums, kSlices / 2, kRowSums>(sums, slice());
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = sums[i];
  }

 private:
  static constexpr int chunks(int hidden) {
    constexpr FloatTile tile = kCut;
    return tile.chunks(hidden);
  }
  __device__ __forceinline__ int slice() const { return thread_ % kSlices; }
  // The first of those it finishes; its n-th, as it counts them, is the n ^ own_outputs()-th.
  __device__ __forceinline__ int own_outputs() const { return slice() / kAlike * kTogether; }

  // Chunk q of the depth. With kSomeHeld q is a constant to the compiler, and so each n: registers have no address.
  template <bool kSomeHeld>
  __device__ __forceinline__ void add(const float4* states, int q, float (&sums)[kSums]) const {
    float4 y[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) y[r] = states[r * stride_ + q * kSlices + slice()];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const int n = q * kOutputs + j;
      const float4 m = kSomeHeld && n < kHeld ? held_[n < kHeld ? n : 0] : weights_[(n - kHeld) * kThreads + thread_];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float& sum = sums[j / kTogether * kRowSums + r * kTogether + j % kTogether];
        sum += m.x * y[r].x;
        sum += m.y * y[r].y;
        sum += m.z * y[r].z;
        sum += m.w * y[r].w;
      }
    }
  }

  int thread_, depth_, stride_;
  float4* weights_;  // [chunks that are not held][kThreads]
  float4 held_[kHeld];
};

}  // namespace rnn_ext::cuda
