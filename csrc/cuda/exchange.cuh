// How the new states of a step reach every thread that multiplies by them in the next: the variants' one difference.
//
// A team of blocks has the columns of a state between them; each block keeps all of it in its shared memory. An
// exchange has
//
//   kBuffers     of states in shared memory: two where a new state is written while an old one is read
//   begin()      after which what each thread wrote to shared memory is there for all, and nobody is missing
//   put(to, row, column, y)
//                some values of a row of the next states, of which `to` is the first in this block
//   pass(to)     after which all that was put, by all of the team, is in `to`
//
// and every block of a team calls begin and pass as often.
#pragma once

#include "cuda/device.cuh"

namespace rnn_ext::cuda {

// The team of a block, as a kernel's argument.
struct Team {
  int blocks;       // of a team, neighbours in the grid
  int rows;         // of the batch that it takes at a time
  void* workspace;  // of the whole launch, AcrossDevice's
};

// A few values of one row, stored as one.
template <class State, int kCount>
struct alignas(sizeof(State) * kCount) Values {
  State at[kCount];
};

// A team of one.
template <class State>
class WithinBlock {
 public:
  static constexpr int kBuffers = 2;
  static constexpr bool kClusters = false, kQueues = false;

  __device__ __forceinline__ WithinBlock(const Team&, int /*width*/, int /*depth*/, int stride) : stride_(stride) {}
  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ void begin() { __syncthreads(); }
  template <int kCount>
  __device__ __forceinline__ void put(State* to, int row, int column, const Values<State, kCount>& y) {
    *reinterpret_cast<Values<State, kCount>*>(to + row * stride_ + column) = y;
  }
  // One barrier a step: the next step writes to the other buffer.
  __device__ __forceinline__ void pass(State*, int /*rows*/) { __syncthreads(); }

 private:
  int stride_;
};

// A cluster (sm_90), whose blocks write to each other's shared memory. Its barrier orders that: what was put before
// arriving is seen after waiting, and whoever puts to a buffer has passed a barrier since the buffer was last read.
template <class State>
class WithinCluster {
 public:
  static constexpr int kBuffers = 2;
  static constexpr bool kClusters = true, kQueues = false;

  __device__ __forceinline__ WithinCluster(const Team& team, int /*width*/, int /*depth*/, int stride)
      : blocks_(team.blocks), stride_(stride) {}
  __device__ __forceinline__ int rank() const { return static_cast<int>(cluster_rank()); }
  __device__ __forceinline__ void begin() {
    cluster_arrive();
    cluster_wait();
  }
  template <int kCount>
  __device__ __forceinline__ void put(State* to, int row, int column, const Values<State, kCount>& y) {
    for (int block = 0; block < blocks_; ++block)
      *reinterpret_cast<Values<State, kCount>*>(cluster_map(to, static_cast<uint32_t>(block)) + row * stride_ +
                                                column) = y;
  }
  // After the last of these nobody writes to another block any more, so blocks may end.
  __device__ __forceinline__ void pass(State*, int /*rows*/) { begin(); }

 private:
  int blocks_, stride_;
};

// Blocks anywhere on the device, all there at the same time (a cooperative launch). States go through L2, in one of two
// buffers of the workspace in turn, and each block has a flag that says how many epochs, steps, it has put.
//
// Why it is right, in the terms of PTX's memory model: of every two accesses to a place of a buffer, of which one
// writes, one comes before the other in causality order. That order is made of program order, of barriers, and of
// stores with release that loads with acquire observe, and it is transitive: a barrier's part of it reaches as far as
// its block, a flag's as far as the device, and a chain of both as far as the flag.
//
// A flag orders because both its accesses are strong, of the same four bytes and of the scope .gpu, which has all of
// the launch in it. Only thread 0 of its block writes it, with release each time; so whoever waits for e and finds a
// later epoch has observed a release too, one that comes after e's in program order.
//
// (1) What is read was written. All threads of block a put their part of epoch e (ordinary stores) -> barrier -> thread
// 0 stores e to a's flag with release -> a thread of b loads it with acquire -> barrier -> all threads of b copy.
// (2) Nothing is overwritten too early: epoch e + 2 has the buffer of e. b's threads wait for their copies of e, which
// until then are as another thread's -> barrier -> they compute, put e + 1 -> barrier -> thread 0 stores e + 1 with
// release -> a's threads, one for each flag, load it with acquire -> barrier -> a puts e + 2.
// (3) Within b: the copies write the states that b's threads multiplied by before the first of these barriers, and the
// last comes before they do so again.
//
// No fence beside these: release and acquire are one each, and cp.async that is no bulk copy reads and writes by the
// generic proxy, as loads and stores do. The zeros that flags begin with come from before the launch, on its stream.
// Epochs go on from one part of the batch to the next, and all blocks of a team go through as many steps of each.
//
// `make verify-cuda` proves (1) to (3) for some launches, with an mbarrier in place of each pair of store and load.
template <class State>
class AcrossDevice {
 public:
  static constexpr int kBuffers = 1;  // between barriers a step's states are read, then the next ones copied over them
  static constexpr bool kClusters = false, kQueues = true;
  // Looks at a flag, each about a microsecond long: some seconds, where a step takes microseconds. Blocks wait only for
  // blocks that run, so whoever waits longer than that waits for a mistake, and must not hold a shared device forever.
  static constexpr uint32_t kPatience = 1u << 22;

  // width: elements of a state, the columns of all blocks.
  __device__ __forceinline__ AcrossDevice(const Team& team, int width, int depth, int stride)
      : blocks_(team.blocks), rows_(team.rows), width_(width), copied_(depth < width ? depth : width), stride_(stride) {
    const int mine = static_cast<int>(blockIdx.x) / blocks_, teams = static_cast<int>(gridDim.x) / blocks_;
    flags_ = static_cast<uint32_t*>(team.workspace) + mine * blocks_;
    buffers_ = reinterpret_cast<State*>(static_cast<char*>(team.workspace) + flag_bytes(teams * blocks_)) +
               int64_t{2} * mine * rows_ * width_;
  }
  __device__ __forceinline__ int rank() const { return static_cast<int>(blockIdx.x) % blocks_; }
  __device__ __forceinline__ void begin() { __syncthreads(); }
  template <int kCount>
  __device__ __forceinline__ void put(State*, int row, int column, const Values<State, kCount>& y) {
    *reinterpret_cast<Values<State, kCount>*>(buffer() + row * width_ + column) = y;
  }
  __device__ __forceinline__ void pass(State* to, int rows) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    __syncthreads();
    if (thread == 0) store_release(flags_ + rank(), epoch_);
    for (int block = thread; block < blocks_; block += threads)
      if (!spin_until(flags_ + block, epoch_, kPatience)) stop("rnn_ext: a block waited too long for another's states");
    __syncthreads();
    constexpr int kWord = 16 / sizeof(State);
    const int words = copied_ / kWord;
    for (int n = thread; n < rows * words; n += threads) {
      const int row = n / words, column = n % words * kWord;
      cp_async<16>(to + row * stride_ + column, buffer() + row * width_ + column);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    ++epoch_;
  }

 private:
  __device__ __forceinline__ State* buffer() const { return buffers_ + (epoch_ % 2) * rows_ * width_; }

  int blocks_, rows_, width_, copied_, stride_;
  uint32_t epoch_ = 1;
  uint32_t* flags_;  // of the team, zero at the start
  State* buffers_;   // of the team, [2][rows][width]
};

}  // namespace rnn_ext::cuda
