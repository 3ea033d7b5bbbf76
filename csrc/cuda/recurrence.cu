// Launches, and the instantiations that ship.
#include "cuda/kernels.h"
#include "cuda/multiply.cuh"
#include "cuda/sequence.cuh"
#include "cuda/stepwise.cuh"
#include "cuda/tensor.cuh"

namespace rnn_ext::cuda {
namespace {

template <class T, class Multiply, template <class> class Exchange, bool kPlain, bool kOneTile>
cudaError_t launch_sequence(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, cudaStream_t stream) {
  constexpr auto kernel = sequence_kernel<T, Multiply, Exchange, kPlain, kOneTile>;
  auto allow = [&](cudaFuncAttribute attribute, int64_t value) {
    return cudaFuncSetAttribute(kernel, attribute, static_cast<int>(value));
  };
  LaunchConfig config{dim3(static_cast<unsigned>(plan.teams * plan.blocks)), dim3(static_cast<unsigned>(plan.threads))};
  config.shared_bytes = plan.shared_bytes;
  config.stream = stream;
  if (const cudaError_t error = allow(cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes)) return error;
  if (plan.variant == Variant::cluster) {
    config.cluster = dim3(static_cast<unsigned>(plan.blocks));
    if (plan.blocks > kPortableCluster)
      if (const cudaError_t error = allow(cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) return error;
  }
  if (plan.variant == Variant::persistent) {
    config.cooperative = true;
    // The flags; no state is read before it is written.
    const size_t flags = static_cast<size_t>(flag_bytes(plan.teams * plan.blocks));
    if (const cudaError_t error = cudaMemsetAsync(workspace, 0, flags, stream)) return error;
  }
  return launch(config, kernel, problem, Team{plan.blocks, plan.rows, workspace});
}

// With options or without.
template <class T, class Multiply, template <class> class Exchange, bool kOneTile>
cudaError_t run_with(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, cudaStream_t stream) {
  return is_plain(problem) ? launch_sequence<T, Multiply, Exchange, true, kOneTile>(problem, plan, workspace, stream)
                           : launch_sequence<T, Multiply, Exchange, false, kOneTile>(problem, plan, workspace, stream);
}

// By tensor cores: tiles of their rows, float32 in TF32. By multiply-adds: one row at a time, or tiles of them.
template <class T, bool kTensor, int kTile, template <class> class Exchange>
cudaError_t run_tile(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, cudaStream_t stream) {
  if constexpr (kTensor) {
    constexpr TensorTile tile = kTensorTiles[kTile];
    using Multiply = TensorMultiply<T, tile.columns, tile.warps, tile.held>;
    return run_with < T, Multiply, Exchange, kTile<kResidentTensorTiles>(problem, plan, workspace, stream);
  } else {
    using One = FloatMultiply<kTile, 1>;
    using More = FloatMultiply<kTile, kFloatTiles[kTile].rows>;
    return plan.tile_rows == 1 ? run_with<T, One, Exchange, true>(problem, plan, workspace, stream) : run_with < T,
           More, Exchange, kTile<kResidentTiles>(problem, plan, workspace, stream);
  }
}

// The kernel of plan.tile, of those from kTile to kLast.
template <class T, bool kTensor, template <class> class Exchange, int kTile, int kLast>
cudaError_t run_team(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, cudaStream_t stream) {
  if constexpr (kTile < kLast)
    if (plan.tile != kTile) return run_team<T, kTensor, Exchange, kTile + 1, kLast>(problem, plan, workspace, stream);
  return run_tile<T, kTensor, kTile, Exchange>(problem, plan, workspace, stream);
}

// Any variant but `stepwise`.
template <class T, bool kTensor>
cudaError_t run_teams(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, cudaStream_t stream) {
  constexpr int kResident = (kTensor ? kResidentTensorTiles : kResidentTiles) - 1;
  constexpr int kCluster = kTensor ? kClusterTensorTile : kWideTile, kWide = kTensor ? kWideTensorTile : kWideTile;
  switch (plan.variant) {
    case Variant::resident: return run_team<T, kTensor, WithinBlock, 0, kResident>(problem, plan, workspace, stream);
    case Variant::cluster: return run_tile<T, kTensor, kCluster, WithinCluster>(problem, plan, workspace, stream);
    default: return run_team<T, kTensor, AcrossDevice, kWide, kWide + 1>(problem, plan, workspace, stream);
  }
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
cudaError_t run_on(const DeviceProblem<T>& problem, const Plan& plan, void* workspace, const int64_t* alive_at,
                   cudaStream_t stream) {
  if (problem.rows.length && problem.rows.padded()) {
    const Shape& shape = problem.shape;
    LaunchConfig rows{dim3(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.groups)), dim3(128)};
    rows.stream = stream;
    if (const cudaError_t error = launch(rows, clear_ended<T>, problem)) return error;
  }
  if (plan.variant != Variant::stepwise) {
    if constexpr (sizeof(T) == 2) return run_teams<T, true>(problem, plan, workspace, stream);
    if constexpr (sizeof(T) == 4)
      return plan.tensor ? run_teams<T, true>(problem, plan, workspace, stream)
                         : run_teams<T, false>(problem, plan, workspace, stream);
  }
  return run_stepwise(problem, alive_at, stream);
}

}  // namespace

template <class T>
std::string run(const Problem<T>& problem, const Plan& plan, void* workspace, void* stream) {
  const cudaError_t error =
      run_on(DeviceProblem<T>(problem), plan, workspace, problem.rows.alive_at, static_cast<cudaStream_t>(stream));
  return error ? std::string(cudaGetErrorString(error)) + ", launching " + plan.why : "";
}

template std::string run(const Problem<float>&, const Plan&, void*, void*);
template std::string run(const Problem<double>&, const Plan&, void*, void*);
template std::string run(const Problem<half>&, const Plan&, void*, void*);
template std::string run(const Problem<bfloat16>&, const Plan&, void*, void*);

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
  device.cluster_blocks = cluster_blocks(device.capability);
  return device;
}

}  // namespace rnn_ext::cuda
