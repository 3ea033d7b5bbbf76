// One run of each kernel of cuda_kernels.cuh, right or with a planted mistake, and what should come out.
#pragma once

#include <string>
#include <vector>

#include "cuda_emulator/emulator.h"
#include "cuda_kernels.cuh"

namespace rnn_ext::cuda::test {

// Empty if the kernel did what it should. Throws what the emulator throws.
using Case = std::string (*)();

template <class T>
std::string compare(const std::vector<T>& got, const std::vector<T>& expected) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(got[i] == expected[i]))
      return "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " + std::to_string(expected[i]);
  return "";
}

inline std::string refused(cudaError_t error) {
  return error == cudaSuccess ? "" : std::string("refused: ") + cudaGetErrorString(error);
}

// Small integers, so that sums are exact in any order.
inline float small(int i) { return static_cast<float>(i * 7 % 5 - 2); }

struct Recurrence {
  static constexpr int kSteps = 5, kHidden = 64;
  std::vector<float> u, w, y, expected;
  Recurrence() : u(kSteps * kHidden), w(kHidden * kHidden), y(kSteps * kHidden, -1), expected(kSteps * kHidden) {
    for (int i = 0; i < kSteps * kHidden; ++i) u[i] = small(i);
    // Sparse, so that sums stay exact, and far: every row needs rows of other warps and blocks.
    for (int i = 0; i < kHidden; ++i) w[i * kHidden + (i + 37) % kHidden] = w[i * kHidden + (5 * i + 11) % kHidden] = 2;
    for (int t = 0; t < kSteps; ++t)
      for (int i = 0; i < kHidden; ++i) {
        float sum = u[t * kHidden + i];
        for (int k = 0; t && k < kHidden; ++k) sum += 0.5f * w[i * kHidden + k] * expected[(t - 1) * kHidden + k];
        expected[t * kHidden + i] = sum;
      }
  }
};

template <Bug kBug = Bug::none>
std::string run_block_recurrence() {
  Recurrence r;
  LaunchConfig config{dim3(1), dim3(Recurrence::kHidden)};
  config.shared_bytes = 2 * Recurrence::kHidden * sizeof(float);
  const cudaError_t error = launch(config, block_recurrence<kBug>, r.u.data(), r.w.data(), r.y.data(),
                                   int{Recurrence::kSteps}, int{Recurrence::kHidden});
  return error ? refused(error) : compare(r.y, r.expected);
}

// kCooperative false: the blocks need not run at the same time, and so cannot wait for one another.
template <Bug kBug = Bug::none, bool kCooperative = true>
std::string run_grid_recurrence() {
  constexpr int kBlocks = 4;
  Recurrence r;
  std::vector<float> h(2 * Recurrence::kHidden, NAN);
  std::vector<uint32_t> flags(kBlocks), timed_out(1);
  LaunchConfig config{dim3(kBlocks), dim3(Recurrence::kHidden / kBlocks)};
  config.cooperative = kCooperative;
  const cudaError_t error = launch(config, grid_recurrence<kBug>, r.u.data(), r.w.data(), r.y.data(), h.data(),
                                   flags.data(), timed_out.data(), int{Recurrence::kSteps}, int{Recurrence::kHidden});
  if (error) return refused(error);
  if (timed_out[0]) return "timed out";
  return compare(r.y, r.expected);
}

template <Bug kBug = Bug::none>
std::string run_warp_sum() {
  std::vector<int> x(64), sum(2), expected(2);
  for (int i = 0; i < 64; ++i) expected[i / 32] += x[i] = i * i % 11;
  const cudaError_t error = launch({dim3(1), dim3(64)}, warp_sum<kBug>, x.data(), sum.data());
  return error ? refused(error) : compare(sum, expected);
}

