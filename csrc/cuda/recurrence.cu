// Launches, and the instantiations that ship.
#include "cuda/kernels.h"
#include "cuda/resident.cuh"
#include "cuda/stepwise.cuh"

namespace rnn_ext::cuda {
namespace {

template <class T>
__global__ void copy_seed_to_last(const DeviceProblem<T> problem) {
  const int64_t row = blockIdx.x, group = blockIdx.y;
  for (int64_t k = threadIdx.x; k < problem.shape.hidden; k += blockDim.x)
    problem.last.at(group, row)[k] =
        problem.seed_kind == Seed::state ? problem.seed.at(group, row)[k] : rounded<T>(Sum<T>(0));
}

template <class T, int kTile, int kRows, bool kPlain>
cudaError_t launch_tile(const DeviceProblem<T>& problem, const Plan& plan, LaunchConfig config) {
  constexpr auto kernel = resident_kernel<T, kTile, kRows, kPlain>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
  return error ? error : launch(config, kernel, problem);
}

template <class T, int kTile = 0>
cudaError_t run_resident(const DeviceProblem<T>& problem, const Plan& plan, cudaStream_t stream) {
  if constexpr (kTile + 1 < kResidentTileCount)
    if (plan.tile != kTile) return run_resident<T, kTile + 1>(problem, plan, stream);
  const int64_t tiles = (problem.shape.batch + plan.rows - 1) / plan.rows;
  LaunchConfig config{dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(problem.shape.groups)),
                      dim3(static_cast<unsigned>(plan.threads))};
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  constexpr int kRows = kResidentTiles[kTile].rows;
  if (plan.rows == 1)
    return is_plain(problem) ? launch_tile<T, kTile, 1, true>(problem, plan, config)
                             : launch_tile<T, kTile, 1, false>(problem, plan, config);
  return is_plain(problem) ? launch_tile<T, kTile, kRows, true>(problem, plan, config)
                           : launch_tile<T, kTile, kRows, false>(problem, plan, config);
}

template <class T>
cudaError_t run_stepwise(const DeviceProblem<T>& problem, const int64_t* alive_at, cudaStream_t stream) {
  const Shape& shape = problem.shape;
  for (int s = 0; s < static_cast<int>(shape.time); ++s) {
    const int alive = static_cast<int>(alive_at ? alive_at[s] : shape.batch);
    if (alive == 0) break;
    LaunchConfig config{
        dim3(static_cast<unsigned>((shape.hidden + kTileColumns - 1) / kTileColumns),
             static_cast<unsigned>((alive + kTileRows - 1) / kTileRows), static_cast<unsigned>(shape.groups)),
        dim3(kStepThreads)};
    config.stream = stream;
    config.shared_bytes = sizeof(StepTiles<Sum<T>>);
    if (const cudaError_t error = launch(config, stepwise_kernel<T>, problem, s, alive)) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t run_on(const DeviceProblem<T>& problem, const Plan& plan, const int64_t* alive_at, cudaStream_t stream) {
  const Shape& shape = problem.shape;
  LaunchConfig rows{dim3(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.groups)), dim3(128)};
  rows.stream = stream;
  if (shape.time == 0) return launch(rows, copy_seed_to_last<T>, problem);
  if (problem.rows.length && problem.rows.padded())
    if (const cudaError_t error = launch(rows, clear_ended<T>, problem)) return error;
  if constexpr (sizeof(T) < 8)
    if (plan.variant == Variant::resident) return run_resident(problem, plan, stream);
  return run_stepwise(problem, alive_at, stream);
}

}  // namespace

template <class T>
std::string run(const Problem<T>& problem, const Plan& plan, void* stream) {
  const cudaError_t error =
      run_on(DeviceProblem<T>(problem), plan, problem.rows.alive_at, static_cast<cudaStream_t>(stream));
  return error ? std::string(cudaGetErrorString(error)) + ", launching " + plan.why : "";
}

template std::string run(const Problem<float>&, const Plan&, void*);
template std::string run(const Problem<double>&, const Plan&, void*);
template std::string run(const Problem<half>&, const Plan&, void*);
template std::string run(const Problem<bfloat16>&, const Plan&, void*);

CurrentDevice::CurrentDevice(int device) {
  if (cudaGetDevice(&before_) || before_ == device || cudaSetDevice(device)) before_ = -1;
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

Device this_device() {
  int id = 0;
  Device device;
  if (cudaGetDevice(&id)) return device;
  auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    cudaDeviceGetAttribute(&value, attribute, id);
    return value;
  };
  device.capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  device.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return device;
}

}  // namespace rnn_ext::cuda
