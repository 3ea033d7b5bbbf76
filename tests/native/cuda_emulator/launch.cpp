// A launch: which blocks exist at the same time, whose turn it is, and what is said when nobody's can be.
#include <algorithm>
#include <map>
#include <thread>

#include "cuda_emulator/state.h"

namespace cuda_emulator {

namespace {

// ThreadSanitizer of GCC 12 knows 8,192 threads at most; some are the program's own.
constexpr size_t kMostTsanFibers = 8128;

std::string describe(uint3 p, dim3 size) {
  std::string text = std::to_string(p.x);
  if (size.y > 1 || size.z > 1) text += "," + std::to_string(p.y);
  if (size.z > 1) text += "," + std::to_string(p.z);
  return text;
}

}  // namespace

std::string Schedule::describe() const {
  static const char* const names[] = {"forward", "reversed", "run ahead", "left back", "random"};
  return std::string(names[static_cast<int>(order)]) + ", seed " + std::to_string(seed);
}

Schedule& schedule() {
  static Schedule current;
  return current;
}

std::vector<Schedule> all_schedules(int seeds) {
  std::vector<Schedule> all = {{Schedule::Order::forward}, {Schedule::Order::reversed}};
  for (auto order : {Schedule::Order::run_ahead, Schedule::Order::left_back, Schedule::Order::random})
    for (int seed = 0; seed < seeds; ++seed) all.push_back({order, static_cast<uint64_t>(seed)});
  return all;
}

std::string describe(Place place) {
  // The last of the path says it.
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

std::string describe(const Fiber& fiber) {
  return fiber.block->name() + ", thread " + describe(fiber.thread, fiber.block->launch.block);
}

std::string Block::name() const { return "block " + describe(position, launch.grid); }

void Launch::set_fault(Fault::Kind kind, const std::string& what) {
  if (!fault) fault.emplace(kind, what + "\nschedule: " + schedule.describe());
}

// ---- turns ----

bool Launch::await_turn(Block& block) {
  std::unique_lock<std::mutex> lock(mutex_);
  block.turn.wait(lock, [&] { return turn_ == &block || over_; });
  return !over_;
}

bool Launch::pass_turn(Block& from) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (over_) return false;
    Block* next = fault ? nullptr : choose();
    if (next == &from) return true;
    turn_ = next;
    if (next) {
      next->turn.notify_one();
    } else {
      over_ = true;
      for (Block* block : resident) block->turn.notify_one();
    }
  }
  return await_turn(from);
}

Block* Launch::choose() {
  const size_t count = resident.size();
  const bool random_order = schedule.order == Schedule::Order::random;
  const size_t from = random_order ? random.next() % count : 0;
  auto first = [&](auto condition) -> Block* {
    for (size_t n = 0; n < count; ++n)
      if (condition(*resident[(from + n) % count])) return resident[(from + n) % count];
    return nullptr;
  };
  auto can_run = [](const Block& block) { return block.has_ready() || block.may_stop_spinning(); };
  if (schedule.order == Schedule::Order::run_ahead && can_run(*resident[0])) return resident[0];
  // Who waits for flags is looked after when nothing else is left, and then first where all have come: else the turn
  // would go around at every flag, blocks times blocks a step.
  if (!random_order) {
    if (Block* block = first([](const Block& block) { return block.has_ready(); })) return block;
    if (Block* block = first([](const Block& block) { return block.all_may_stop_spinning(); })) return block;
  }
  for (;;) {
    if (Block* block = first(can_run)) return block;
    if (!first([](const Block& block) { return !block.done; })) return nullptr;
    if (!schedule.impatient || !expire_spinners()) break;
  }
  set_fault(Fault::Kind::deadlock, "deadlock: no thread can go on\n" + describe_waits());
  return nullptr;
}

bool Launch::expire_spinners() {
  bool any = false;
  for (Block* block : resident)
    for (Fiber* fiber : block->spinners) any = fiber->expired = true;
  return any;
}

