// What device.cuh's functions compute on the emulator, and what its runtime answers: layouts against a plain product,
// numbers against the formats' definitions, launches that CUDA refuses, faults that only some devices have.
#include <cmath>
#include <cstdio>
#include <string>

#include "check.h"
#include "cuda_cases.h"
#include "cuda_emulator/sanitizers.h"

using namespace rnn_ext;
using namespace rnn_ext::cuda;
using namespace rnn_ext::cuda::test;
using cuda_emulator::Fault;

namespace {

// ---- tensor cores ----

// The half and bfloat16 products, with ldmatrix and its transposed form, are cases of cuda_cases.h.
int check_products() {
  const std::string half_product = run_multiply_16bit<half>();
  CHECK(half_product.empty(), "half: %s", half_product.c_str());
  const std::string bfloat16_product = run_multiply_16bit<bfloat16>();
  CHECK(bfloat16_product.empty(), "bfloat16: %s", bfloat16_product.c_str());

  // In TF32: numbers a quarter of a unit above one that has 10 bits are cut to it, and rounded to it; three quarters
  // above, cut to it, and rounded to the next.
  for (const float excess : {0.25f, 0.75f}) {
    std::vector<float> a(16 * 8), b(8 * 8);
    for (int i = 0; i < 16 * 8; ++i) a[i] = static_cast<float>(1024 + i * 37 % 101) + excess;
    for (int i = 0; i < 8 * 8; ++i) b[i] = static_cast<float>(i * 53 % 89 - 44);
    for (const bool round : {false, true}) {
      std::vector<float> d(16 * 8), expected(16 * 8);
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j) {
          expected[i * 8 + j] = d[i * 8 + j] = static_cast<float>(i - 3 * j);
          for (int k = 0; k < 8; ++k)
            expected[i * 8 + j] += std::floor(a[i * 8 + k] + (round ? 0.5f : 0.0f)) * b[k * 8 + j];
        }
      launch({dim3(1), dim3(32)}, round ? multiply_tf32<true> : multiply_tf32<false>, a.data(), b.data(), d.data());
      const std::string wrong = compare(d, expected);
      CHECK(wrong.empty(), "tf32, %d, %g: %s", round, excess, wrong.c_str());
    }
  }
  return failures;
}

// ---- numbers ----

// The values of all numbers of a format, in the order of their bits.
template <class T>
double value(uint32_t bits);
template <>
double value<half>(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10), mantissa = static_cast<int>(bits & 1023);
  return exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
}
template <>
double value<bfloat16>(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 7), mantissa = static_cast<int>(bits & 127);
  return exponent ? std::ldexp(128 + mantissa, exponent - 134) : std::ldexp(mantissa, -133);
}

// Every number of the format, the middle between it and the next (to the even one of the two), and a little more and
// less than that; `infinity` is the format's.
template <class T>
int check_format(const char* name, uint32_t infinity) {
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    const float x = static_cast<float>(value<T>(bits));
    // Beyond the largest number the next would be where infinity is.
    const float middle = static_cast<float>((value<T>(bits) + value<T>(bits + 1)) / 2);
    const uint32_t even = bits + bits % 2;
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float s = sign ? -1.0f : 1.0f;
      const T same = from_float<T>(s * x), tie = from_float<T>(s * middle);
      const T below = from_float<T>(s * std::nextafter(middle, 0.0f));
      const T above = from_float<T>(s * std::nextafter(middle, INFINITY));
      CHECK(to_float(T{static_cast<uint16_t>(bits | sign)}) == s * x, "%s %x is not %g", name, bits | sign, s * x);
      CHECK(same.bits == (bits | sign), "%s of %g is %x, not %x", name, s * x, same.bits, bits | sign);
      CHECK(tie.bits == (even | sign), "%s of %g is %x, not %x", name, s * middle, tie.bits, even | sign);
      CHECK(below.bits == (bits | sign), "%s below %g is %x, not %x", name, s * middle, below.bits, bits | sign);
      CHECK(above.bits == ((bits + 1) | sign), "%s above %g is %x, not %x", name, s * middle, above.bits, bits + 1);
    }
  }
  CHECK(std::isinf(to_float(T{static_cast<uint16_t>(infinity)})), "%s's infinity", name);
  CHECK(from_float<T>(-INFINITY).bits == (infinity | 0x8000), "%s of -infinity", name);
  CHECK(std::isnan(to_float(from_float<T>(NAN))), "%s of NaN", name);
  CHECK((pack<T>(1.0f, -2.0f)) == (from_float<T>(1.0f).bits | static_cast<uint32_t>(from_float<T>(-2.0f).bits) << 16),
        "two of %s", name);
  return failures;
}

int check_tanh() {
  for (float x = -10; x <= 10; x += 0.001f) {
    const double exact = std::tanh(static_cast<double>(x));
    const double error = std::abs(tanh_approx(x) - exact);
    CHECK(error <= std::ldexp(std::abs(exact), -11), "tanh_approx(%g) errs by %g", x, error);
  }
  return failures;
}

