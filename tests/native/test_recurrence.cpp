// The kernels without PyTorch: every instruction set against a plain loop in long double, on std::thread
// teams of several sizes, with every layout. Run plain, and under AddressSanitizer, UBSan and ThreadSanitizer.
#include <thread>

#include "cases.h"
#include "cpu/isa.h"
#include "cpu/planner.h"

using namespace rnn_ext;
using namespace rnn_ext::test;

namespace {

template <class T>
Result<T> run(const Case<T>& c, const Isa& isa, int threads, bool fewer = false, bool by_rows = false) {
  Result<T> r;
  const Problem<T> p = problem_of(c, r);

  // A machine with tiny caches, so that the planner splits small shapes too.
  const Kernel<T>& kernel = kernel_for<T>(isa, by_rows);
  const Plan plan = make_plan(c.shape, kernel.tiling, {1 << 10, 4 << 10, 1 << 30}, threads);
  // Whatever the scratch holds must not matter: 0xff is NaN in every format.
  std::vector<unsigned char> packed(plan.packed_bytes, 0xff), states(plan.states_bytes, 0xff),
      ahead(plan.ahead_bytes, 0xff);
  std::vector<Arrivals> arrivals(2 * plan.workers());
  const Workspace space = {packed.data(), states.data(), ahead.data(), arrivals.data()};
  std::vector<std::thread> team;
  // Sometimes fewer come than were asked for.
  const int workers = fewer ? (plan.workers() + 1) / 2 : plan.workers();
  for (int w = 0; w < workers; ++w) team.emplace_back([&, w] { kernel.run(p, plan, space, w, workers); });
  for (auto& t : team) t.join();
  return r;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
int check_random(unsigned seed) {
  std::mt19937 random(seed);
  constexpr int64_t kHidden[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 70, 97, 129, 150};
  const Shape shape = {static_cast<int64_t>(random() % 8),
                       static_cast<int64_t>(random() % 4 ? random() % 15 : random() % 80),
                       1 + static_cast<int64_t>(random() % 3), kHidden[random() % std::size(kHidden)]};
  const Case<T> c(shape, seed, /*may_project=*/true);
  const Result<long double> want = expected(c);
  // Whole weights, not transposed: what the kernels without packed panels take.
  const bool rows_too = !c.transpose;
  for (const Isa* isa : compiled_isas()) {
    if (!isa->supported()) continue;
    for (const bool by_rows : {false, true}) {
      if (by_rows && !rows_too) continue;
      const Result<T> alone = run(c, *isa, 1, /*fewer=*/false, by_rows);
      if (shape.time == 0 || !compare(alone.output, want.output, c, "output", isa->name))
        if (compare(alone.last, want.last, c, "last", isa->name)) return failures;
      for (int threads : {2, 3, 5}) {
        const Result<T> team = run(c, *isa, threads, /*fewer=*/seed % 4 == 0, by_rows);
        CHECK(same_bits(team.output, alone.output) && same_bits(team.last, alone.last),
              "%s%s T=%ld B=%ld G=%ld H=%ld: %d threads give other bits than one", isa->name, by_rows ? " by rows" : "",
              long(shape.time), long(shape.batch), long(shape.groups), long(shape.hidden), threads);
      }
    }
  }
  return failures;
}

}  // namespace

int main() {
  // The plain build looks at many; the sanitizers, ten times slower, at fewer.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr unsigned kCases = 60;
#else
  constexpr unsigned kCases = 400;
#endif
  for (unsigned seed = 0; seed < kCases; ++seed)
    if (check_random<float>(seed) || check_random<double>(seed + 10000) || check_random<half>(seed + 20000) ||
        check_random<bfloat16>(seed + 30000))
      return 1;
  std::printf("recurrence: %u random problems in four dtypes on every instruction set\n", kCases);
  return failures != 0;
}
