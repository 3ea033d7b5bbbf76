#include "meeting.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "planner.h"

namespace rnn_ext {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Steps are timed some at a time, of few lines and of more; the least of some rounds counts.
constexpr int kRounds = 6, kSteps = 32, kFew = 2, kMore = 18;
// Longer than a step takes between cores of different sockets, and less than one in which StepBarrier gives its core
// away, since both threads have the same one, or somebody else has the other.
constexpr double kDisturbed = 4e-6;

struct Steps {
  Arrivals arrivals[2];
  // Of each worker: what it writes in even and in odd steps, as states are.
  struct alignas(kApart) Part {
    int lines[2][kMore][16];
  } parts[2] = {};
  double few = kDisturbed, more = kDisturbed;
  int seen = 0;  // so that the reading is not optimised away
};

void work(int worker, int workers, void* context) {
  if (workers != 2) return;
  Steps& all = *static_cast<Steps*>(context);
  StepBarrier barrier(all.arrivals, 0, 2);
  int seen = 0;
  auto steps = [&](int lines) {
    const auto start = Clock::now();
    for (int s = 0; s < kSteps; ++s) {
      for (int i = 0; i < lines; ++i) all.parts[worker].lines[s % 2][i][0] = s;
      barrier.arrive_and_wait(worker);
      for (int i = 0; i < lines; ++i) seen += all.parts[1 - worker].lines[s % 2][i][0];
    }
    return seconds_since(start) / kSteps;
  };
  double few = kDisturbed, more = kDisturbed;
  for (int round = 0; round < kRounds; ++round) {
    few = std::min(few, steps(kFew));
    more = std::min(more, steps(kMore));
  }
  if (worker != 0) return;
  all.few = few;
  all.more = more;
  all.seen = seen;
}

// A chain of multiplications, of 3 cycles each on all current cores.
double seconds_a_cycle() {
  constexpr int kLinks = 1 << 12;
  double least = 1;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    uint64_t x = 3;
    for (int i = 0; i < kLinks; ++i) {
      x *= x;
      asm volatile("" : "+r"(x));
    }
    least = std::min(least, seconds_since(start));
  }
  return least / (3 * kLinks);
}

}  // namespace

std::optional<Meeting> measure_meeting(Launcher launch) {
  const auto all = std::make_unique<Steps>();
  launch(2, work, all.get());
  if (all->more >= kDisturbed) return std::nullopt;
  const double cycle = seconds_a_cycle();
  const double line = std::max(0.0, (all->more - all->few) / (kMore - kFew));
  const double barrier = all->few - kFew * line;
  return Meeting{barrier / cycle, line / cycle};
}

}  // namespace rnn_ext
