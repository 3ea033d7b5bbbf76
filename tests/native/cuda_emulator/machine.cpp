// Launches, blocks and fibers: who runs when.
#include <algorithm>
#include <cstring>
#include <pthread.h>
#include <cstdlib>
#include <sys/mman.h>

#include "cuda_emulator/state.h"

__thread uint3 threadIdx, blockIdx;
__thread uint3 blockDim, gridDim;

namespace cuda_emulator {

__thread Fiber* current;

namespace {

// Red zones: several cache lines, so that a whole vector store past the end still falls into them.
constexpr size_t kRedZone = 512;
constexpr size_t kSharedAlignment = 128;
// A quiet NaN of every floating-point format, and an unlikely integer.
constexpr int kUndefined = 0xff;
constexpr unsigned char kCanary = 0xfd;
constexpr size_t kPage = 4096;
// Sanitizers' frames are several times larger.
constexpr size_t kStack = (kAsan || kTsan ? 64 : 16) * kPage;
// Each guard page costs two memory mappings, of which Linux allows 65,530.
constexpr size_t kMostGuardedStacks = 16384;

char* map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  unpoison(p, bytes);
  return static_cast<char*>(p);
}

// Fibers begin in a context of their own, and from then on jump: a swapcontext() makes two system calls, and
// AddressSanitizer's warns that it does not know what is done here. Out of line, since what jumps may not be where it
// jumps to.
__attribute__((noinline, noreturn, no_sanitize("address"))) void jump(JumpBuffer& to) { __builtin_longjmp(to, 1); }

// Unwinds a fiber that has erred; the others stay where they are, and own nothing there.
struct Abandoned {};

void fiber_main() {
  Fiber& self = *current;
  Block& block = *self.block;
  finish_switch(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  tsan_acquire(&block.start_sync);
  try {
    block.launch.call(block.launch.arguments);
    leave_copies(self);
    leave_warp(self);
    self.state = Fiber::State::exited;
    --block.live;
    leave_barriers(self);
  } catch (const Abandoned&) {
  }
  tsan_release(&block.end_sync);
  start_switch(nullptr, block.scheduler_stack, block.scheduler_stack_bytes);
  tsan_switch(block.scheduler_tsan);
  jump(block.scheduler);
}

}  // namespace

unsigned rank_of(const Schedule& schedule, unsigned index, unsigned count) {
  const unsigned chosen = static_cast<unsigned>(Random(schedule.seed).next() % count);
  switch (schedule.order) {
    case Schedule::Order::reversed: return count - 1 - index;
    case Schedule::Order::run_ahead: return index == chosen ? 0 : index + (index < chosen);
    case Schedule::Order::left_back: return index == chosen ? count - 1 : index - (index > chosen);
    default: return index;
  }
}

int ReadySet::take(unsigned from) {
  const unsigned words = static_cast<unsigned>(words_.size());
  for (unsigned n = 0; n <= words; ++n) {
    const unsigned i = (from / 64 + n) % words;
    uint64_t bits = words_[i];
    if (n == 0) bits &= ~uint64_t{0} << from % 64;
    if (!bits) continue;
    const int bit = __builtin_ctzll(bits);
    words_[i] &= ~(uint64_t{1} << bit);
    return static_cast<int>(i * 64) + bit;
  }
  return -1;
}

bool ReadySet::empty() const {
  return std::all_of(words_.begin(), words_.end(), [](uint64_t word) { return word == 0; });
}

// ---- a fiber leaves, or errs ----

void suspend() {
  Fiber& self = *current;
  Block& block = *self.block;
  start_switch(&self.fake_stack, block.scheduler_stack, block.scheduler_stack_bytes);
  tsan_switch(block.scheduler_tsan);
  if (__builtin_setjmp(self.resume_at) == 0) jump(block.scheduler);
  Fiber& again = *current;  // which is the same; registers are not
  finish_switch(again.fake_stack, &again.block->scheduler_stack, &again.block->scheduler_stack_bytes);
}

void wait_in(const char* operation, Place place, Fiber::State state) {
  Fiber& self = *current;
  self.operation = operation;
  self.place = place;
  self.state = state;
  suspend();
}

void fail(Fault::Kind kind, const std::string& what) {
  current->block->launch.set_fault(kind, what);
  throw Abandoned{};
}

void trap(Place place) { fail(Fault::Kind::misuse, describe(*current) + " trapped at " + describe(place)); }

void stop(const char* why, Place place) {
  fail(Fault::Kind::stopped, std::string(why) + "; " + describe(*current) + " at " + describe(place));
}

void yield_point() {
  Launch& launch = current->block->launch;
  if (launch.schedule.order != Schedule::Order::random || !launch.random.once_in(4)) return;
  current->block->wake(*current);
  suspend();
}

// ---- a block ----

Block::Block(Launch& launch, unsigned index) : launch(launch), index(index) {
  position = {index % launch.grid.x, index / launch.grid.x % launch.grid.y, index / launch.grid.x / launch.grid.y};
  live = launch.block.x * launch.block.y * launch.block.z;
  fibers.resize(live);
  ready.resize(live);
  by_rank.resize(live);
  // Here, since fibers, unordered as they are, may not grow what they share.
  spinners.reserve(live);
  for (Barrier& barrier : barriers) barrier.waiting.reserve(live);
  warp_meetings.resize((live + 31) / 32);
  warp_sync.resize((live + 31) / 32 * kWarpSyncs);
  for (unsigned i = 0; i < live; ++i) {
    Fiber& fiber = fibers[i];
    fiber.block = this;
    fiber.index = i;
    fiber.rank = rank_of(launch.schedule, i, live);
    fiber.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
    // Here, on the launching thread: what it has done is ordered before every fiber, and no block before another,
    // even where they run one after the other.
    fiber.tsan = tsan_create();
    by_rank[fiber.rank] = &fiber;
    ready.insert(fiber.rank);
  }
  undertaker_tsan = tsan_create();
}

void Block::wake(Fiber& fiber) {
  fiber.state = Fiber::State::ready;
  ready.insert(fiber.rank);
}

bool Fiber::may_stop_spinning() const {
  return expired || static_cast<int32_t>(__atomic_load_n(flag, __ATOMIC_RELAXED) - epoch) >= 0;
}

bool Block::has_ready() const { return !done && (!started || !ready.empty()); }

bool Block::may_stop_spinning() const {
  return std::any_of(spinners.begin(), spinners.end(), [](const Fiber* fiber) { return fiber->may_stop_spinning(); });
}

bool Block::all_may_stop_spinning() const {
  return !spinners.empty() &&
         std::all_of(spinners.begin(), spinners.end(), [](const Fiber* fiber) { return fiber->may_stop_spinning(); });
}

void Block::wake_spinners() {
  for (size_t i = 0; i < spinners.size();) {
    Fiber* fiber = spinners[i];
    if (fiber->may_stop_spinning()) {
      spinners[i] = spinners.back();
      spinners.pop_back();
      wake(*fiber);
    } else {
      ++i;
    }
  }
}

void Block::start() {
  started = true;
  // Mapped rather than allocated: ThreadSanitizer would take a free() for an access.
  const size_t data = (launch.shared_bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  arena_bytes = kRedZone + data + kRedZone;
  arena = map(arena_bytes);
  shared = arena + kRedZone;
  std::memset(arena, kCanary, arena_bytes);
  std::memset(shared, kUndefined, launch.shared_bytes);
  poison(arena, kRedZone);
  poison(shared + launch.shared_bytes, data - launch.shared_bytes + kRedZone);

  pthread_attr_t attributes;
  void* low;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &bytes);
  pthread_attr_destroy(&attributes);
  thread_low = static_cast<char*>(low);
  thread_high = thread_low + bytes;
  thread_pointer = static_cast<char*>(__builtin_thread_pointer());

  const size_t count = fibers.size();
  const bool guarded = launch.resident.size() * count <= kMostGuardedStacks;
  stacks = map(count * kStack);
  for (Fiber& fiber : fibers) {
    fiber.stack = stacks + fiber.index * kStack;
    if (guarded) mprotect(fiber.stack, kPage, PROT_NONE);
    getcontext(&fiber.context);
    fiber.context.uc_link = nullptr;
    fiber.context.uc_stack.ss_sp = fiber.stack + kPage;
    fiber.context.uc_stack.ss_size = kStack - kPage;
    makecontext(&fiber.context, fiber_main, 0);
  }
  scheduler_tsan = tsan_current();
  blockIdx = position;
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  tsan_release(&start_sync);
}

void Block::resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
  start_switch(&scheduler_fake_stack, fiber.stack + kPage, kStack - kPage);
  tsan_switch(fiber.tsan);
  if (__builtin_setjmp(scheduler) == 0) {
    if (fiber.begun) jump(fiber.resume_at);
    fiber.begun = true;
    setcontext(&fiber.context);
  }
  finish_switch(current->block->scheduler_fake_stack, nullptr, nullptr);
}

