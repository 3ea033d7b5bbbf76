// PyTorch's threads: how a call's workers come from its pool, and what they cost each other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "planner.h"
#include "team.h"

namespace rnn_ext::cpu {

int64_t now_ms();

// Whether calls whose workers meet after each step (team.h) have lately lost a core to other processes. Such a call
// costs some time slices, tens of milliseconds where it gets bad; after each the next try waits twice as long, so
// that a crowded machine is probed ever more rarely, and a single interruption is soon forgotten.
class Crowd {
 public:
  bool here() const { return now_ms() < until_.load(std::memory_order_relaxed); }
  void note(bool lost_a_core) {
    const int64_t wait = lost_a_core ? std::min<int64_t>(2 * wait_.load(std::memory_order_relaxed), 2000) : kFirstWait;
    wait_.store(wait, std::memory_order_relaxed);
    if (lost_a_core) until_.store(now_ms() + wait, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kFirstWait = 4;
  std::atomic<int64_t> until_{0}, wait_{kFirstWait};
};
extern Crowd crowd;

// PyTorch's thread pool as a Launcher.
void launch_on_torch_pool(int workers, Body body, void* context);

// This machine as the planner is to see it for such a call: with what its threads cost each other, which the first call
// that depends on it measures.
Machine machine_for(const Shape& shape, const Tiling& tiling, int threads);

}  // namespace rnn_ext::cpu
