// `resident`: one block takes a few rows of one group through the whole sequence, W in its registers and shared memory.
//
//   W        thread (o, p) of the block, p < slices, holds W[j][k] for its `outputs` rows j = o * outputs + ... and its
//            `depth` columns k, which come in chunks of four: chunk q of slice p is k = (q * slices + p) * 4 + ... So
//            the slices of a warp read neighbouring 16 bytes of a state, all banks once.
//   states   two buffers in shared memory: a step reads one and writes the other, so one barrier a step is enough.
//   sums     each thread has kRows * outputs partial sums; its slices add them up and scatter them in one butterfly,
//   after
//            which every thread has whole sums of its own to finish.
//   inputs   of the steps to come arrive by cp.async, in words of the thread that will use them: no barrier for these.
#pragma once

#include "cuda/planner.h"
#include "cuda/track.cuh"

namespace rnn_ext::cuda {

// Adds v up over the kSpan * 2 lanes that differ in the bits of kSpan * 2 - 1, and leaves each lane kCount / (kSpan *
// 2) of the kCount sums, or one that it shares with others: those from `first` on, which grows accordingly.
template <int kCount, int kSpan, int kSize>
__device__ __forceinline__ void add_and_scatter(float (&v)[kSize], int slice, int& first) {
  constexpr int kHalf = kCount / 2;
  if constexpr (kHalf >= 1) {
    const bool upper = slice & kSpan;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? v[kHalf + i] : v[i], sent = upper ? v[i] : v[kHalf + i];
      v[i] = kept + __shfl_xor_sync(kFullWarp, sent, kSpan);
    }
    first += upper ? kHalf : 0;
  } else {
    v[0] += __shfl_xor_sync(kFullWarp, v[0], kSpan);
  }
  if constexpr (kSpan > 1) add_and_scatter<(kHalf > 1 ? kHalf : 1), kSpan / 2>(v, slice, first);
}

// The aligned word of four bytes with an element in it; cp.async copies no less. Allocations are made of whole words.
template <class T>
__device__ __forceinline__ const void* word_of(const T* element) {
  if constexpr (sizeof(T) == 4) return element;
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(element) & ~uintptr_t(3));
}
template <class T>
__device__ __forceinline__ float from_word(const uint32_t* word, const T* element) {
  return to_float(
      *reinterpret_cast<const T*>(reinterpret_cast<const char*>(word) + (reinterpret_cast<uintptr_t>(element) & 3)));
}

