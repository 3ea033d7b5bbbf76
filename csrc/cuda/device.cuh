// The one header through which kernels and launch code reach CUDA: no PyTorch, and no other CUDA include elsewhere.
//
// Under nvcc the functions named here have the bodies in ptx.cuh and launch.cuh. Any other compiler gets those of the
// emulator (tests/native/cuda_emulator), which executes the same source on the CPU; its directory's parent must then be
// on the include path. Beside these, kernels may use the language itself (__shared__, threadIdx, __syncthreads and
// its votes, __syncwarp, __shfl_*_sync, votes of warps, integer atomics, __threadfence).
//
//   asynchronous copies   cp_async<4|8|16>(shared, global, valid), cp_async_commit(), cp_async_wait<N>()
//   epoch flags           load_acquire(flag), store_release(flag, value), spin_until(flag, value, limit)
//   giving up             stop(why)
//   barriers of warps     barrier_sync(id, threads), barrier_arrive(id, threads); ids 1 to 15
//   tensor cores          mma<half|bfloat16>(d, a, b), mma_tf32(d, a, b)
//                         ldmatrix_x4(r, row), ldmatrix_x4_trans(r, row)
//   clusters              cluster_rank(), cluster_size(), cluster_arrive(), cluster_wait(), cluster_map(p, rank)
//                         kHasClusters
//   numbers               to_float(x), from_float<half|bfloat16>(x), pack<half|bfloat16>(low, high)
//                         round_tf32(x), tanh_approx(x), reciprocal_approx(x)
//   shared memory         dynamic_shared<T>()
//   registers             keep(x)
//   host                  launch(LaunchConfig, kernel, arguments...)
//
// Rules that keep a kernel testable: it waits in a loop for another thread only through spin_until; its launches go
// through launch(); inline PTX stands in ptx.cuh alone.
//
// What an architecture lacks. sm_75: cp_async copies at once, and mma<half> is made of two smaller ones: the same
// results. mma<bfloat16> and mma_tf32 trap there, and so the planner asks kMmaArchitecture first. Below sm_90 a launch
// cannot ask for a cluster, and each block is one of size 1. The emulator checks both against the device that the test
// has set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "recurrence.h"

namespace rnn_ext::cuda {

// The least compute capability, 10 * major + minor, whose tensor cores take a format.
template <class T>
constexpr int kMmaArchitecture = 80;  // bfloat16, and float as TF32
template <>
inline constexpr int kMmaArchitecture<half> = 75;

// The threads of a warp, and a mask that names them all.
constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

}  // namespace rnn_ext::cuda

#ifdef __CUDACC__
#include "cuda/ptx.cuh"
#else
#include "cuda_emulator/language.h"
#include "cuda_emulator/wrappers.h"
#endif
#include "cuda/launch.cuh"
