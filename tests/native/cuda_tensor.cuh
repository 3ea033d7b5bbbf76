// A kernel that has a block of TensorMultiply multiply states step after step, as a recurrence would: for its test, and
// for nvcc (test_device.cu).
#pragma once

#include "cuda/tensor.cuh"

namespace rnn_ext::cuda::test {

// Sets of kRows states that a step multiplies, one after the other without a barrier between them.
constexpr int kSets = 2;

// sums [steps][kSets][kRows][blocks * Multiply::kColumns] = states [steps][kSets][kRows][hidden] times matrix
// [hidden][hidden]^T; `written` counts, in the shape of `sums`, how many threads have said that an element is theirs.
template <class Multiply>
__global__ void __launch_bounds__(Multiply::kThreads, 1)
    multiply_states(const typename Multiply::State* matrix, const float* states, float* sums, int* written, int hidden,
                    int steps) {
  using State = typename Multiply::State;
  constexpr int kStates = kSets * Multiply::kRows;
  const int stride = Multiply::stride(hidden), depth = Multiply::depth(hidden);
  const int first = static_cast<int>(blockIdx.x) * Multiply::kColumns,
            columns = static_cast<int>(gridDim.x) * Multiply::kColumns;
  State* const shared = dynamic_shared<State>();  // [2][kStates][stride]
  auto element = [&](int j, int k) { return j < hidden && k < hidden ? matrix[j * hidden + k] : from_float<State>(0); };
  Multiply multiply(hidden, first, reinterpret_cast<unsigned char*>(shared + 2 * kStates * stride), element);

  // One step reads a buffer, and fills the other for the next.
  auto store = [&](int s) {
    if (s == steps) return;
    for (int n = static_cast<int>(threadIdx.x); n < kStates * depth; n += Multiply::kThreads) {
      const int row = n / depth, k = n % depth;
      const float y = k < hidden ? states[(s * kStates + row) * hidden + k] : 0.0f;
      shared[(s % 2 * kStates + row) * stride + k] = Multiply::stored(y);
    }
  };
  store(0);
  __syncthreads();
  for (int s = 0; s < steps; ++s) {
    for (int set = 0; set < kSets; ++set) {
      const int set_row = set * Multiply::kRows;
      float values[Multiply::kValues];
      multiply(shared + (s % 2 * kStates + set_row) * stride, values);
      if (!multiply.mine()) continue;
#pragma unroll
      for (int i = 0; i < Multiply::kValues; ++i) {
        const int at =
            (s * kStates + set_row + multiply.row()) * columns + first + multiply.column() + i * Multiply::kSpread;
        sums[at] = values[i];
        atomicAdd(written + at, 1);
      }
    }
    store(s + 1);
    __syncthreads();
  }
}

}  // namespace rnn_ext::cuda::test