// grid: tiles of kRows rows, groups.
template <class T, int kTile, int kRows, bool kPlain>
__global__ void __launch_bounds__(kResidentTiles[kTile].threads(), 1) resident_kernel(const DeviceProblem<T> problem) {
  constexpr ResidentTile tile = kResidentTiles[kTile];
  constexpr int kOutputs = tile.outputs, kSlices = tile.slices(), kThreads = tile.threads();
  constexpr int kChunks = tile.chunks(), kHeld = tile.held;
  constexpr int kSums = kRows * kOutputs, kStride = tile.stride(kRows);
  // What a thread finishes, neighbours in one row; or the sharers of each sum, of which the first finishes it.
  constexpr int kValues = kSums > kSlices ? kSums / kSlices : 1, kSharers = kSums < kSlices ? kSlices / kSums : 1;

  const int thread = static_cast<int>(threadIdx.x), slice = thread % kSlices, output = thread / kSlices * kOutputs;
  const int hidden = static_cast<int>(problem.shape.hidden), batch = static_cast<int>(problem.shape.batch);
  const int group = static_cast<int>(blockIdx.y), first_row = static_cast<int>(blockIdx.x) * kRows;

  float4* const states = dynamic_shared<float4>();           // [2][kRows][kStride / 4]
  float4* const weights = states + 2 * kRows * kStride / 4;  // [kChunks - kHeld][kThreads]
  uint32_t* const ahead = reinterpret_cast<uint32_t*>(weights + (kChunks - kHeld) * kThreads);

  // W, zero beyond H. Chunk n is of row n % kOutputs, the thread's n / kOutputs-th along the depth.
  float4 held[kHeld];
  {
    const Weight<T>& w = problem.weight;
    const T* const matrix = w.data + group * hidden * w.row_stride;
    const int64_t along_j = problem.transpose ? w.column_stride : w.row_stride;
    const int64_t along_k = problem.transpose ? w.row_stride : w.column_stride;
    auto chunk = [&](int n) {
      const int row = output + n % kOutputs, k = (n / kOutputs * kSlices + slice) * 4;
      const T* const at = matrix + row * along_j;
      auto element = [&](int k) { return row < hidden && k < hidden ? to_float(at[k * along_k]) : 0.0f; };
      return make_float4(element(k), element(k + 1), element(k + 2), element(k + 3));
    };
#pragma unroll
    for (int n = 0; n < kHeld; ++n) held[n] = chunk(n);
    for (int n = kHeld; n < kChunks; ++n) weights[(n - kHeld) * kThreads + thread] = chunk(n);
  }

  // Seeds, and zeros beyond H and beyond the batch.
  for (int n = thread; n < kRows * kStride; n += kThreads) {
    const int row = first_row + n / kStride, k = n % kStride;
    float y = 0;
    if (problem.seed_kind == Seed::state && row < batch && k < hidden) {
      const Track<T, kPlain> track(problem, group, row);
      y = track.multiplied(to_float(problem.seed.at(group, track.batch)[k]), 0.0f, k);
    }
    reinterpret_cast<float*>(states)[n] = y;
    reinterpret_cast<float*>(states)[kRows * kStride + n] = 0;
  }

  // Which of the scattered sums are this thread's: the same at every step.
  int first_sum = 0;
  {
    float nothing[kSums] = {};
    add_and_scatter<kSums, kSlices / 2>(nothing, slice, first_sum);
  }
  const int tile_row = first_sum / kOutputs, column = output + first_sum % kOutputs;
  const bool mine = slice % kSharers == 0 && first_row + tile_row < batch;
  const Track<T, kPlain> track(problem, group, mine ? first_row + tile_row : first_row);
  // Rows come in order of length: none of the block's has more steps than its first.
  const int steps = mine ? track.steps : 0, longest = Track<T, kPlain>(problem, group, first_row).steps;
  const int values = hidden - column < kValues ? hidden - column : kValues;  // may be negative

  const bool has_input = problem.input.data != nullptr, has_factor = uses_factor(problem.epilogue);
  const T* const input_origin = track.origin(problem.input, column);
  const T* const factor_origin = track.origin(problem.factor, column);
  T* const output_origin = track.origin(problem.output, column);
  auto word = [&](int s, int what, int i) {
    return ahead + (((s % kAhead) * 2 + what) * kValues + i) * kThreads + thread;
  };
  auto fetch = [&](int s) {
    if (s < steps) {
      const int t = track.time(s);
      const T* const input = input_origin + track.offset(problem.input, t);
      const T* const factor = factor_origin + track.offset(problem.factor, t);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (has_input && i < values) cp_async<4>(word(s, 0, i), word_of(input + i));
        if (has_factor && i < values) cp_async<4>(word(s, 1, i), word_of(factor + i));
      }
    }
    cp_async_commit();
  };
  for (int s = 0; s + 1 < kAhead; ++s) fetch(s);
  float before[kValues] = {};  // the states that leak
  __syncthreads();

  for (int s = 0; s < longest; ++s) {
    fetch(s + kAhead - 1);
    const float4* const previous = states + (s % 2) * kRows * kStride / 4;
    float sums[kSums] = {};
#pragma unroll
    for (int q = 0; q < kChunks / kOutputs; ++q) {
      float4 y[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) y[r] = previous[r * kStride / 4 + q * kSlices + slice];
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        const int n = q * kOutputs + j;
        const float4 m = n < kHeld ? held[n < kHeld ? n : 0] : weights[(n - kHeld) * kThreads + thread];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float& sum = sums[r * kOutputs + j];
          sum += m.x * y[r].x;
          sum += m.y * y[r].y;
          sum += m.z * y[r].z;
          sum += m.w * y[r].w;
        }
      }
    }
    int unused = 0;
    add_and_scatter<kSums, kSlices / 2>(sums, slice, unused);

    cp_async_wait<kAhead - 1>();
    if (s < steps) {
      const int t = track.time(s);
      const bool ends = s == steps - 1, reset = !ends && track.reset_after(s);
      float* const next = reinterpret_cast<float*>(states) + ((s + 1) % 2 * kRows + tile_row) * kStride + column;
      T* const output = output_origin + track.offset(problem.output, t);
      T* const last = problem.last.at(group, track.batch) + column;
      // Where the words' elements lie in them.
      const T* const input_at = input_origin + track.offset(problem.input, t);
      const T* const factor_at = factor_origin + track.offset(problem.factor, t);
      float multiplied[kValues] = {};
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (i >= values) continue;
        const float input = has_input ? from_word(word(s, 0, i), input_at + i) : 0.0f;
        const float f = has_factor ? from_word(word(s, 1, i), factor_at + i) : 0.0f;
        const T y = rounded<T>(track.state(s, sums[i], input, f, before[i], column + i));
        output[i] = y;
        if (ends) last[i] = y;
        before[i] = reset ? 0.0f : to_float(y);
        multiplied[i] = reset ? 0.0f : track.multiplied(before[i], f, column + i);
      }
      static_assert(kValues <= 2, "stored as one");
      if constexpr (kValues == 2)
        *reinterpret_cast<float2*>(next) = make_float2(multiplied[0], multiplied[1]);
      else
        *next = multiplied[0];
    }
    __syncthreads();
  }
}

}  // namespace rnn_ext::cuda
