// `stepwise`: a launch for each step, one fused kernel. W comes from L2 or HBM every time. For any shape, dtype and
// device, and so the fallback of the others; fp64 runs here alone.
//
// A block makes a tile of kTileRows rows by kTileColumns columns of one group, a thread kThreadRows x kThreadColumns of
// that, in the usual way of a GEMM: slabs of kTileDepth of both factors go through shared memory. The states it
// multiplies are the outputs of the step before: no buffer, no copy.
#pragma once

#include "cuda/track.cuh"

namespace rnn_ext::cuda {

// A thread's 4 x 4 sums take 8 loads from shared memory for 16 multiply-adds. A tile is narrow in rows, since small
// batches are what comes here first.
constexpr int kThreadRows = 4, kThreadColumns = 4;
constexpr int kTileRows = 32, kTileColumns = 64, kTileDepth = 16;
constexpr int kStepThreads = (kTileRows / kThreadRows) * (kTileColumns / kThreadColumns);

// In shared memory. Depth first, so that a thread's elements lie together; one more column, so that a slab that is read
// along its rows and written along its columns meets another bank each time.
template <class S>
struct StepTiles {
  S states[kTileDepth][kTileRows + 1];
  S weights[kTileDepth][kTileColumns + 1];
};

// Step s of the rows that have one. grid: column tiles, row tiles, groups.
template <class T>
__global__ void __launch_bounds__(kStepThreads, 4) stepwise_kernel(const DeviceProblem<T> problem, int s, int alive) {
  StepTiles<Sum<T>>& tiles = *dynamic_shared<StepTiles<Sum<T>>>();
  auto& states = tiles.states;
  auto& weights = tiles.weights;
  const int hidden = static_cast<int>(problem.shape.hidden), group = static_cast<int>(blockIdx.z);
  const int first_column = static_cast<int>(blockIdx.x) * kTileColumns;
  const int first_row = static_cast<int>(blockIdx.y) * kTileRows;
  const int thread = static_cast<int>(threadIdx.x);
  const int my_column = thread % (kTileColumns / kThreadColumns) * kThreadColumns;
  const int my_row = thread / (kTileColumns / kThreadColumns) * kThreadRows;

  Sum<T> sums[kThreadRows][kThreadColumns] = {};
  // M[j][k] of this group.
  const Weight<T>& w = problem.weight;
  const T* const matrix = w.data + group * hidden * w.row_stride;
  const int64_t along_j = problem.transpose ? w.column_stride : w.row_stride;
  const int64_t along_k = problem.transpose ? w.row_stride : w.column_stride;

  if (s > 0 || problem.seed_kind == Seed::state) {
    for (int depth = 0; depth < hidden; depth += kTileDepth) {
      __syncthreads();
      for (int n = thread; n < kTileDepth * kTileColumns; n += kStepThreads) {
        // Neighbouring threads along what is contiguous in memory.
        const int k = along_k == 1 ? n % kTileDepth : n / kTileColumns;
        const int j = along_k == 1 ? n / kTileDepth : n % kTileColumns;
        const bool inside = depth + k < hidden && first_column + j < hidden;
        weights[k][j] = inside ? to_sum(matrix[(first_column + j) * along_j + (depth + k) * along_k]) : Sum<T>(0);
      }
      for (int n = thread; n < kTileDepth * kTileRows; n += kStepThreads) {
        const int k = n % kTileDepth, i = n / kTileDepth;
        Sum<T> y = 0;
        if (depth + k < hidden && first_row + i < alive) {
          const Track<T> row(problem, group, first_row + i);
          if (s == 0)
            y = to_sum(problem.seed.at(group, row.batch)[depth + k]);
          else
            y = row.before(s, depth + k);
          const bool scaled = s > 0 && problem.leaks() && problem.transpose;
          y = row.multiplied(y, scaled ? to_sum(*row.at(problem.factor, row.time(s - 1), depth + k)) : Sum<T>(0),
                             depth + k);
        }
        states[k][i] = y;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kTileDepth; ++k) {
        Sum<T> y[kThreadRows], m[kThreadColumns];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) y[i] = states[k][my_row + i];
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) m[j] = weights[k][my_column + j];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
          for (int j = 0; j < kThreadColumns; ++j) sums[i][j] += y[i] * m[j];
      }
    }
  }

  // No break: sums are in registers, and these have no index but a constant.
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    if (first_row + my_row + i >= alive) continue;
    const Track<T> row(problem, group, first_row + my_row + i);
    const int t = row.time(s);
#pragma unroll
    for (int j = 0; j < kThreadColumns; ++j) {
      const int column = first_column + my_column + j;
      if (column >= hidden) continue;
      const Sum<T> input[] = {problem.input.data ? to_sum(*row.at(problem.input, t, column)) : Sum<T>(0)};
      const Sum<T> f[] = {uses_factor(problem.epilogue) ? to_sum(*row.at(problem.factor, t, column)) : Sum<T>(0)};
      const Sum<T> before[] = {s == 0 ? row.seed(column) : problem.leaks() ? row.before(s, column) : Sum<T>(0)};
      Sum<T> state[] = {sums[i][j]};
      row.to_states(s, state, input, f, before, column, 0);
      const T y = rounded<T>(state[0]);
      *row.at(problem.output, t, column) = y;
      if (s == row.steps - 1) problem.last.at(group, row.batch)[column] = y;
    }
  }
}

// Zeros where padded rows have ended. grid: rows, groups.
template <class T>
__global__ void clear_ended(const DeviceProblem<T> problem) {
  const Track<T> row(problem, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
  const int64_t hidden = problem.shape.hidden, count = (problem.shape.time - row.steps) * hidden;
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x)
    *row.at(problem.output, static_cast<int>(row.steps + n / hidden), static_cast<int>(n % hidden)) =
        rounded<T>(Sum<T>(0));
}

}  // namespace rnn_ext::cuda
