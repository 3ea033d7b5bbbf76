// Where threads of a block, a cluster or the grid wait for one another, and copies that are waited for.
#include "cuda_emulator/state.h"

namespace cuda_emulator {

namespace {

// Arrives; returns with the phase still open if others are missing.
void arrive(Barrier& barrier) {
  tsan_release(&barrier.sync[barrier.phase & 1]);
  ++barrier.arrived;
}

}  // namespace

void complete(Barrier& barrier) {
  for (Fiber* fiber : barrier.waiting) fiber->block->wake(*fiber);
  barrier.waiting.clear();
  barrier.arrived = 0;
  ++barrier.phase;
}

// ---- the block ----

int sync_threads(bool vote, Place place) {
  Fiber& self = *current;
  Block& block = *self.block;
  Barrier& barrier = block.barriers[0];
  if (barrier.arrived > 0 && !(barrier.place == place))
    fail(Fault::Kind::divergence, "divergent barrier: " + describe(self) + " is in __syncthreads at " +
                                      describe(place) + " while " + describe(*barrier.waiting[0]) + " is in that at " +
                                      describe(barrier.place));
  barrier.place = place;
  const uint32_t phase = barrier.phase;
  // The next phase's votes begin only when this one is complete, so two counts are enough.
  if (barrier.arrived == 0) block.votes[phase & 1] = 0;
  block.votes[phase & 1] += vote;
  arrive(barrier);
  if (barrier.arrived == static_cast<int>(block.live)) {
    block.check_red_zones("in __syncthreads at", place);
    complete(barrier);
  } else {
    barrier.waiting.push_back(&self);
    wait_in("__syncthreads", place, Fiber::State::waiting);
  }
  tsan_acquire(&barrier.sync[phase & 1]);
  return block.votes[phase & 1];
}

void barrier(int id, int threads, bool wait, Place place) {
  Fiber& self = *current;
  auto who = [&] { return describe(self) + " at " + describe(place); };
  if (id < 1 || id > 15) fail(Fault::Kind::misuse, who() + ": barrier " + std::to_string(id) + " is none of 1 to 15");
  if (threads <= 0 || threads % 32 != 0)
    fail(Fault::Kind::misuse, who() + ": a barrier of " + std::to_string(threads) + " threads is not of whole warps");
  Barrier& barrier = self.block->barriers[id];
  if (barrier.arrived > 0 && barrier.expected != threads)
    fail(Fault::Kind::divergence, who() + " takes barrier " + std::to_string(id) + " for one of " +
                                      std::to_string(threads) + " threads, others, at " + describe(barrier.place) +
                                      ", of " + std::to_string(barrier.expected));
  // It would stand for a thread that has not come.
  if (self.arrivals[id] == barrier.phase + 1)
    fail(Fault::Kind::divergence, who() + " arrives at barrier " + std::to_string(id) + " a second time");
  self.arrivals[id] = barrier.phase + 1;
  barrier.expected = threads;
  barrier.place = place;
  const uint32_t phase = barrier.phase;
  arrive(barrier);
  if (barrier.arrived == threads) {
    complete(barrier);
  } else if (wait) {
    barrier.waiting.push_back(&self);
    wait_in("barrier_sync", place, Fiber::State::waiting);
  }
  if (wait) tsan_acquire(&barrier.sync[phase & 1]);
}

void leave_barriers(Fiber& fiber) {
  Block& block = *fiber.block;
  Barrier& barrier = block.barriers[0];
  // __syncthreads is for those threads that have not ended.
  if (barrier.arrived > 0 && barrier.arrived == static_cast<int>(block.live)) complete(barrier);
  Barrier& cluster = block.cluster->barrier;
  int live = 0;
  for (const Block* member : block.cluster->blocks) live += static_cast<int>(member->live);
  if (cluster.arrived > 0 && cluster.arrived == live) complete(cluster);
}

// ---- the cluster ----

void cluster_arrive(Place place) {
  Fiber& self = *current;
  if (self.arrived_at_cluster)
    fail(Fault::Kind::divergence,
         describe(self) + " at " + describe(place) + " arrives at the cluster's barrier again without a wait between");
  Barrier& barrier = self.block->cluster->barrier;
  self.arrived_at_cluster = true;
  self.cluster_phase = barrier.phase;
  arrive(barrier);
  int live = 0;
  for (const Block* member : self.block->cluster->blocks) live += static_cast<int>(member->live);
  if (barrier.arrived == live) complete(barrier);
}

void cluster_wait(Place place) {
  Fiber& self = *current;
  if (!self.arrived_at_cluster)
    fail(Fault::Kind::divergence,
         describe(self) + " at " + describe(place) + " waits for the cluster's barrier without having arrived");
  Barrier& barrier = self.block->cluster->barrier;
  if (barrier.phase == self.cluster_phase) {
    barrier.waiting.push_back(&self);
    wait_in("cluster_wait", place, Fiber::State::waiting);
  }
  self.arrived_at_cluster = false;
  tsan_acquire(&barrier.sync[self.cluster_phase & 1]);
}

uint32_t cluster_rank() { return current->block->cluster_rank; }
uint32_t cluster_size() { return static_cast<uint32_t>(current->block->cluster->blocks.size()); }

void* cluster_address(void* shared, uint32_t rank, Place place) {
  Fiber& self = *current;
  Block& mine = *self.block;
  const std::string who = describe(self) + " at " + describe(place);
  if (rank >= cluster_size()) fail(Fault::Kind::misuse, who + ": no block " + std::to_string(rank) + " in the cluster");
  check_shared(shared, 1, "cluster_map", place);
  Block& other = *mine.cluster->blocks[rank];
  if (!other.started)
    fail(Fault::Kind::divergence,
         who + " maps shared memory of " + other.name() + ", which has not started: no cluster barrier before");
  if (other.done)
    fail(Fault::Kind::divergence,
         who + " maps shared memory of " + other.name() + ", which has ended: no cluster barrier before its end");
  char* p = static_cast<char*>(shared);
  if (p >= mine.shared && p < mine.shared + mine.launch.shared_bytes) return other.shared + (p - mine.shared);
  // Static shared memory: as far from the other thread's pointer as from this one's.
  return other.thread_pointer + (p - mine.thread_pointer);
}

// ---- the grid ----

void fence(Place) {
  // A fence comes after those before it: what a thread wrote before its fence is ordered before what another reads
  // after a later one.
  tsan_release(&current->block->launch.fence_sync);
  tsan_acquire(&current->block->launch.fence_sync);
  yield_point();
}

bool await_epoch(const uint32_t* flag, uint32_t value, Place place) {
  Fiber& self = *current;
  self.flag = flag;
  self.epoch = value;
  self.expired = false;
  if (!self.may_stop_spinning()) {
    self.block->spinners.push_back(&self);
    wait_in("spin_until", place, Fiber::State::spinning);
  }
  return !self.expired;
}

// ---- copies ----

void copy_later(void* shared, const void* global, int bytes, Place place) {
  Fiber& self = *current;
  self.copies.push_back({shared, global, bytes, self.copy_group, place});
}

void commit_copies(Place) { ++current->copy_group; }

bool next_copy(int pending, Copy* copy) {
  Fiber& self = *current;
  // Of groups 0 to copy_group - 1, all but the last `pending`; what is not committed yet is not waited for.
  if (self.first_copy < self.copies.size() && self.copies[self.first_copy].group + pending < self.copy_group) {
    *copy = self.copies[self.first_copy++];
    return true;
  }
  if (self.first_copy == self.copies.size()) {
    self.copies.clear();
    self.first_copy = 0;
  }
  return false;
}

void leave_copies(Fiber& fiber) {
  if (fiber.first_copy == fiber.copies.size()) return;
  const Copy& copy = fiber.copies[fiber.first_copy];
  fail(Fault::Kind::misuse,
       describe(fiber) + " ends with a copy that it never waited for, from cp_async at " + describe(copy.place));
}

void check_aligned(const void* p, int bytes, const char* operation, Place place) {
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) != 0)
    fail(Fault::Kind::misuse, describe(*current) + " at " + describe(place) + ": an address for " + operation +
                                  " is not a multiple of " + std::to_string(bytes));
}

void check_shared(const void* p, int bytes, const char* operation, Place place) {
  check_aligned(p, bytes, operation, place);
  const Block& block = *current->block;
  const char* address = static_cast<const char*>(p);
  const bool dynamic = address >= block.shared && address + bytes <= block.shared + block.launch.shared_bytes;
  if (!dynamic && (address < block.thread_low || address >= block.thread_high))
    fail(Fault::Kind::misuse, describe(*current) + " at " + describe(place) + ": an address for " + operation +
                                  " is not in this block's shared memory");
}

void* dynamic_shared_memory() { return current->block->shared; }

}  // namespace cuda_emulator