void Block::finish() {
  if (!launch.fault) check_red_zones("at its end", {"", 0});
  if (launch.fault) {
    // What the abandoned fibers have done is over for the host too.
    for (Fiber& fiber : fibers) {
      if (fiber.state == Fiber::State::exited) continue;
      tsan_switch(fiber.tsan);
      tsan_release(&end_sync);
    }
  } else {
    // A block of the cluster that reads this from now on has come too late. In the name of a fiber of its own, so that
    // nothing orders this block before one that runs after it.
    tsan_switch(undertaker_tsan);
    tsan_acquire(&end_sync);
    std::memset(shared, kUndefined, launch.shared_bytes);
    poison(shared, launch.shared_bytes);
  }
  tsan_switch(scheduler_tsan);
  munmap(stacks, fibers.size() * kStack);
  done = true;
}

Block::~Block() { release(); }

void Block::release() {
  if (arena) munmap(arena, arena_bytes);
  arena = nullptr;
}

void Block::check_red_zones(const char* when, Place place) {
  if (kAsan) return;  // which has named the access
  const char* const ends[2] = {arena, shared + launch.shared_bytes};
  const size_t sizes[2] = {kRedZone, static_cast<size_t>(arena + arena_bytes - ends[1])};
  for (int side = 0; side < 2; ++side) {
    for (size_t i = 0; i < sizes[side]; ++i) {
      if (static_cast<unsigned char>(ends[side][i]) == kCanary) continue;
      launch.set_fault(Fault::Kind::memory, name() + " wrote outside of its dynamic shared memory, at byte " +
                                                std::to_string(ends[side] + i - shared) + " of " +
                                                std::to_string(launch.shared_bytes) + "; seen " + when +
                                                (place.line ? " " + describe(place) : ""));
      return;
    }
  }
}

void Block::run() {
  if (!launch.await_turn(*this)) return;
  start();
  const bool random = launch.schedule.order == Schedule::Order::random;
  while (live > 0) {
    if (!spinners.empty()) wake_spinners();
    const int rank = ready.take(random ? static_cast<unsigned>(launch.random.next() % fibers.size()) : 0);
    if (rank >= 0) resume(*by_rank[rank]);
    if (launch.fault) break;
    // Seldom enough that a random schedule is not all handing over, often enough that no block gets far by itself.
    const bool hand_over = random && launch.random.once_in(8);
    if (live > 0 && (rank < 0 || hand_over) && !launch.pass_turn(*this)) break;
  }
  finish();
  launch.pass_turn(*this);
}

}  // namespace cuda_emulator