template <Bug kBug = Bug::none>
std::string run_hand_over() {
  constexpr int kRounds = 3, kHalf = 64;
  std::vector<int> x(kRounds * kHalf), y(kRounds * kHalf, -1), expected(kRounds * kHalf);
  for (int i = 0; i < kRounds * kHalf; ++i) {
    x[i] = 100 + i;
    expected[i / kHalf * kHalf + kHalf - 1 - i % kHalf] = 100 + i;
  }
  const cudaError_t error = launch({dim3(1), dim3(2 * kHalf)}, hand_over<kBug>, x.data(), y.data(), int{kRounds});
  return error ? refused(error) : compare(y, expected);
}

template <Bug kBug = Bug::none>
std::string run_copied_sum() {
  constexpr int kRows = 5, kThreads = 64, kColumns = 4 * kThreads;
  struct alignas(16) Row {
    float x[kColumns];
  };
  std::vector<Row> x(kRows);
  std::vector<Row> sum(1);
  std::vector<float> expected(kColumns);
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) expected[c] += x[r].x[c] = small(r * kColumns + c) + static_cast<float>(r);
  LaunchConfig config{dim3(1), dim3(kThreads)};
  config.shared_bytes = 2 * sizeof(Row);
  const cudaError_t error = launch(config, copied_sum<kBug>, x[0].x, sum[0].x, int{kRows});
  return error ? refused(error) : compare(std::vector<float>(sum[0].x, sum[0].x + kColumns), expected);
}

template <Bug kBug = Bug::none>
std::string run_cluster_sum() {
  // Two clusters of three blocks.
  constexpr int kBlocks = 6, kCluster = 3, kThreads = 32, kRounds = 3;
  std::vector<int> x(kBlocks * kThreads), sum(kBlocks * kThreads, -1), expected(kBlocks * kThreads);
  for (int i = 0; i < kBlocks * kThreads; ++i) x[i] = i * i % 17;
  for (int b = 0; b < kBlocks; ++b)
    for (int i = 0; i < kThreads; ++i)
      for (int r = 0; r < kRounds; ++r) {
        const int from = b / kCluster * kCluster + (b + kCluster - 1) % kCluster;
        expected[b * kThreads + i] += x[from * kThreads + i] + r + kCluster * r;
      }
  LaunchConfig config{dim3(kBlocks), dim3(kThreads)};
  config.cluster = dim3(kCluster);
  config.shared_bytes = 2 * kThreads * sizeof(int);
  const cudaError_t error = launch(config, cluster_sum<kBug>, x.data(), sum.data(), int{kRounds});
  return error ? refused(error) : compare(sum, expected);
}

template <Bug kBug = Bug::none>
std::string run_counted_sum() {
  constexpr int kBlocks = 5;
  std::vector<int> x(kBlocks), partial(kBlocks), sum(1, -1), expected(1);
  for (int i = 0; i < kBlocks; ++i) expected[0] += x[i] = i + 3;
  unsigned counter = 0;
  const cudaError_t error =
      launch({dim3(kBlocks), dim3(2)}, counted_sum<kBug>, x.data(), partial.data(), &counter, sum.data());
  return error ? refused(error) : compare(sum, expected);
}

template <class T, Bug kBug = Bug::none>
std::string run_multiply_16bit() {
  std::vector<T> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8), expected(16 * 8);
  // No two elements alike nearby: a transposition or a swap shows.
  for (int i = 0; i < 16 * 16; ++i) a[i] = {from_float<T>(static_cast<float>(i * 37 % 101 - 50))};
  for (int i = 0; i < 16 * 8; ++i) b[i] = {from_float<T>(static_cast<float>(i * 53 % 89 - 44))};
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      expected[i * 8 + j] = d[i * 8 + j] = static_cast<float>(i - 3 * j);
      for (int k = 0; k < 16; ++k) expected[i * 8 + j] += to_float(a[i * 16 + k]) * to_float(b[k * 8 + j]);
    }
  LaunchConfig config{dim3(1), dim3(32)};
  config.shared_bytes = (16 * 16 + 16 * 8) * sizeof(T);
  const cudaError_t error = launch(config, multiply_16bit<T, kBug>, a.data(), b.data(), d.data());
  return error ? refused(error) : compare(d, expected);
}

}  // namespace rnn_ext::cuda::test
