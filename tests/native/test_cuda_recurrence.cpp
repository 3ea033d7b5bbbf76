// The CUDA kernels on the emulator: every variant, dtype, layout and direction against a plain loop in long double,
// under hostile schedules, through the launch code that a GPU runs. Plain, and under the sanitizers.
#include <string>

#include "cases.h"
#include "cuda/kernels.h"
#include "cuda_emulator/emulator.h"

using namespace rnn_ext;
using namespace rnn_ext::test;

namespace {

// The sanitizers are slow, and ThreadSanitizer has room for 8128 threads, which is what the blocks of a launch share.
#if defined(__SANITIZE_THREAD__)
constexpr unsigned kCases = 5;
constexpr int64_t kMoreRows = 0, kThreads = 8128;
#elif defined(__SANITIZE_ADDRESS__)
constexpr unsigned kCases = 10;
constexpr int64_t kMoreRows = 60, kThreads = INT64_MAX;
#else
constexpr unsigned kCases = 40;
constexpr int64_t kMoreRows = 60, kThreads = INT64_MAX;
#endif

// The kernels copy aligned words of four bytes, which the last of an odd number of 16-bit elements does not fill.
template <class T>
std::vector<T> whole_words(const std::vector<T>& v) {
  std::vector<T> padded = v;
  padded.resize(v.size() + 1);
  return padded;
}

template <class T>
Result<T> run(const Case<T>& c, const cuda::Plan& plan, std::string& error) {
  Result<T> r;
  Problem<T> p = problem_of(c, r);
  const std::vector<T> input = whole_words(c.input), factor = whole_words(c.factor);
  if (p.input.data) p.input.data = input.data();
  p.factor.data = factor.data();
  std::vector<int64_t> length(c.length);
  std::sort(length.rbegin(), length.rend());
  if (p.rows.ragged()) p.rows.length = length.data();
  // What nobody has written is nobody's to read: NaNs.
  std::vector<float> workspace(plan.workspace_bytes / sizeof(float) + 32, NAN);
  void* aligned = workspace.data();
  size_t bytes = workspace.size() * sizeof(float);
  std::align(128, plan.workspace_bytes, aligned, bytes);
  error = cuda::run(p, plan, aligned, nullptr);
  return r;
}

// Every plan that a device offers for the shape, and `resident` with more than a row in a block.
std::vector<cuda::Plan> plans(const Shape& shape, cuda::Format format) {
  // With room for all, a row each; and with so few multiprocessors that rows have to share them, and teams take turns.
  const int64_t blocks = (shape.hidden + 31) / 32;
  const cuda::Device roomy = {90, 10000, 232448, 16}, crowded = {90, static_cast<int>(blocks), 166912, 8};
  std::vector<cuda::Plan> found;
  for (const cuda::Device& device : {roomy, crowded})
    for (auto variant : {cuda::Variant::resident, cuda::Variant::cluster, cuda::Variant::persistent})
      if (std::optional<cuda::Plan> plan = plan_for(variant, shape, format, device)) found.push_back(*plan);
  found.erase(std::remove_if(found.begin(), found.end(),
                             [](const cuda::Plan& p) { return int64_t{p.teams} * p.blocks * p.threads > kThreads; }),
              found.end());
  // In TF32 there is none but float32's.
  if (format != cuda::Format::tf32) found.push_back(*plan_for(cuda::Variant::stepwise, shape, format, roomy));
  return found;
}

template <class T>
int check_random(unsigned seed, const std::vector<cuda_emulator::Schedule>& schedules,
                 cuda::Format format = cuda::kFormat<T>) {
  std::mt19937 random(seed);
  constexpr int64_t kHidden[] = {1, 3, 5, 16, 31, 32, 33, 40, 64, 65, 100, 127, 128, 129, 200, 256, 257};
  Shape shape = {static_cast<int64_t>(1 + random() % 5), static_cast<int64_t>(1 + random() % 7),
                 1 + static_cast<int64_t>(random() % 2), kHidden[random() % std::size(kHidden)]};
  if (shape.hidden > 130) shape.batch = std::min<int64_t>(shape.batch, 3);
  // More rows than a tile of the stepwise kernel has, now and then.
  if (shape.hidden < 8 && random() % 3 == 0) shape.batch += kMoreRows;
  Case<T> c(shape, seed);
  c.tf32 = format == cuda::Format::tf32;
  const Result<long double> want = expected(c);
  for (const cuda::Plan& plan : plans(shape, format)) {
    cuda_emulator::schedule() = schedules[random() % schedules.size()];
    const std::string how = plan.why + ", " + cuda_emulator::schedule().describe();
    std::string error;
    const Result<T> got = run(c, plan, error);
    CHECK(error.empty(), "%s: %s", how.c_str(), error.c_str());
    if (!compare(got.output, want.output, c, "output", how.c_str()))
      if (compare(got.last, want.last, c, "last", how.c_str())) return failures;
  }
  return failures;
}

}  // namespace

// An argument of 0 or 1 chooses every second problem: two processes share them.
int main(int argc, char** argv) {
  const std::vector<cuda_emulator::Schedule> schedules = cuda_emulator::all_schedules(3);
  const unsigned first = argc > 1 ? std::stoul(argv[1]) : 0, stride = argc > 1 ? 2 : 1;
  for (unsigned seed = first; seed < kCases; seed += stride)
    if (check_random<float>(seed, schedules) || check_random<double>(seed + 10000, schedules) ||
        check_random<half>(seed + 20000, schedules) || check_random<bfloat16>(seed + 30000, schedules) ||
        check_random<float>(seed + 40000, schedules, cuda::Format::tf32))
      return 1;
  std::printf("CUDA recurrence: %u of %u random problems in four dtypes, and in TF32, on every variant\n",
              (kCases - first + stride - 1) / stride, kCases);
  return failures != 0;
}
