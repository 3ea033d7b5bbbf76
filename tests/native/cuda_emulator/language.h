// CUDA's language extensions, for a C++ compiler: what a kernel may use beside the functions of device.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_emulator/formats.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/runtime.h"

// Keywords of CUDA, so these have to be macros.
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __constant__ static
// A block is an operating-system thread. Unlike dynamic shared memory this starts as zeros and has no red zones.
#define __shared__ static thread_local

constexpr int warpSize = 32;

using cuda_emulator::Place;

// ---- barriers and fences ----

inline void __syncthreads(Place place = Place::here()) { cuda_emulator::sync_threads(false, place); }
inline int __syncthreads_count(int predicate, Place place = Place::here()) {
  return cuda_emulator::sync_threads(predicate != 0, place);
}
inline int __syncthreads_or(int predicate, Place place = Place::here()) {
  return cuda_emulator::sync_threads(predicate != 0, place) > 0;
}
inline int __syncthreads_and(int predicate, Place place = Place::here()) {
  return cuda_emulator::sync_threads(predicate == 0, place) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, Place place = Place::here()) {
  cuda_emulator::sync_warp(mask, place);
}
inline void __threadfence(Place place = Place::here()) { cuda_emulator::fence(place); }
inline void __threadfence_block(Place place = Place::here()) { cuda_emulator::fence(place); }

// ---- exchange within a warp: any type of up to 8 bytes ----

namespace cuda_emulator {

template <class T>
T shuffle(Shuffle how, unsigned mask, T value, int operand, int width, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(how, mask, bits, operand, width, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, Place place = Place::here()) {
  return cuda_emulator::shuffle(cuda_emulator::Shuffle::index, mask, value, lane, width, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, Place place = Place::here()) {
  return cuda_emulator::shuffle(cuda_emulator::Shuffle::up, mask, value, static_cast<int>(delta), width, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, Place place = Place::here()) {
  return cuda_emulator::shuffle(cuda_emulator::Shuffle::down, mask, value, static_cast<int>(delta), width, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, Place place = Place::here()) {
  return cuda_emulator::shuffle(cuda_emulator::Shuffle::exclusive_or, mask, value, lanes, width, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, Place place = Place::here()) {
  return cuda_emulator::ballot(mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, Place place = Place::here()) {
  return cuda_emulator::ballot(mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, Place place = Place::here()) {
  return cuda_emulator::ballot(mask, predicate != 0, place) == mask;
}

// ---- integer atomics, relaxed as CUDA's are; none on floats, whose sums would depend on the order ----

namespace cuda_emulator {

template <class T, class Update>
T atomic_update(T* address, Update update) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4, "atomics are for 32- and 64-bit integers");
  yield_point();
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, update(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class T>
struct Same {
  using type = T;
};
template <class T>
using Value = typename Same<T>::type;  // not deduced: the address decides

}  // namespace cuda_emulator

template <class T>
T atomicAdd(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicOr(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicAnd(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicExch(T* address, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, cuda_emulator::Value<T> expected, cuda_emulator::Value<T> value) {
  return cuda_emulator::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}

// ---- bits, numbers, cached loads and stores ----

inline float __uint_as_float(unsigned bits) { return cuda_emulator::bits_to_float(bits); }
inline unsigned __float_as_uint(float value) { return cuda_emulator::float_to_bits(value); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, cuda_emulator::Value<T> value) {
  *p = value;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

[[noreturn]] inline void __trap(Place place = Place::here()) { cuda_emulator::trap(place); }
