// The emulator's own state: a launch, its blocks (each an operating-system thread) and their threads (each a fiber).
//
// One block runs at a time, the one whose turn it is, and in it one fiber: so nothing here needs a lock but the turn
// itself, every run can be repeated, and a standstill is seen at once. ThreadSanitizer sees each fiber as a thread of
// its own, and of what happens here only the calls tsan_acquire and tsan_release.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <ucontext.h>
#include <vector>

#include "cuda_emulator/emulator.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/sanitizers.h"

namespace cuda_emulator {

struct Block;
struct Launch;

// SplitMix64: a fixed sequence on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  bool once_in(unsigned n) { return next() % n == 0; }

 private:
  uint64_t state_;
};

// Who comes first among `count`: the order of a schedule as a permutation.
unsigned rank_of(const Schedule& schedule, unsigned index, unsigned count);

// The fibers that could go on, by rank.
class ReadySet {
 public:
  void resize(unsigned count) { words_.assign((count + 63) / 64, 0); }
  void insert(unsigned rank) { words_[rank / 64] |= uint64_t{1} << rank % 64; }
  // The first at or after `from`, cyclically, taken out; -1 if there is none.
  int take(unsigned from);
  bool empty() const;

 private:
  std::vector<uint64_t> words_;
};

// What a lane brings to an operation of its warp, and takes from it. On the lane's stack.
struct Exchange {
  const char* operation;
  Place place;
  unsigned mask;
  bool synchronises = false;
  uint64_t value = 0;  // a shuffle's or vote's, in and out
  int operand = 0, width = 0;
  Shuffle how = Shuffle::index;
  Format format = Format::half;
  float* d = nullptr;
  const uint32_t *a = nullptr, *b = nullptr;
  uint32_t* registers = nullptr;
  char* sync = nullptr;  // which of the warp's synchronisation points this is
};

using JumpBuffer = void* [5];  // GCC's, for __builtin_setjmp

struct Fiber {
  enum class State : uint8_t { ready, waiting, spinning, exited };
  Block* block = nullptr;
  unsigned index = 0, rank = 0;
  uint3 thread = {};
  State state = State::ready;
  const char* operation = "";  // what it waits in
  Place place = {"", 0};

  const uint32_t* flag = nullptr;  // spinning: what for
  uint32_t epoch = 0;
  bool expired = false;

  Exchange* exchange = nullptr;  // waiting for the warp

  uint32_t arrivals[16] = {};  // at each barrier: 1 + the phase of the latest

  bool arrived_at_cluster = false;
  uint32_t cluster_phase = 0;

  std::vector<Copy> copies;  // in flight, oldest first
  size_t first_copy = 0;
  uint64_t copy_group = 0;

  ucontext_t context;  // of its beginning
  bool begun = false;
  JumpBuffer resume_at;
  char* stack = nullptr;
  void* tsan = nullptr;
  void* fake_stack = nullptr;

  bool may_stop_spinning() const;
  int lane() const { return static_cast<int>(index % 32); }
};

struct Barrier {
  int arrived = 0, expected = 0;
  uint32_t phase = 0;
  Place place = {"", 0};
  std::vector<Fiber*> waiting;
  char sync[2];  // of even and odd phases: nobody can be two ahead
};

// Also of one block alone, when the launch has no clusters.
struct Cluster {
  std::vector<Block*> blocks;
  Barrier barrier;
};

struct Block {
  Block(Launch& launch, unsigned index);
  ~Block();
  void release();  // the shared memory, when nobody can ask for it any more
  void run();      // on its own operating-system thread
  void wake(Fiber& fiber);
  bool has_ready() const;          // a fiber that could go on at once
  bool may_stop_spinning() const;  // or one whose flag has come
  bool all_may_stop_spinning() const;
  void wake_spinners();
  void check_red_zones(const char* when, Place place);
  std::string name() const;

  Launch& launch;
  unsigned index;
  uint3 position = {};
  Cluster* cluster = nullptr;
  uint32_t cluster_rank = 0;
  bool started = false, done = false;
  unsigned live = 0;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> by_rank;
  ReadySet ready;
  std::vector<Fiber*> spinners;
  Barrier barriers[16];                 // 0 is __syncthreads
  int votes[2] = {};                    // of __syncthreads_or and its like, in even and odd phases
  std::vector<uint32_t> warp_meetings;  // of each warp, so far
  std::vector<char> warp_sync;          // kWarpSyncs a warp
  char start_sync, end_sync;

  char* arena = nullptr;  // red zone, dynamic shared memory, red zone
  size_t arena_bytes = 0;
  char* shared = nullptr;
  char* stacks = nullptr;
  char *thread_low = nullptr, *thread_high = nullptr;  // the OS thread's stack, where static shared memory lies
  char* thread_pointer = nullptr;

  JumpBuffer scheduler;
  void* scheduler_tsan = nullptr;
  void* undertaker_tsan = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::condition_variable turn;

 private:
  void start();
  void finish();
  void resume(Fiber& fiber);
};

struct Launch {
  dim3 grid, block, cluster;
  size_t shared_bytes = 0;
  bool cooperative = false;
  void (*call)(void*) = nullptr;
  void* arguments = nullptr;
  Schedule schedule;
  Random random{0};
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Block*> resident;  // those that exist at the same time, by rank
  std::optional<Fault> fault;
  char fence_sync = 0;

  void run();  // throws the fault
  void set_fault(Fault::Kind kind, const std::string& what);

  // Blocks take turns. Both return false when all is over instead.
  bool await_turn(Block& block);
  bool pass_turn(Block& from);

 private:
  void create_blocks();
  void run_resident();
  Block* choose();
  bool expire_spinners();
  std::string describe_waits() const;

  std::mutex mutex_;
  Block* turn_ = nullptr;
  bool over_ = false;
};

// How many synchronisation points of one warp are told apart at a time.
constexpr unsigned kWarpSyncs = 64;

extern __thread Fiber* current;

// Leaves the current fiber, whose state says when it goes on.
void suspend();
void wait_in(const char* operation, Place place, Fiber::State state);
[[noreturn]] void fail(Fault::Kind kind, const std::string& what);
std::string describe(Place place);
std::string describe(const Fiber& fiber);
// What a thread's end means for those that wait for it.
void leave_barriers(Fiber& fiber);
void leave_warp(Fiber& fiber);
void leave_copies(Fiber& fiber);
void complete(Barrier& barrier);

}  // namespace cuda_emulator
