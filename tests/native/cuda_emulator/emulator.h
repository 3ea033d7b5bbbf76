// What a test says to the emulator of CUDA's execution model, and what the emulator says to a test. README.md beside
// this file says what it can and cannot show.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_emulator {

// Which of the threads that could go on does, up to its next barrier, shuffle or wait. Reproducible: blocks take turns.
struct Schedule {
  enum class Order {
    forward,    // the lowest thread and block first
    reversed,   // the highest first
    run_ahead,  // one thread and block, chosen by `seed`, whenever they can; the others forward
    left_back,  // one thread and block, chosen by `seed`, only when no other can
    random,     // any, by `seed`; may also change at atomics, fences and epoch flags
  };
  Order order = Order::forward;
  uint64_t seed = 0;
  // What becomes of threads that wait in spin_until for what cannot come any more: an end of their patience, that is,
  // false, instead of a Fault.
  bool impatient = false;

  std::string describe() const;
};

// The schedule of the launches to come.
Schedule& schedule();

// Every order once, the seeded ones with `seeds` seeds each.
std::vector<Schedule> all_schedules(int seeds);

// A mistake of a kernel that would hang or corrupt a GPU, or that CUDA leaves undefined. Thrown by the launch.
struct Fault : std::runtime_error {
  enum class Kind {
    deadlock,    // nothing can go on
    divergence,  // threads meet at different places, or one is missing that was named
    memory,      // written beyond the dynamic shared memory
    misuse,      // alignment, architecture, limits, copies left behind
    stopped,     // the kernel itself gave up
  };
  Fault(Kind kind, const std::string& what) : std::runtime_error(what), kind(kind) {}
  Kind kind;
};

// What the host code is told of the device. Starts as an H100: sm_90, 132 multiprocessors, 227 KiB of shared memory a
// block.
struct Device {
  int major = 9;
  int minor = 0;
  int multiprocessors = 132;
  int threads_per_multiprocessor = 2048;
  int blocks_per_multiprocessor = 32;
  int registers_per_multiprocessor = 65536;
  int shared_bytes_per_multiprocessor = 233472;
  int shared_bytes_per_block = 49152;          // without cudaFuncSetAttribute
  int shared_bytes_per_block_optin = 232448;   // with it
  int reserved_shared_bytes_per_block = 1024;  // the system's own
  int cluster_blocks = 8;                      // 16 with cudaFuncAttributeNonPortableClusterSizeAllowed
  int l2_bytes = 50 << 20;
  int clock_khz = 1980000;
  // Of every kernel: the compiler that knows better is not here.
  int registers_per_thread = 32;
};
Device& device();

}  // namespace cuda_emulator
