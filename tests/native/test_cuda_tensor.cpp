// Tensor cores' products on the emulator: every way to deal a block's rows of M to its warps, in every format, against
// sums in long double, under hostile schedules. Plain, and under the sanitizers.
#include <string>

#include "cases.h"
#include "cuda_emulator/emulator.h"
#include "cuda_emulator/sanitizers.h"
#include "cuda_tensor.cuh"

using namespace rnn_ext;
using namespace rnn_ext::cuda;
using namespace rnn_ext::cuda::test;

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kCases = 3;
#else
constexpr unsigned kCases = 16;
#endif
constexpr int kSteps = 3;
// ThreadSanitizer has room for 8128 threads, which is what the blocks of a launch share.
constexpr int kMostThreads = cuda_emulator::kTsan ? 8128 : 1 << 20;

// Random sizes, and numbers that the format has, so that only sums are rounded.
template <class T, int kColumns, int kWarps, int kHeld>
int check(const char* name, unsigned seed, const std::vector<cuda_emulator::Schedule>& schedules) {
  using Multiply = TensorMultiply<T, kColumns, kWarps, kHeld>;
  using Number = rnn_ext::test::Format<T>;
  constexpr int kHidden[] = {1, 3, 16, 17, 31, 32, 33, 64, 65, 100, 127, 128, 129, 200, 256, 300, 513};
  std::mt19937 random(seed);
  const int hidden = std::min(kHidden[random() % std::size(kHidden)], kMostThreads / Multiply::kThreads * kColumns);
  const int blocks = (hidden + kColumns - 1) / kColumns;
  const int rows = kSteps * kSets * Multiply::kRows, columns = blocks * kColumns;
  std::uniform_real_distribution<float> number(-1, 1);
  std::vector<T> matrix(hidden * hidden);
  for (T& m : matrix) m = Multiply::stored(number(random));
  std::vector<float> states(rows * hidden), sums(rows * columns, NAN);
  for (float& y : states) y = number(random);
  std::vector<int> written(sums.size());

  cuda_emulator::schedule() = schedules[random() % schedules.size()];
  const std::string how =
      std::string(name) + ", hidden " + std::to_string(hidden) + ", " + cuda_emulator::schedule().describe();
  LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Multiply::kThreads)};
  config.shared_bytes =
      2 * kSets * Multiply::kRows * Multiply::stride(hidden) * sizeof(T) + Multiply::shared_bytes(hidden);
  const auto kernel = multiply_states<Multiply>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(config.shared_bytes));
  if (!error)
    error = launch(config, kernel, matrix.data(), states.data(), sums.data(), written.data(), int{hidden}, int{kSteps});
  CHECK(!error, "%s: %s", how.c_str(), cudaGetErrorString(error));

  // Each mma rounds a sum once, and each warp that takes part once more, and once again.
  const double roundings = hidden / (16.0 / sizeof(T)) + 2 * kWarps;
  for (int row = 0; row < rows; ++row)
    for (int j = 0; j < columns; ++j) {
      long double want = 0, size = 0;
      for (int k = 0; j < hidden && k < hidden; ++k) {
        const long double product = static_cast<long double>(Number::value(matrix[j * hidden + k])) *
                                    Number::value(Multiply::stored(states[row * hidden + k]));
        want += product;
        size += std::abs(product);
      }
      const float got = sums[row * columns + j];
      CHECK(written[row * columns + j] == 1, "%s: element %d, %d comes from %d threads", how.c_str(), row, j,
            written[row * columns + j]);
      CHECK(std::abs(got - want) <= roundings * std::ldexp(size, -24), "%s: element %d, %d is %g, not %Lg", how.c_str(),
            row, j, got, want);
    }
  return failures;
}

}  // namespace

int main() {
  const std::vector<cuda_emulator::Schedule> schedules = cuda_emulator::all_schedules(3);
  for (unsigned seed = 0; seed < kCases; ++seed)
    // Tiles: as many as warps, fewer, more; a tile a warp, two; all of M in registers, or most in shared memory.
    if (check<half, 64, 8, 32>("half, 64 columns", seed, schedules) ||
        check<half, 128, 8, 16>("half, 128 columns", seed + 1000, schedules) ||
        check<half, 256, 16, 16>("half, 256 columns", seed + 2000, schedules) ||
        check<half, 16, 8, 4>("half, more warps than sums", seed + 3000, schedules) ||
        check<half, 16, 16, 2>("half, 16 warps on a tile", seed + 8000, schedules) ||
        check<bfloat16, 64, 8, 8>("bfloat16, a tile a warp", seed + 4000, schedules) ||
        check<bfloat16, 128, 16, 32>("bfloat16, four warps on two tiles", seed + 5000, schedules) ||
        check<float, 64, 8, 32>("TF32, 64 columns", seed + 6000, schedules) ||
        check<float, 32, 4, 4>("TF32, 32 columns", seed + 7000, schedules))
      return 1;
  std::printf("products by tensor cores: %u random problems of each shape\n", kCases);
  return failures != 0;
}