std::string Launch::describe_waits() const {
  // Threads that wait in the same line make one line here.
  std::string text;
  size_t waiting_blocks = 0;
  // Enough to see who waits for whom; what follows is usually more of the same.
  constexpr size_t kMostBlocks = 8;
  for (const Block* block : resident) {
    if (block->done || ++waiting_blocks > kMostBlocks) continue;
    std::map<std::string, std::pair<std::string, unsigned>> threads_at;
    unsigned exited = 0;
    for (const Fiber& fiber : block->fibers) {
      if (fiber.state == Fiber::State::exited) {
        ++exited;
        continue;
      }
      std::string where = std::string(fiber.operation) + " at " + describe(fiber.place);
      if (fiber.state == Fiber::State::spinning)
        where += " for epoch " + std::to_string(fiber.epoch) + ", flag is " + std::to_string(*fiber.flag);
      auto& [threads, count] = threads_at[where];
      // Eight are enough to recognise a pattern.
      if (++count <= 8) threads += (count > 1 ? " " : "") + describe(fiber.thread, this->block);
    }
    for (const auto& [where, threads] : threads_at)
      text += "  " + block->name() + ": " + std::to_string(threads.second) + " threads (" + threads.first +
              (threads.second > 8 ? " ..." : "") + ") wait in " + where + "\n";
    if (exited) text += "  " + block->name() + ": " + std::to_string(exited) + " threads have ended\n";
  }
  if (waiting_blocks > kMostBlocks)
    text += "  and " + std::to_string(waiting_blocks - kMostBlocks) + " more blocks wait\n";
  const size_t absent = std::count_if(blocks.begin(), blocks.end(), [](const auto& block) { return !block->started; });
  if (absent)
    text += "  " + std::to_string(absent) +
            " blocks have not started: without a cooperative launch, blocks need not exist at the same time\n";
  return text;
}

// ---- the whole ----

void Launch::create_blocks() {
  const unsigned count = grid.x * grid.y * grid.z;
  const dim3 in_clusters(grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z);
  for (unsigned i = 0; i < in_clusters.x * in_clusters.y * in_clusters.z; ++i)
    clusters.push_back(std::make_unique<Cluster>());
  for (unsigned i = 0; i < count; ++i) {
    blocks.push_back(std::make_unique<Block>(*this, i));
    Block& block = *blocks.back();
    const uint3 p = block.position;
    block.cluster =
        clusters[p.x / cluster.x + in_clusters.x * (p.y / cluster.y + in_clusters.y * (p.z / cluster.z))].get();
    block.cluster_rank = static_cast<uint32_t>(block.cluster->blocks.size());
    block.cluster->blocks.push_back(&block);
    block.cluster->barrier.waiting.reserve(block.cluster->barrier.waiting.capacity() + block.live);
  }
}

void Launch::run_resident() {
  turn_ = choose();
  over_ = false;
  std::vector<std::thread> threads;
  for (Block* block : resident) threads.emplace_back([block] { block->run(); });
  for (std::thread& thread : threads) thread.join();
  for (Block* block : resident) block->release();
}

void Launch::run() {
  random = Random(schedule.seed);
  const size_t fibers = size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z;
  if (kTsan && fibers > kMostTsanFibers)
    throw Fault(Fault::Kind::misuse, std::to_string(fibers) + " threads are more than ThreadSanitizer can tell apart");
  create_blocks();

  // Clusters one after the other, or all at once.
  std::vector<std::vector<Block*>> groups(cooperative ? 1 : clusters.size());
  for (size_t i = 0; i < clusters.size(); ++i) {
    auto& group = groups[cooperative ? 0 : rank_of(schedule, static_cast<unsigned>(i), groups.size())];
    group.insert(group.end(), clusters[i]->blocks.begin(), clusters[i]->blocks.end());
  }
  if (schedule.order == Schedule::Order::random)
    for (size_t i = groups.size(); i > 1; --i) std::swap(groups[i - 1], groups[random.next() % i]);
  for (const auto& group : groups) {
    resident.assign(group.size(), nullptr);
    for (size_t i = 0; i < group.size(); ++i)
      resident[rank_of(schedule, static_cast<unsigned>(i), static_cast<unsigned>(group.size()))] = group[i];
    run_resident();
    if (fault) break;
  }

  for (auto& block : blocks) {
    tsan_acquire(&block->end_sync);
    tsan_destroy(block->undertaker_tsan);
    for (Fiber& fiber : block->fibers) tsan_destroy(fiber.tsan);
  }
  if (fault) throw *fault;
}

}  // namespace cuda_emulator
