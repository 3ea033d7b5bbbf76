// What the host code of csrc/cuda/recurrence.cu launches for a problem, said by that code itself (cuda_verify.py).
//
// It is linked with its object and planner.cpp, but in place of CUDA's runtime with the functions below: no GPU, and no
// launch, but its kernel, its grid and its arguments to the byte. Tensors have addresses that nothing else in a
// kernel's arguments looks like, so that the reader finds them there.
//
//   launches <variant> <capability> <multiprocessors> <T> <B> <G> <H> <epilogue> <seed> [mask leak kept resets lengths
//     packed] < kernels
//
// variant, epilogue, seed: by their numbers in planner.h and recurrence.h. kernels: lines of a kernel's name and the
// bytes of each of its parameters, which a launch does not say. It prints lines
//   object <address> <name> [its integers...]
//   launch <kernel> <grid x, y, z> <threads of a block> <blocks of a cluster> <shared bytes> <parameters in
//   hexadecimal...>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace {

std::map<const void*, std::string>& kernel_names() {
  static std::map<const void*, std::string> names;  // filled before main
  return names;
}
std::map<std::string, std::vector<size_t>> parameter_bytes;

}  // namespace

// CUDA's runtime, as far as nvcc's code and ours ask for it.
extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernel_names()[kernel] = name;
}
// Of <<< >>>, which nothing here uses.
cudaError_t __cudaPopCallConfiguration() { std::abort(); }
cudaError_t __cudaGetKernel() { std::abort(); }
cudaError_t __cudaLaunchKernel() { std::abort(); }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetDevice(int*) { return cudaErrorNoDevice; }
cudaError_t cudaSetDevice(int) { return cudaErrorNoDevice; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorNoDevice; }
const char* cudaGetErrorString(cudaError_t) { return "no runtime"; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const std::string& name = kernel_names().at(kernel);
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
  std::printf("launch %s %u,%u,%u %u %u %zu", name.c_str(), config->gridDim.x, config->gridDim.y, config->gridDim.z,
              config->blockDim.x, cluster, config->dynamicSmemBytes);
  for (const size_t bytes : parameter_bytes.at(name)) {
    std::printf(" ");
    const auto* argument = static_cast<const unsigned char*>(*arguments++);
    for (size_t i = 0; i < bytes; ++i) std::printf("%02x", argument[i]);
  }
  std::printf("\n");
  return cudaSuccess;
}
}

namespace {

using namespace rnn_ext;

uintptr_t last_object = 0x7f0000000000;

// A tensor's address, and a line about it; `integers` is what it holds, where a kernel's way depends on it.
template <class T>
T* object(const char* name, const std::vector<int64_t>& integers = {}) {
  last_object += uintptr_t{1} << 32;
  std::printf("object %zx %s", last_object, name);
  for (const int64_t n : integers) std::printf(" %lld", static_cast<long long>(n));
  std::printf("\n");
  return reinterpret_cast<T*>(last_object);
}

}  // namespace

int main(int count, char** words) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::string name;
    in >> name;
    for (size_t bytes; in >> bytes;) parameter_bytes[name].push_back(bytes);
  }
  if (count < 10) return 2;
  auto number = [&](int n) { return std::atoi(words[n]); };
  auto option = [&](const std::string& name) {
    for (int n = 10; n < count; ++n)
      if (words[n] == name) return true;
    return false;
  };
  const cuda::Device device{number(2), number(3), 227 * 1024, cuda::cluster_blocks(number(2))};
  Problem<float> p;
  p.shape = {number(4), number(5), number(6), number(7), 0};
  p.epilogue = static_cast<Epilogue>(number(8));
  p.seed_kind = static_cast<Seed>(number(9));
  const int64_t time = p.shape.time, batch = p.shape.batch, groups = p.shape.groups, hidden = p.shape.hidden;
  const int64_t width = groups * hidden;

  // Every second group is reversed.
  std::vector<int64_t> direction, length, alive_at, packed_at, order;
  for (int64_t g = 0; g < groups; ++g) direction.push_back(g % 2 ? -1 : 1);
  // Rows of T, T - 1, ... steps, at least one; the last of the batch is the longest.
  for (int64_t i = 0; i < batch; ++i) {
    length.push_back(time > i ? time - i : 1);
    order.push_back(batch - 1 - i);
  }
  for (int64_t t = 0, rows = 0; t < time; ++t) {
    int64_t alive = 0;
    while (alive < batch && length[alive] > t) ++alive;
    alive_at.push_back(alive);
    packed_at.push_back(rows);
    rows += alive;
  }
  p.direction = direction.data();
  const bool packed = option("packed");
  if (packed || option("lengths")) {
    p.rows.alive_at = alive_at.data();
    p.rows.length = object<int64_t>("length", length);
    if (packed)
      p.rows.packed_at = object<int64_t>("packed_at", packed_at);
    else
      p.rows.order = object<int64_t>("order", order);
  }
  if (option("resets")) p.rows.resets = object<bool>("resets");
  // A linear recurrence is an adjoint more often than not: by W transposed.
  p.transpose = uses_factor(p.epilogue);
  p.weight = {object<const float>("weight"), hidden, 1};
  p.input = {object<const float>("input"), batch * width, width};
  if (uses_factor(p.epilogue)) p.factor = {object<const float>("factor"), batch * width, width};
  if (option("leak")) p.leak = {object<const float>("leak"), batch * width, width};
  if (option("kept")) p.kept = {object<const bool>("kept"), batch * width, width};
  if (p.seed_kind != Seed::none) p.seed = {object<const float>("seed"), batch * hidden, hidden};
  if (option("mask")) p.mask = {object<const float>("mask"), batch * hidden, hidden};
  p.output = {object<float>("output"), batch * width, width};
  p.last = {object<float>("last"), batch * hidden, hidden};

  const auto variant = static_cast<cuda::Variant>(number(1));
  const auto plan = cuda::plan_for(variant, p.shape, cuda::Format::float32, device);
  if (!plan) {
    std::fprintf(stderr, "the variant has no plan for this problem\n");
    return 1;
  }
  void* const workspace = plan->workspace_bytes ? object<void>("workspace") : nullptr;
  const std::string wrong = cuda::run(p, *plan, workspace, nullptr);
  std::fprintf(stderr, "%s", wrong.c_str());
  return wrong.empty() ? 0 : 1;
}