// ---- the runtime ----

__global__ void nothing() {}

int check_refusals() {
  cuda_emulator::device() = {};
  const auto kernel = nothing;
  auto start = [&](const LaunchConfig& config) {
    const cudaError_t error = launch(config, kernel);
    const cudaError_t remembered = cudaGetLastError();
    return error == remembered && cudaPeekAtLastError() == cudaSuccess ? error : static_cast<cudaError_t>(-1);
  };
  LaunchConfig config{dim3(1), dim3(32)};
  config.shared_bytes = 48 * 1024;
  CHECK(start(config) == cudaSuccess, "48 KiB are always there");
  config.shared_bytes = 64 * 1024;
  CHECK(start(config) == cudaErrorInvalidValue, "64 KiB, without having asked");
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024) == cudaSuccess, "asking");
  CHECK(start(config) == cudaSuccess, "64 KiB, having asked");
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024) == cudaErrorInvalidValue,
        "more than the device has");
  cudaGetLastError();
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32, 64 * 1024);
  CHECK(blocks == 3, "%d blocks of 64 + 1 KiB in 228 KiB", blocks);
  config = {dim3(1), dim3(1025)};
  CHECK(start(config) == cudaErrorInvalidConfiguration, "more than 1024 threads");
  config = {dim3(5), dim3(1024)};
  config.cooperative = true;
  cuda_emulator::device().multiprocessors = 2;
  CHECK(start(config) == cudaErrorCooperativeLaunchTooLarge, "5 blocks of 1024 threads on 2 multiprocessors");
  config.grid = dim3(4);
  CHECK(start(config) == cudaSuccess, "4 blocks of 1024 threads on 2 multiprocessors");
  config = {dim3(18), dim3(32)};
  config.cluster = dim3(9);
  CHECK(start(config) == cudaErrorInvalidClusterSize, "9 blocks in a cluster");
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess, "more of them");
  CHECK(start(config) == cudaSuccess, "9 blocks in a cluster, allowed");
  config.cluster = dim3(4);
  CHECK(start(config) == cudaErrorInvalidClusterSize, "18 blocks in clusters of 4");
  cuda_emulator::device().major = 8;
  config.cluster = dim3(2);
  CHECK(start(config) == cudaErrorNotSupported, "clusters on sm_80");
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.multiProcessorCount == 2, "properties");
  int major = 0;
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major == 8, "attribute");
  return failures;
}

// An architecture's lack is a fault where it is used; half runs on sm_75.
int check_old_device() {
  cuda_emulator::device() = {};
  cuda_emulator::device().major = 7;
  cuda_emulator::device().minor = 5;
  std::string said;
  try {
    said = run_multiply_16bit<bfloat16>();
  } catch (const Fault& fault) {
    said = fault.what();
  }
  CHECK(said.find("mma needs sm_80, the device is sm_75") != std::string::npos, "said: %s", said.c_str());
  said = run_multiply_16bit<half>();
  CHECK(said.empty(), "half on sm_75: %s", said.c_str());
  cuda_emulator::device() = {};
  return failures;
}

// The largest launch that is meant to be tried: 64 blocks of 256 threads, together, 16 steps. A stack for each thread.
template <class T>
__global__ void many(uint32_t* flags, T* sum, int steps) {
  for (int t = 0; t < steps; ++t) {
    if (t > 0 && threadIdx.x < gridDim.x) spin_until(flags + threadIdx.x, static_cast<uint32_t>(t), 1u << 20);
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, static_cast<uint32_t>(t + 1));
  }
  atomicAdd(sum, T{1});
}

int check_many() {
  // ThreadSanitizer can tell only 8,128 threads apart.
  const unsigned blocks = cuda_emulator::kTsan ? 8 : 64, threads = cuda_emulator::kTsan ? 64 : 256;
  std::vector<uint32_t> flags(blocks);
  unsigned long long sum = 0;
  LaunchConfig config{dim3(blocks), dim3(threads)};
  config.cooperative = true;
  CHECK(launch(config, many<unsigned long long>, flags.data(), &sum, 16) == cudaSuccess, "not launched");
  CHECK(sum == blocks * threads, "%llu threads have come", sum);

  if (!cuda_emulator::kTsan) return failures;
  std::string said;
  try {
    launch({dim3(64), dim3(256)}, nothing);
  } catch (const Fault& fault) {
    said = fault.what();
  }
  CHECK(said.find("16384 threads are more than ThreadSanitizer") == 0, "said: %s", said.c_str());
  return failures;
}

}  // namespace

int main() {
  check_products();
  check_format<half>("half", 0x7c00);
  check_format<bfloat16>("bfloat16", 0x7f80);
  check_tanh();
  check_refusals();
  check_old_device();
  check_many();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
