// The kernels without PyTorch: every instruction set against a plain loop in long double, on std::thread
// teams of several sizes, with every layout. Run plain, and under AddressSanitizer, UBSan and ThreadSanitizer.
#include <optional>
#include <string>
#include <thread>

#include "cases.h"
#include "cpu/isa.h"
#include "cpu/planner.h"

using namespace rnn_ext;
using namespace rnn_ext::test;

namespace {

// A padded ragged case with some of its sequences packed instead, as a gradient's are (cpu/gradient.cpp).
template <class T>
class PartlyPacked {
 public:
  PartlyPacked(const Case<T>& c, Problem<T>& p, Result<T>& r, unsigned seed) : case_(c), result_(r) {
    for (int64_t alive : c.alive_at) {
      packed_at_.push_back(rows_);
      rows_ += alive;
    }
    p.rows.packed_at = packed_at_.data();
    std::mt19937 random(seed);
    auto maybe_pack = [&](auto& sequence, auto& packed) {
      if (!sequence.data || random() % 2 == 0) return;
      const int64_t columns = sequence.row_stride;
      packed.reset(new std::remove_reference_t<decltype(packed[0])>[rows_ * columns]);
      for_each_row([&](int64_t row, int64_t padded) {
        std::copy_n(sequence.data + padded * columns, columns, packed.get() + row * columns);
      });
      sequence = {packed.get(), p.input.kPacked, columns};
    };
    maybe_pack(p.input, input_);
    maybe_pack(p.projection.x, x_);
    maybe_pack(p.factor, factor_);
    maybe_pack(p.leak, leak_);
    maybe_pack(p.kept, kept_);
    maybe_pack(p.output, output_);
  }

  // To be called when the call is over: the output's rows to where the case has them, zeros in its padding.
  void unpack() {
    if (!output_) return;
    std::fill(result_.output.begin(), result_.output.end(), T{});
    const int64_t columns = case_.columns();
    for_each_row([&](int64_t row, int64_t padded) {
      std::copy_n(output_.get() + row * columns, columns, result_.output.data() + padded * columns);
    });
  }

 private:
  template <class Visit>
  void for_each_row(Visit visit) {
    for (size_t t = 0; t < packed_at_.size(); ++t)
      for (int64_t i = 0; i < case_.alive_at[t]; ++i)
        visit(packed_at_[t] + i, static_cast<int64_t>(t) * case_.shape.batch + case_.order[i]);
  }

  const Case<T>& case_;
  Result<T>& result_;
  int64_t rows_ = 0;
  std::vector<int64_t> packed_at_;
  std::unique_ptr<T[]> input_, x_, factor_, leak_, output_;
  std::unique_ptr<bool[]> kept_;
};

// A dense case whose groups' inputs and factors begin at different steps, as two directions' do where a gradient takes
// parts of the time (cpu/gradient.cpp).
template <class T>
class Apart {
 public:
  Apart(const Case<T>& c, Problem<T>& p, unsigned seed) {
    const int64_t lag = (seed % 2 ? 1 : -1) * (1 + static_cast<int64_t>(seed / 2 % 3));
    const int64_t all = std::abs(lag) * (c.shape.groups - 1), first = lag < 0 ? all : 0;
    const int64_t step = c.shape.batch * c.columns();
    auto move = [&](Sequence<const T>& sequence, std::vector<T>& apart) {
      if (!sequence.data) return;
      apart.assign((c.shape.time + all) * step, Format<T>::nearest(std::nan("")));
      for (int64_t i = 0; i < c.shape.time * step; ++i) {
        const int64_t group = i % c.columns() / c.shape.hidden;
        apart[i + (first + group * lag) * step] = sequence.data[i];
      }
      sequence.data = apart.data() + first * step;
      sequence.lag = lag;
    };
    move(p.input, input_);
    move(p.factor, factor_);
  }

