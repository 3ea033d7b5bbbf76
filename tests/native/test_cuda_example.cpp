// A kernel and its test, to begin from: sums of rows, one block a row, a tree in shared memory.
#include <vector>

#include "check.h"
#include "cuda/device.cuh"
#include "cuda_emulator/emulator.h"

namespace {

// x (rows, columns), sums (rows). Shared [blockDim.x]; blockDim.x is a power of 2.
__global__ void row_sums(const float* __restrict__ x, float* __restrict__ sums, int columns) {
  float* const partial = rnn_ext::cuda::dynamic_shared<float>();
  const int i = threadIdx.x, threads = blockDim.x;
  float sum = 0;
  for (int k = i; k < columns; k += threads) sum += x[blockIdx.x * columns + k];
  partial[i] = sum;
  for (int reach = threads / 2; reach > 0; reach /= 2) {
    __syncthreads();
    if (i < reach) partial[i] += partial[i + reach];
  }
  if (i == 0) sums[blockIdx.x] = partial[0];
}

}  // namespace

int main() {
  constexpr int kRows = 3, kColumns = 100, kThreads = 64;
  const std::vector<float> x(kRows * kColumns, 2);
  for (const auto& schedule : cuda_emulator::all_schedules(2)) {
    cuda_emulator::schedule() = schedule;
    std::vector<float> sums(kRows);
    rnn_ext::cuda::LaunchConfig config{dim3(kRows), dim3(kThreads)};
    config.shared_bytes = kThreads * sizeof(float);
    const cudaError_t error = launch(config, row_sums, x.data(), sums.data(), kColumns);
    CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error));
    for (int r = 0; r < kRows; ++r)
      CHECK(sums[r] == 2 * kColumns, "schedule %s: row %d is %g", schedule.describe().c_str(), r, sums[r]);
  }
  return failures != 0;
}
