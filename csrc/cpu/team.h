// The threads of one call: how they are launched, and how they meet between time steps.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnn_ext {

// Runs body(worker, workers, context) once for every worker < workers, all at the same time, and
// returns when all have. `workers` may come out lower than asked for, down to 1 (nested parallelism, a
// thread limit). The kernels take their threads from whoever calls: PyTorch's own pool (op.cpp), so that
// no second pool competes with it for the cores, or std::thread in the native tests.
using Body = void (*)(int worker, int workers, void* context);
using Launcher = void (*)(int workers, Body body, void* context);

// One counter a worker, each in a cache line of its own, so that arriving is a plain store and no line
// is written by two cores. 128: Intel's adjacent-line prefetcher and Arm's larger lines.
struct alignas(128) Arrivals {
  std::atomic<int64_t> count{0};
  // Of a group's first member only: who takes the whole group's work over, as 1 + member + kMembers * epoch.
  std::atomic<int64_t> takeover{0};
  static constexpr int64_t kMembers = 1 << 16;
};

inline void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A barrier for the members [first, first + size) of a call's workers.
//
// Memory order: the release store below publishes all that this worker wrote in the step; the acquire
// load that sees it makes those writes visible here. A worker is never more than one step ahead, which
// is why two state buffers suffice (recurrence.inl).
//
// Where other processes keep the cores busy, a member loses its core for a time slice, thousands of short steps long,
// and a barrier a step would cost a slice a step. So whoever has waited for too long proposes to go on alone; at the
// next barrier all see that, and the others retire. The bits of the result do not depend on who computes.
class StepBarrier {
 public:
  // Of members that will meet so many times.
  StepBarrier(Arrivals* arrivals, int first, int size, int64_t steps = 0)
      : arrivals_(arrivals + first), size_(size), steps_(steps) {
    if (size > 1) begin_ = Clock::now();  // a small call on one thread does without
  }

  // True if it is time to go on alone: what has been lost to members who came late, having probably lost their cores,
  // is more than what their help with the remaining steps is worth. So at most twice is lost of what could not have
  // been avoided, and a single interruption does not cost a long call all of its threads.
  bool arrive_and_wait(int member) {
    const int64_t mine = ++epoch_;
    arrivals_[member].count.store(mine, std::memory_order_release);
    bool yielded = false;
    Clock::time_point since;
    for (int other = 0; other < size_; ++other) {
      for (int spins = 0; arrivals_[other].count.load(std::memory_order_acquire) < mine; ++spins) {
        if (spins < kSpins) {
          cpu_relax();
        } else {
          if (!yielded) since = Clock::now();
          yielded = true;
          std::this_thread::yield();
        }
      }
    }
    if (!yielded) return false;
    const Clock::time_point now = Clock::now();
    const Clock::duration waited = now - since, step = (since - begin_ - lost_) / mine;
    if (waited < std::max<Clock::duration>(kLate, step)) return false;
    lost_ += waited;
    return lost_ > (steps_ - mine) * step;
  }

  void propose_takeover(int member) {
    int64_t none = 0;
    arrivals_[0].takeover.compare_exchange_strong(none, 1 + member + Arrivals::kMembers * epoch_);
  }

  // Who has taken over, -1 if nobody. A proposal counts from the barrier after it: only then have all seen it.
  int takeover() const {
    const int64_t proposal = arrivals_[0].takeover.load(std::memory_order_relaxed);
    if (proposal == 0 || proposal / Arrivals::kMembers >= epoch_) return -1;
    return static_cast<int>(proposal % Arrivals::kMembers) - 1;
  }

 private:
  using Clock = std::chrono::steady_clock;

  // A pause is 40 to 140 cycles: about 10 us of spinning, which covers most steps' imbalance; then whoever needs the
  // core may have it.
  static constexpr int kSpins = 256;
  // Members of one step differ by tens of microseconds where W streams from a shared cache (H = 1024: a step is 30
  // to 100 us); a core that is lost is gone for a time slice, a millisecond at the least.
  static constexpr std::chrono::microseconds kLate{300};
  Arrivals* arrivals_;
  int size_;
  int64_t steps_;
  Clock::time_point begin_;
  Clock::duration lost_{0};
  int64_t epoch_ = 0;
};

}  // namespace rnn_ext
