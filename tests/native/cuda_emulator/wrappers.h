// The functions of device.cuh (described in csrc/cuda/ptx.cuh) on the emulator. Device memory is read and written here,
// in code that the sanitizers see, on behalf of the thread that asked.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_emulator/formats.h"
#include "cuda_emulator/language.h"
#include "recurrence.h"

namespace rnn_ext::cuda {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_emulator::dynamic_shared_memory());
}

// Where a value lies is the compiler's affair.
template <class T>
T keep(T x) {
  return x;
}

// ---- asynchronous copies ----

// Moved as one: ThreadSanitizer sees assignments, but not what the compiler makes of a memset.
template <int kBytes>
struct alignas(kBytes) [[gnu::may_alias]] Chunk {
  uint32_t words[kBytes / 4];
};

template <int kBytes>
void cp_async(void* shared, const void* global, bool valid = true, Place place = Place::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  cuda_emulator::check_shared(shared, kBytes, "cp_async", place);
  if (valid) {
    cuda_emulator::check_aligned(global, kBytes, "cp_async", place);
    // Read now as well, for the sanitizers to see, in the line that asks.
    const Chunk<kBytes> seen = *static_cast<const Chunk<kBytes>*>(global);
    asm volatile("" ::"m"(seen));
  }
  // Any moment until the wait can be the one of the copy: from now on the target is nobody's, and it is seen if
  // somebody still reads the old, or already reads what has not come.
  Chunk<kBytes> undefined;
  for (uint32_t& word : undefined.words) word = ~0u;
  *static_cast<Chunk<kBytes>*>(shared) = undefined;
  cuda_emulator::copy_later(shared, valid ? global : nullptr, kBytes, place);
}

inline void cp_async_commit(Place place = Place::here()) { cuda_emulator::commit_copies(place); }

template <int kBytes>
void complete_copy(const cuda_emulator::Copy& copy) {
  *static_cast<Chunk<kBytes>*>(copy.shared) =
      copy.global ? *static_cast<const Chunk<kBytes>*>(copy.global) : Chunk<kBytes>{};
}

template <int kPending>
void cp_async_wait() {
  cuda_emulator::Copy copy;
  while (cuda_emulator::next_copy(kPending, &copy)) {
    switch (copy.bytes) {
      case 4: complete_copy<4>(copy); break;
      case 8: complete_copy<8>(copy); break;
      case 16: complete_copy<16>(copy); break;
    }
  }
}

// ---- epoch flags and barriers ----

inline uint32_t load_acquire(const uint32_t* flag) {
  cuda_emulator::yield_point();
  return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

inline void store_release(uint32_t* flag, uint32_t value) {
  cuda_emulator::yield_point();
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

// `limit` is time, which does not pass here: see Schedule::impatient.
inline bool spin_until(const uint32_t* flag, uint32_t value, uint32_t /*limit*/, Place place = Place::here()) {
  return cuda_emulator::await_epoch(flag, value, place) && static_cast<int32_t>(load_acquire(flag) - value) >= 0;
}

[[noreturn]] inline void stop(const char* why, Place place = Place::here()) { cuda_emulator::stop(why, place); }

inline void barrier_sync(int id, int threads, Place place = Place::here()) {
  cuda_emulator::barrier(id, threads, true, place);
}
inline void barrier_arrive(int id, int threads, Place place = Place::here()) {
  cuda_emulator::barrier(id, threads, false, place);
}

// ---- numbers ----

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return cuda_emulator::from_bfloat16(x.bits); }
inline float to_float(half x) { return cuda_emulator::from_half(x.bits); }

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline half from_float<half>(float x) {
  return {cuda_emulator::to_half(x)};
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  return {cuda_emulator::to_bfloat16(x)};
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

inline float round_tf32(float x) {
  const uint32_t u = __float_as_uint(x);
  return (u & 0x7f800000) == 0x7f800000 ? x : __uint_as_float((u + 0x1000) & ~0x1fffu);
}

// Somewhere within the instruction's error: the exact value with all but 11 bits of its mantissa cut off.
inline float tanh_approx(float x) { return __uint_as_float(__float_as_uint(std::tanh(x)) & ~0xfffu); }

// Off by about as much as the instruction may be.
inline float reciprocal_approx(float x) { return 1.0f / x * (1.0f + 0x1p-23f); }

// ---- tensor cores ----

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::here()) {
  constexpr bool kHalf = std::is_same_v<T, half>;
  static_assert(kHalf || std::is_same_v<T, bfloat16>, "mma multiplies half or bfloat16");
  cuda_emulator::need_architecture(kMmaArchitecture<T>, "mma", place);
  cuda_emulator::mma(kHalf ? cuda_emulator::Format::half : cuda_emulator::Format::bfloat16, d, a, b, place);
}

inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], Place place = Place::here()) {
  cuda_emulator::need_architecture(kMmaArchitecture<float>, "mma_tf32", place);
  uint32_t a_bits[4], b_bits[2];
  std::memcpy(a_bits, a, sizeof a_bits);
  std::memcpy(b_bits, b, sizeof b_bits);
  cuda_emulator::mma(cuda_emulator::Format::tf32, d, a_bits, b_bits, place);
}

inline void ldmatrix(bool transposed, uint32_t (&r)[4], const void* address, Place place) {
  cuda_emulator::check_shared(address, 16, "ldmatrix", place);
  const Chunk<16> row = *static_cast<const Chunk<16>*>(address);
  cuda_emulator::ldmatrix(transposed, r, row.words, place);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Place place = Place::here()) {
  ldmatrix(false, r, row, place);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Place place = Place::here()) {
  ldmatrix(true, r, row, place);
}

// ---- clusters ----

constexpr bool kHasClusters = true;

inline uint32_t cluster_rank() { return cuda_emulator::cluster_rank(); }
inline uint32_t cluster_size() { return cuda_emulator::cluster_size(); }
inline void cluster_arrive(Place place = Place::here()) { cuda_emulator::cluster_arrive(place); }
inline void cluster_wait(Place place = Place::here()) { cuda_emulator::cluster_wait(place); }
template <class T>
T* cluster_map(T* shared, uint32_t rank, Place place = Place::here()) {
  return static_cast<T*>(cuda_emulator::cluster_address(shared, rank, place));
}

}  // namespace rnn_ext::cuda
