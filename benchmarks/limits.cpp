// How fast cores read from each level of the memory hierarchy, behind a C interface for benchmarks/limits.py. All
// threads read at the same time, since cores share caches, memory channels and the power that sets their clock.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

namespace {

// One register of the machine that this is compiled for. (Two, and eight sums would be all that AVX2 has, and go
// through memory instead.)
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));
// Sums that run side by side, so that no add waits for the one before: latency 4, two a cycle.
constexpr int kSums = 8;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The compiler must believe that v is used.
inline void keep(const Vector& v) { asm volatile("" ::"m"(v)); }

// Reads again and again for at least that long; bytes per second.
double read_alone(const Vector* data, int64_t vectors, double seconds) {
  Vector sums[kSums] = {};
  int64_t passes = 0, batch = 1;
  double elapsed = 0;
  const auto start = Clock::now();
  while (elapsed < seconds) {
    for (int64_t pass = 0; pass < batch; ++pass) {
      for (int64_t i = 0; i < vectors; i += kSums) {
        // Unrolled here and below, or the compiler leaves the sums in memory.
#pragma GCC unroll 8
        for (int j = 0; j < kSums; ++j) sums[j] += data[i + j];
      }
      // Memory may have changed, for all the compiler knows, so it has to be read again.
      asm volatile("" ::: "memory");
    }
    passes += batch;
    elapsed = seconds_since(start);
    // So rarely on the clock that it costs nothing.
    if (elapsed < seconds / 10) batch *= 2;
  }
  Vector total{};
#pragma GCC unroll 8
  for (int j = 0; j < kSums; ++j) total += sums[j];
  keep(total);
  return passes * vectors * sizeof(Vector) / elapsed;
}

}  // namespace

extern "C" {

// Bytes per second of all threads together, each reading a buffer of its own of `bytes`.
double read_rate(int64_t bytes, int threads, double seconds) {
  const int64_t vectors = std::max<int64_t>(1, bytes / int64_t(kSums * sizeof(Vector))) * kSums;
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  auto run = [&](int thread) {
    // Touched first by the thread that reads it, so that it lies near it.
    auto* data = static_cast<Vector*>(std::aligned_alloc(kVectorBytes, vectors * sizeof(Vector)));
    if (data != nullptr) std::fill(data, data + vectors, Vector{});
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    rates[thread] = data == nullptr ? 0 : read_alone(data, vectors, seconds);
    std::free(data);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run, i);
  run(0);
  for (auto& other : others) other.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // extern "C"
