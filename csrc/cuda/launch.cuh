// How host code starts a kernel. Included by device.cuh alone.
#pragma once

#include <utility>

namespace rnn_ext::cuda {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  dim3 cluster = dim3(1, 1, 1);  // in blocks; more than one needs sm_90
  size_t shared_bytes = 0;       // dynamic; over 48 KiB only after cudaFuncSetAttribute
  cudaStream_t stream = nullptr;
  bool cooperative = false;  // all blocks at the same time, or cudaErrorCooperativeLaunchTooLarge
};

template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster.x;
    attributes[count].val.clusterDim.y = config.cluster.y;
    attributes[count++].val.clusterDim.z = config.cluster.z;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t native = {};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = config.stream;
  native.attrs = attributes;
  native.numAttrs = count;
  return cudaLaunchKernelEx(&native, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace rnn_ext::cuda