 private:
  std::vector<T> input_, factor_;
};

template <class T>
Result<T> run(const Case<T>& c, const Isa& isa, int threads, bool fewer = false, bool by_rows = false,
              unsigned elsewhere = 0) {
  Result<T> r;
  Problem<T> p = problem_of(c, r);
  std::optional<PartlyPacked<T>> partly;
  std::optional<Apart<T>> apart;
  if (elsewhere && c.kind == Kind::lengths) partly.emplace(c, p, r, elsewhere);
  if (elsewhere && c.kind == Kind::dense && !p.leaks()) apart.emplace(c, p, elsewhere);

  // A machine with tiny caches, where meeting is free, so that the planner splits small shapes too; or with a larger
  // one for weights.
  const Kernel<T>& kernel = kernel_for<T>(isa, by_rows);
  const int64_t l2 = c.shape.batch % 2 ? 4 << 10 : 1 << 20;
  const Plan plan = make_plan(c.shape, kernel.tiling, {1 << 10, l2, 1 << 30, {}}, threads);
  // Whatever the scratch holds must not matter: 0xff is NaN in every format.
  std::vector<unsigned char> packed(plan.packed_bytes, 0xff), states(plan.states_bytes, 0xff),
      inputs(plan.inputs_bytes, 0xff);
  std::vector<Arrivals> arrivals(2 * plan.workers());
  const Workspace space = {packed.data(), states.data(), inputs.data(), arrivals.data(), plan.cut.data()};
  std::vector<std::thread> team;
  // Sometimes fewer come than were asked for.
  const int workers = fewer ? (plan.workers() + 1) / 2 : plan.workers();
  for (int w = 0; w < workers; ++w) team.emplace_back([&, w] { kernel.run(p, plan, space, w, workers); });
  for (auto& t : team) t.join();
  if (partly) partly->unpack();
  return r;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
int check_random(unsigned seed) {
  std::mt19937 random(seed);
  constexpr int64_t kHidden[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 70, 97, 129, 150, 257};
  const Shape shape = {static_cast<int64_t>(1 + random() % 7),
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
      if (!compare(alone.output, want.output, c, "output", isa->name))
        if (compare(alone.last, want.last, c, "last", isa->name)) return failures;
      for (int threads : {2, 3, 5}) {
        const Result<T> team = run(c, *isa, threads, /*fewer=*/seed % 4 == 0, by_rows);
        CHECK(same_bits(team.output, alone.output) && same_bits(team.last, alone.last),
              "%s%s T=%ld B=%ld G=%ld H=%ld: %d threads give other bits than one", isa->name, by_rows ? " by rows" : "",
              long(shape.time), long(shape.batch), long(shape.groups), long(shape.hidden), threads);
        const Result<T> moved = run(c, *isa, threads, /*fewer=*/false, by_rows, /*elsewhere=*/seed + 1);
        CHECK(same_bits(moved.output, alone.output) && same_bits(moved.last, alone.last),
              "%s%s T=%ld B=%ld G=%ld H=%ld, %d threads: other bits where sequences are packed or groups apart",
              isa->name, by_rows ? " by rows" : "", long(shape.time), long(shape.batch), long(shape.groups),
              long(shape.hidden), threads);
      }
    }
  }
  return failures;
}

// What two threads cost each other. A machine may be too busy to tell, and threads that do not come have no answer.
int check_meeting() {
  CHECK(!measure_meeting([](int, Body body, void* context) { body(0, 1, context); }), "measured with one thread");
  const std::optional<Meeting> meeting = measure_meeting([](int workers, Body body, void* context) {
    std::thread other([=] { body(1, workers, context); });
    body(0, workers, context);
    other.join();
  });
  if (!meeting) return failures;
  // A line's way takes some cycles, and less than the 4 us that count as disturbed, at up to 6 GHz.
  CHECK(meeting->barrier_cycles > 5 && meeting->barrier_cycles < 24000, "%.0f cycles", meeting->barrier_cycles);
  CHECK(meeting->state_line_cycles >= 0 && meeting->state_line_cycles < 1500, "%.0f", meeting->state_line_cycles);
  return failures;
}

// Of two who meet so many times, whether one goes on alone whose peer is away for a while before the second time.
bool goes_on_alone(int64_t steps) {
  Arrivals arrivals[2];
  std::atomic<bool> there{false};
  std::thread other([&] {
    StepBarrier barrier(arrivals, 0, 2, steps);
    there = true;
    barrier.arrive_and_wait(1);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    barrier.arrive_and_wait(1);
  });
  while (!there) std::this_thread::yield();
  StepBarrier barrier(arrivals, 0, 2, steps);
  barrier.arrive_and_wait(0);
  const bool alone = barrier.arrive_and_wait(0);
  other.join();
  return alone;
}

int check_late_members() {
  CHECK(goes_on_alone(2), "waited for a member that has nothing left to do");
  CHECK(!goes_on_alone(int64_t{1} << 30), "one interruption, and a long call has lost a thread");
  return failures;
}

}  // namespace

int main() {
  if (check_meeting() || check_late_members()) return 1;
  // The plain build looks at many; sanitizers and another machine's emulator, ten times slower, at fewer.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(RNN_EXT_CPU_EMULATED)
  constexpr unsigned kCases = 60;
#else
  constexpr unsigned kCases = 400;
#endif
  for (unsigned seed = 0; seed < kCases; ++seed)
    if (check_random<float>(seed) || check_random<double>(seed + 10000) || check_random<half>(seed + 20000) ||
        check_random<bfloat16>(seed + 30000))
      return 1;
  std::string run, lacking;
  for (const Isa* isa : compiled_isas()) (isa->supported() ? run : lacking) += std::string(" ") + isa->name;
  std::printf("recurrence: %u random problems in four dtypes on:%s; not on this CPU:%s\n", kCases, run.c_str(),
              lacking.empty() ? " none" : lacking.c_str());
  return failures != 0;
}
