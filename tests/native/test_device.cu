// Everything of device.cuh, compiled by nvcc for each architecture (make cuda): the kernels of the emulator's tests,
// and what those do not use.
#include "cuda_kernels.cuh"
#include "cuda_tensor.cuh"

namespace rnn_ext::cuda::test {

__global__ void leftovers(float* x, const float* y, uint32_t* flag) {
  float* const shared = dynamic_shared<float>();
  cp_async<4>(shared + threadIdx.x, y + threadIdx.x);
  cp_async<8>(shared + 64 + 2 * threadIdx.x, y + 2 * threadIdx.x, threadIdx.x < 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  x[threadIdx.x] = tanh_approx(shared[threadIdx.x]) + shared[64 + 2 * threadIdx.x];
  if (load_acquire(flag) == 0) __trap();
}

// Explicit uses of every instantiation, so that their code is made.
cudaError_t launch_all(float* x, int* n, uint32_t* flags, half* h, bfloat16* b, cudaStream_t stream) {
  LaunchConfig config{dim3(2), dim3(64)};
  config.shared_bytes = 4096;
  config.stream = stream;
  cudaError_t error = cudaFuncSetAttribute(block_recurrence<Bug::none>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(config.shared_bytes));
  auto start = [&](auto kernel, auto... arguments) {
    if (error == cudaSuccess) error = launch(config, kernel, arguments...);
  };
  start(block_recurrence<Bug::none>, x, x, x, 1, 64);
  start(warp_sum<Bug::none>, n, n);
  start(hand_over<Bug::none>, n, n, 1);
  start(copied_sum<Bug::none>, x, x, 1);
  start(counted_sum<Bug::none>, n, n, flags, n);
  start(multiply_16bit<half, Bug::none>, h, h, x);
  start(multiply_16bit<bfloat16, Bug::none>, b, b, x);
  start(multiply_tf32<true>, x, x, x);
  start(round_trip<half>, x, x, flags, 1);
  start(round_trip<bfloat16>, x, x, flags, 1);
  start(leftovers, x, x, flags);
  start(multiply_states<TensorMultiply<half, 64, 8, 32>>, h, x, x, n, 64, 1);
  start(multiply_states<TensorMultiply<bfloat16, 128, 8, 32>>, b, x, x, n, 64, 1);
  start(multiply_states<TensorMultiply<float, 256, 16, 16>>, x, x, x, n, 64, 1);
  config.cooperative = true;
  start(grid_recurrence<Bug::none>, x, x, x, x, flags, flags, 1, 64);
  config.cooperative = false;
  config.cluster = dim3(2);
  start(cluster_sum<Bug::none>, n, n, 1);
  return error;
}

}  // namespace rnn_ext::cuda::test
