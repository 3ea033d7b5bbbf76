// The bodies of device.cuh's functions under nvcc: each is one PTX instruction, or what stands in for it on an
// architecture that lacks it. Included by device.cuh alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <type_traits>

namespace rnn_ext::cuda {

// The address of `p` within shared memory, as ldmatrix and cp.async want it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The block's dynamic shared memory. 128 bytes: a cache line, and what bulk copies ask for at the most.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char rnn_ext_dynamic_shared[];
  return reinterpret_cast<T*>(rnn_ext_dynamic_shared);
}

// The same number, or the same place in the block's shared memory, by way of a shuffle of each lane with itself: all
// lanes of the warp ask. What ptxas cannot work out again it leaves in a register, where at each step of a loop it
// would otherwise make it anew.
__device__ __forceinline__ uint32_t keep(uint32_t x) {
  return __shfl_sync(0xffffffffu, x, static_cast<int>(threadIdx.x) % 32);
}
__device__ __forceinline__ int keep(int x) { return static_cast<int>(keep(static_cast<uint32_t>(x))); }
// Times a one that ptxas does not know to be one.
__device__ __forceinline__ uintptr_t keep(uintptr_t x) { return x * keep(uint32_t{1}); }
template <class T>
__device__ __forceinline__ T* keep(T* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return static_cast<T*>(__cvta_shared_to_generic(keep(address)));
}

// ---- asynchronous copies ----

// Copies kBytes from global to shared memory, or zeros if not `valid` (`global` is then not read). Both addresses are
// multiples of kBytes. The copy is there, for the thread that asked, after the cp_async_wait of its group; for other
// threads after a barrier that follows that wait.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const int bytes = valid ? kBytes : 0;
  // .cg, past L1, exists for 16 bytes alone.
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
#else
  struct alignas(kBytes) Chunk {
    uint32_t words[kBytes / 4];
  };
  Chunk chunk = {};
  if (valid) chunk = *static_cast<const Chunk*>(global);
  *static_cast<Chunk*>(shared) = chunk;
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but the latest kPending groups of this thread are complete.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- epoch flags and barriers ----

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(flag)) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)), "r"(value) : "memory");
}

// Waits until an epoch has come, in a count that may wrap around. False if it has not after `limit` looks.
__device__ __forceinline__ bool spin_until(const uint32_t* flag, uint32_t value, uint32_t limit) {
  // Not unrolled: that would be many looks in a row, each with a way out, for a loop that waits for L2.
#pragma unroll 1
  for (uint32_t look = 0; look < limit; ++look)
    if (static_cast<int32_t>(load_acquire(flag) - value) >= 0) return true;
  return false;
}

// Prints why and ends the kernel with an error, which the host meets at its next synchronisation. Not inlined: the
// kernels that may call it once in their lives have no registers for it.
__device__ __noinline__ void stop(const char* why) {
  // As the format, without arguments: they would be a stack's.
  printf(why);
  printf("\n");
  __trap();
}

// A barrier of `threads` threads, whole warps, of the block. Barrier 0 is __syncthreads.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at such a barrier without waiting; counts as one of its threads.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- numbers ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

// To nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ half from_float<half>(float x) {
  half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  bfloat16 result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
  const uint32_t u = __float_as_uint(x);
  // Rounding could carry a NaN's mantissa into the sign; the instruction's NaN stands for all of them.
  result.bits = x == x ? static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16) : uint16_t(0x7fff);
#endif
  return result;
}

// Two neighbours in memory, as fragments hold them: `low` has the lower address.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t result;
  if constexpr (std::is_same_v<T, half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
#endif
}

// The nearest number of 10 mantissa bits, ties away from zero, in a float.
__device__ __forceinline__ float round_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return __uint_as_float(result);
#else
  const uint32_t u = __float_as_uint(x);
  return (u & 0x7f800000) == 0x7f800000 ? x : __uint_as_float((u + 0x1000) & ~0x1fffu);
#endif
}

// Relative error at most 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Relative error at most 2^-23.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- tensor cores ----
//
// All 32 lanes of a warp call these together. With g = lane / 4 and t = lane % 4, a 16 x 8 sum has
//   d[0], d[1] at row g, columns 2t, 2t+1;  d[2], d[3] at row g+8, the same columns.

// d += a b, of 16-bit a (16 x 16) and b (16 x 8), summed in float. A register holds two neighbours along the depth:
//   a[0] row g, depth 2t;  a[1] row g+8, depth 2t;  a[2] row g, depth 2t+8;  a[3] row g+8, depth 2t+8
//   b[0] depth 2t, column g;  b[1] depth 2t+8, column g
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int k = 0; k < 2; ++k)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}

template <>
__device__ __forceinline__ void mma<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// d += a b, of a (16 x 8) and b (8 x 8) in TF32: floats whose last 13 bits are ignored (round_tf32 first).
//   a[0] row g, depth t;  a[1] row g+8, depth t;  a[2] row g, depth t+4;  a[3] row g+8, depth t+4
//   b[0] depth t, column g;  b[1] depth t+4, column g
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  __trap();
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, a
// multiple of 16. r[m] becomes matrix m's row g, columns 2t, 2t+1.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, transposed: r[m] becomes matrix m's column g, rows 2t, 2t+1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- clusters ----

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

// The cluster's barrier, in halves: all its threads arrive, then wait. What was written before arriving is seen after
// waiting.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Where the same shared variable of block `rank` of the cluster lies. That block must have started (a cluster barrier
// after its start), and may not end before it was last used (another before its end).
template <class T>
__device__ __forceinline__ T* cluster_map(T* shared, uint32_t rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return shared;
#endif
}

}  // namespace rnn_ext::cuda
