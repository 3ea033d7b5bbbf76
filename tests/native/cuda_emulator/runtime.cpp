// The host's side: what CUDA's runtime answers about the device the test has set, and which launches it refuses.
#include "cuda_emulator/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda_emulator/emulator.h"
#include "cuda_emulator/state.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct Attributes {
  int dynamic_shared_bytes = 0;
  bool any_cluster_size = false;
};
// Of a kernel. Host threads may launch at the same time; entries stay where they are.
Attributes& attributes(const void* kernel) {
  static std::mutex mutex;
  static std::map<const void*, Attributes> all;
  std::lock_guard<std::mutex> lock(mutex);
  return all[kernel];
}

constexpr int kMostThreads = 1024;

int volume(const dim3& d) { return static_cast<int>(d.x * d.y * d.z); }

size_t shared_limit(const void* kernel) {
  const cuda_emulator::Device& device = cuda_emulator::device();
  return std::max(device.shared_bytes_per_block, attributes(kernel).dynamic_shared_bytes);
}

int blocks_per_multiprocessor(const void* kernel, int threads, size_t shared_bytes) {
  const cuda_emulator::Device& device = cuda_emulator::device();
  if (threads < 1 || threads > kMostThreads || shared_bytes > shared_limit(kernel)) return 0;
  const int warps = (threads + 31) / 32;
  const int by_registers = device.registers_per_multiprocessor / (warps * 32 * device.registers_per_thread);
  const int by_shared =
      device.shared_bytes_per_multiprocessor / static_cast<int>(shared_bytes + device.reserved_shared_bytes_per_block);
  return std::min(
      {device.blocks_per_multiprocessor, device.threads_per_multiprocessor / (warps * 32), by_registers, by_shared});
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize: return "cluster misconfiguration";
  }
  return "unknown error";
}

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = std::malloc(bytes);
  if (!*pointer && bytes > 0) return remember(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  const cuda_emulator::Device& d = cuda_emulator::device();
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->major = d.major;
  properties->minor = d.minor;
  properties->multiProcessorCount = d.multiprocessors;
  properties->maxThreadsPerMultiProcessor = d.threads_per_multiprocessor;
  properties->maxBlocksPerMultiProcessor = d.blocks_per_multiprocessor;
  properties->maxThreadsPerBlock = kMostThreads;
  properties->warpSize = 32;
  properties->regsPerMultiprocessor = d.registers_per_multiprocessor;
  properties->l2CacheSize = d.l2_bytes;
  properties->cooperativeLaunch = 1;
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(d.shared_bytes_per_multiprocessor);
  properties->sharedMemPerBlock = static_cast<size_t>(d.shared_bytes_per_block);
  properties->sharedMemPerBlockOptin = static_cast<size_t>(d.shared_bytes_per_block_optin);
  properties->reservedSharedMemPerBlock = static_cast<size_t>(d.reserved_shared_bytes_per_block);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  const cuda_emulator::Device& d = cuda_emulator::device();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = kMostThreads; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = d.shared_bytes_per_block; break;
    case cudaDevAttrClockRate: *value = d.clock_khz; break;
    case cudaDevAttrMultiProcessorCount: *value = d.multiprocessors; break;
    case cudaDevAttrL2CacheSize: *value = d.l2_bytes; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = d.threads_per_multiprocessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = d.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = d.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = d.shared_bytes_per_multiprocessor; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = d.registers_per_multiprocessor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = d.shared_bytes_per_block_optin; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = d.blocks_per_multiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = d.reserved_shared_bytes_per_block; break;
    case cudaDevAttrClusterLaunch: *value = d.major >= 9; break;
    default: return remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

namespace cuda_emulator {

Device& device() {
  static Device current;
  return current;
}

void need_architecture(int architecture, const char* operation, Place place) {
  const int own = 10 * device().major + device().minor;
  if (own < architecture)
    fail(Fault::Kind::misuse, describe(*current) + " at " + describe(place) + ": " + operation + " needs sm_" +
                                  std::to_string(architecture) + ", the device is sm_" + std::to_string(own));
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || value > device().shared_bytes_per_block_optin) return remember(cudaErrorInvalidValue);
      attributes(kernel).dynamic_shared_bytes = value;
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout: return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      attributes(kernel).any_cluster_size = value != 0;
      return cudaSuccess;
  }
  return remember(cudaErrorInvalidValue);
}

cudaError_t occupancy(int* blocks, const void* kernel, int threads, size_t shared_bytes) {
  *blocks = blocks_per_multiprocessor(kernel, threads, shared_bytes);
  return cudaSuccess;
}

cudaError_t active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t& config) {
  int size = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = config.attrs[i].val.clusterDim;
      size = static_cast<int>(cluster.x * cluster.y * cluster.z);
    }
  const int blocks = blocks_per_multiprocessor(kernel, volume(config.blockDim), config.dynamicSmemBytes);
  // As many multiprocessors as a processing cluster of Hopper has, a cluster does not reach beyond it.
  constexpr int kTogether = 16;
  *clusters = device().multiprocessors / kTogether * (kTogether * blocks / size);
  return cudaSuccess;
}

cudaError_t start(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(void*), void* arguments) {
  Launch launch;
  launch.grid = config.gridDim;
  launch.block = config.blockDim;
  launch.shared_bytes = config.dynamicSmemBytes;
  launch.call = call;
  launch.arguments = arguments;
  launch.schedule = schedule();
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) launch.cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension)
      launch.cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
  }

  const dim3 &grid = launch.grid, &cluster = launch.cluster;
  const int threads = volume(launch.block), cluster_blocks = volume(cluster);
  if (volume(grid) < 1 || threads < 1 || threads > kMostThreads) return remember(cudaErrorInvalidConfiguration);
  if (launch.shared_bytes > shared_limit(kernel)) return remember(cudaErrorInvalidValue);
  if (cluster_blocks > 1) {
    if (device().major < 9) return remember(cudaErrorNotSupported);
    const int most = attributes(kernel).any_cluster_size ? 2 * device().cluster_blocks : device().cluster_blocks;
    if (cluster_blocks > most || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
      return remember(cudaErrorInvalidClusterSize);
  }
  const int resident = device().multiprocessors * blocks_per_multiprocessor(kernel, threads, launch.shared_bytes);
  if (launch.cooperative && volume(grid) > resident) return remember(cudaErrorCooperativeLaunchTooLarge);
  launch.run();
  return cudaSuccess;
}

}  // namespace cuda_emulator
