#include "threads.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>

namespace rnn_ext::cpu {

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// parallel_for cuts [0, workers) into equal chunks, one a thread, and all run at once; it makes fewer of them where it
// has fewer threads, and one inside a parallel region.
void launch_on_torch_pool(int workers, Body body, void* context) {
  if (workers == 1) return body(0, 1, context);
  torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    const int64_t chunk = thread == 0 ? end - begin : begin / thread;
    body(static_cast<int>(thread), static_cast<int>((workers + chunk - 1) / chunk), context);
  });
}

namespace {

// What two of PyTorch's threads cost each other, once that could be measured.
class Meetings {
 public:
  const Meeting* known() const { return known_.load(std::memory_order_acquire) ? &meeting_ : nullptr; }
  void measure() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || known() || now_ms() < next_try_) return;
    const std::optional<Meeting> measured = measure_meeting(launch_on_torch_pool);
    next_try_ = now_ms() + kBetweenTries;
    if (!measured) return;
    meeting_ = *measured;
    known_.store(true, std::memory_order_release);
  }

 private:
  // A try takes 5 ms where the cores are busy.
  static constexpr int64_t kBetweenTries = 1000;
  std::mutex mutex_;
  std::atomic<bool> known_{false};
  Meeting meeting_ = {};
  int64_t next_try_ = 0;
};
Meetings meetings;

}  // namespace

Machine machine_for(const Shape& shape, const Tiling& tiling, int threads) {
  Machine machine = this_machine();
  if (!meetings.known() && threads > 1 && meeting_matters(shape, tiling, machine, threads)) meetings.measure();
  if (meetings.known()) machine.meeting = *meetings.known();
  return machine;
}

}  // namespace rnn_ext::cpu
