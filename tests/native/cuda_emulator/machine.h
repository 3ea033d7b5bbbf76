// What running device code asks of the emulator: where a thread is, where it waits, what a warp does together.
// Implemented in machine.cpp and warp.cpp, which ThreadSanitizer does not instrument.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};

// Set at every switch of threads.
extern __thread uint3 threadIdx, blockIdx;
extern __thread uint3 blockDim, gridDim;

namespace cuda_emulator {

// A line of device code, for reports: as a default argument, the line of the call.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
inline bool operator==(Place a, Place b) { return a.line == b.line && __builtin_strcmp(a.file, b.file) == 0; }

// Where another thread may come first, in a random schedule.
void yield_point();
void fence(Place place);
[[noreturn]] void trap(Place place);
[[noreturn]] void stop(const char* why, Place place);

// Returns how many of the block's threads have voted so.
int sync_threads(bool vote, Place place);
void barrier(int id, int threads, bool wait, Place place);

// Waits for an epoch in *flag; false if it cannot come any more and the schedule is impatient. The caller then loads
// the flag, to see what was released with it.
bool await_epoch(const uint32_t* flag, uint32_t value, Place place);

// ---- a warp together ----

enum class Shuffle { index, up, down, exclusive_or };
void sync_warp(unsigned mask, Place place);
uint64_t shuffle_bits(Shuffle how, unsigned mask, uint64_t value, int operand, int width, Place place);
unsigned ballot(unsigned mask, bool predicate, Place place);

// One lane's part of a product of 16 x kDepth and kDepth x 8: registers as device.cuh lays them out.
enum class Format { half, bfloat16, tf32 };
void mma(Format format, float* d, const uint32_t* a, const uint32_t* b, Place place);

// `row` is what lies at this lane's address.
void ldmatrix(bool transposed, uint32_t* registers, const uint32_t* row, Place place);

// ---- copies that are in flight until they are waited for ----

// A copy of 4, 8 or 16 bytes; null stands for zeros. The caller has marked the target as undefined.
void copy_later(void* shared, const void* global, int bytes, Place place);
void commit_copies(Place place);
// The next copy of those that a wait for all but `pending` groups completes; false when there is none left.
struct Copy {
  void* shared;
  const void* global;
  int bytes;
  uint64_t group;
  Place place;
};
bool next_copy(int pending, Copy* copy);
// Addresses that an instruction needs in shared memory, aligned.
void check_shared(const void* p, int bytes, const char* operation, Place place);
void check_aligned(const void* p, int bytes, const char* operation, Place place);

// ---- shared memory and clusters ----

void* dynamic_shared_memory();
uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_arrive(Place place);
void cluster_wait(Place place);
void* cluster_address(void* shared, uint32_t rank, Place place);

// Faults if the device is older.
void need_architecture(int architecture, const char* operation, Place place);

}  // namespace cuda_emulator
