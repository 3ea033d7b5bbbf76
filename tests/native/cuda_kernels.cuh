// Small kernels that use all of device.cuh, each with the mistakes that the emulator has to find: kBug is a template
// argument, so the right kernel and the wrong one are the same lines but one. nvcc compiles them too (test_device.cu).
#pragma once

#include "cuda/device.cuh"

namespace rnn_ext::cuda::test {

enum class Bug {
  none,
  missing_sync,        // no __syncthreads between a step's writes and the next step's reads
  one_buffer,          // a step writes where others still read
  uninitialised,       // shared memory is read before it is written
  write_past_end,      // of dynamic shared memory, by one element
  read_past_end,       // likewise
  divergent_barrier,   // threads of a block in different __syncthreads
  skipped_barrier,     // some threads do not come to a named barrier
  wrong_count,         // threads disagree on how many a named barrier has
  second_arrival,      // a thread stands in for one that has not come
  missing_flag_wait,   // a block does not wait for the others' step
  early_flag,          // a block says it is done before all its threads are
  plain_flag,          // a flag is stored without release
  lost_flag,           // a block does not say that it is done
  divergent_shuffle,   // half a warp shuffles in the name of all
  ended_lane,          // a lane ends, the others still name it
  missing_wait,        // a copy is used without a wait
  short_wait,          // a wait lets the copy that is needed be under way
  early_copy,          // a copy into a buffer that others still read
  unaligned_copy,      // of 16 bytes, to a multiple of 4
  forgotten_copy,      // a kernel ends with a copy under way
  no_cluster_start,    // another block's shared memory is used before that has surely started
  no_cluster_sync,     // or before it is written
  no_cluster_end,      // or after it may have ended
  missing_warp_sync,   // no __syncwarp between lanes' writes and ldmatrix
  missing_fence,       // a counter says that data are there, which no fence orders before it
  overlapping_blocks,  // two blocks write the same element
};

// ---- one block: y_t = u_t + W y_{t-1} / 2, one thread for each of `hidden` rows; shared [2][hidden] ----

template <Bug kBug>
__global__ void block_recurrence(const float* __restrict__ u, const float* __restrict__ w, float* __restrict__ y,
                                 int steps, int hidden) {
  float* const h = dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  if (kBug != Bug::uninitialised) h[i] = 0;
  __syncthreads();
  for (int t = 0; t < steps; ++t) {
    const float* const previous = h + t % 2 * hidden;
    float* const next = h + (kBug == Bug::one_buffer ? t : t + 1) % 2 * hidden;
    float sum = u[t * hidden + i];
    const int depth = kBug == Bug::read_past_end && t % 2 ? hidden + 1 : hidden;
    for (int k = 0; k < depth; ++k) sum += 0.5f * w[i * hidden + k % hidden] * previous[k];  // read_past_end
    next[i] = sum;
    if (kBug == Bug::write_past_end && i == 0) h[2 * hidden] = 0;  // write_past_end
    y[t * hidden + i] = sum;
    if (kBug != Bug::missing_sync) __syncthreads();
  }
}

// ---- the same over a grid: each block has blockDim.x rows, h [2][hidden] and flags [blocks] in global memory ----
//
// A flag holds the count of its block's finished steps. *timed_out is set if a flag does not come.

template <Bug kBug>
__global__ void grid_recurrence(const float* __restrict__ u, const float* __restrict__ w, float* __restrict__ y,
                                float* h, uint32_t* flags, uint32_t* timed_out, int steps, int hidden) {
  const int rows = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * rows + thread;
  for (int t = 0; t < steps; ++t) {
    bool came = true;
    if (t > 0 && kBug != Bug::missing_flag_wait)
      for (int b = thread; b < static_cast<int>(gridDim.x); b += rows)
        came &= spin_until(flags + b, static_cast<uint32_t>(t), 1u << 20);  // lost_flag
    // What is not there must not be read. A block that leaves leaves its flag, and so all of them leave.
    if (!__syncthreads_and(came)) {
      if (thread == 0) atomicExch(timed_out, 1u);
      return;
    }
    const float* const previous = h + t % 2 * hidden;
    float* const next = h + (kBug == Bug::one_buffer ? t : t + 1) % 2 * hidden;
    float sum = u[t * hidden + i];
    if (t > 0)
      for (int k = 0; k < hidden; ++k) sum += 0.5f * w[i * hidden + k] * __ldcg(previous + k);
    __stcg(next + i, sum);
    y[t * hidden + i] = sum;
    if (kBug != Bug::early_flag) __syncthreads();
    if (thread == 0 && !(kBug == Bug::lost_flag && blockIdx.x == 1 && t == 1)) {
      if (kBug == Bug::plain_flag)
        flags[blockIdx.x] = static_cast<uint32_t>(t + 1);
      else
        store_release(flags + blockIdx.x, static_cast<uint32_t>(t + 1));
    }
  }
}

// ---- a warp: sums of 32 numbers ----

template <Bug kBug>
__global__ void warp_sum(const int* x, int* sum) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int value = x[threadIdx.x];
  if (kBug == Bug::ended_lane && lane == 31) return;
  if (kBug == Bug::divergent_shuffle && lane < 16) value += __shfl_xor_sync(kFullWarp, value, 1);  // divergent_shuffle
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(kFullWarp, value, delta);  // ended_lane
  value = __shfl_sync(kFullWarp, value, 0);
  if (__any_sync(kFullWarp, value == 0) || !__all_sync(kFullWarp, value != 0)) value = -1;
  if (__ballot_sync(kFullWarp, lane % 2) != 0xaaaaaaaau) value = -1;
  if (lane == 0) sum[threadIdx.x / kWarp] = value;
}

// ---- barriers: the first half of a block produces, the second consumes; static shared memory ----

template <Bug kBug>
__global__ void hand_over(const int* x, int* y, int rounds) {
  __shared__ int box[64];
  const int half_block = static_cast<int>(blockDim.x) / 2, all = static_cast<int>(blockDim.x);
  const int i = static_cast<int>(threadIdx.x) % half_block;
  for (int r = 0; r < rounds; ++r) {
    if (static_cast<int>(threadIdx.x) < half_block) {
      if (r > 0) barrier_sync(2, all);  // the box is empty again
      box[i] = x[r * half_block + i];
      if (kBug == Bug::skipped_barrier && i < kWarp) continue;
      barrier_arrive(1, kBug == Bug::wrong_count ? 2 * all : all);
      if (kBug == Bug::second_arrival && i == 0) barrier_arrive(1, all);  // second_arrival
    } else {
      barrier_sync(1, all);  // skipped_barrier wrong_count
      y[r * half_block + i] = box[half_block - 1 - i];
      if (r + 1 < rounds) barrier_arrive(2, all);
    }
  }
  if (kBug == Bug::divergent_barrier && threadIdx.x == 0)
    __syncthreads();
  else
    __syncthreads();  // divergent_barrier
}

// ---- copies: each thread sums its column of a (rows, 4 * threads) matrix, two tiles in flight; shared [2][...] ----

template <Bug kBug>
__global__ void copied_sum(const float* x, float* sum, int rows) {
  float* const tiles = dynamic_shared<float>();
  const int threads = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x), columns = 4 * threads;
  // A thread uses what its neighbour has copied.
  const int mine = (i + 1) % threads;
  float4 total = make_float4(0, 0, 0, 0);
  auto copy = [&](int row) {
    const int skew = kBug == Bug::unaligned_copy ? 1 : 0;
    cp_async<16>(tiles + row % 2 * columns + 4 * i + skew, x + row * columns + 4 * i, row < rows);  // unaligned_copy
    cp_async_commit();
  };
  if (rows > 0) copy(0);
  for (int row = 0; row < rows; ++row) {
    // Beyond the last row zeros are copied, so that every wait has the same number of groups behind it.
    copy(row + 1);
    if (kBug == Bug::short_wait)
      cp_async_wait<2>();
    else if (kBug != Bug::missing_wait)
      cp_async_wait<1>();
    __syncthreads();
    const float4 tile = *reinterpret_cast<const float4*>(tiles + row % 2 * columns + 4 * mine);
    total.x += tile.x;
    total.y += tile.y;
    total.z += tile.z;
    total.w += tile.w;
    if (kBug != Bug::early_copy) __syncthreads();
  }
  if (kBug != Bug::forgotten_copy) cp_async_wait<0>();
  *reinterpret_cast<float4*>(sum + 4 * mine) = total;
}

// ---- clusters: each block sums what all blocks of its cluster have; dynamic and static shared memory ----

template <Bug kBug>
__global__ void cluster_sum(const int* x, int* sum, int rounds) {
  __shared__ int extra[32];
  int* const box = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const int at = static_cast<int>(blockIdx.x) * n + i;
  int total = 0;
  if (kBug != Bug::no_cluster_start) {
    cluster_arrive();
    cluster_wait();
  }
  for (int r = 0; r < rounds; ++r) {
    // To the next block's memory, and to the own.
    int* const next = cluster_map(box, (cluster_rank() + 1) % cluster_size());  // no_cluster_start
    next[r % 2 * n + i] = x[at] + r;
    extra[i] = r;
    if (kBug != Bug::no_cluster_sync) {
      cluster_arrive();
      cluster_wait();
    }
    total += box[r % 2 * n + i];
    for (uint32_t rank = 0; rank < cluster_size(); ++rank) total += cluster_map(extra, rank)[n - 1 - i];
    if (r + 1 < rounds || kBug != Bug::no_cluster_end) {
      cluster_arrive();
      cluster_wait();
    }
  }
  sum[at] = total;
}

// ---- a counter: the last block to come sums what the others have left ----

template <Bug kBug>
__global__ void counted_sum(const int* x, int* partial, unsigned* counter, int* sum) {
  if (threadIdx.x != 0) return;
  partial[kBug == Bug::overlapping_blocks ? 0 : blockIdx.x] = x[blockIdx.x];
  if (kBug != Bug::missing_fence) __threadfence();
  if (atomicAdd(counter, 1u) != gridDim.x - 1) return;
  if (kBug != Bug::missing_fence) __threadfence();
  int total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b];
  *sum = total;
}

// ---- tensor cores: d += a b, a (16, 16) by rows, b (16, 8) by rows; one warp; shared a, then b ----

template <class T, Bug kBug>
__global__ void multiply_16bit(const T* a, const T* b, float* d) {
  T* const a_tile = dynamic_shared<T>();
  T* const b_tile = a_tile + 16 * 16;
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int i = lane; i < 16 * 16; i += kWarp) a_tile[i] = a[i];
  for (int i = lane; i < 16 * 8; i += kWarp) b_tile[i] = b[i];
  if (kBug != Bug::missing_warp_sync) __syncwarp();
  uint32_t a_part[4], b_part[4];
  // Matrices: rows 0-7 and 8-15 at depth 0-7, then both at depth 8-15; as the fragment's registers.
  ldmatrix_x4(a_part, a_tile + lane % 16 * 16 + lane / 16 * 8);
  // b's rows are the depth: transposed. The second half of the addresses is not needed, and repeats the first.
  ldmatrix_x4_trans(b_part, b_tile + lane % 16 * 8);
  float sum[4];
  for (int r = 0; r < 4; ++r) sum[r] = d[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
  const uint32_t b_pair[2] = {b_part[0], b_part[1]};
  mma<T>(sum, a_part, b_pair);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
}

// The same in TF32, of a (16, 8) and b (8, 8), straight from global memory.
template <bool kRound>
__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  float a_part[4], b_part[2], sum[4];
  for (int r = 0; r < 4; ++r) {
    const float value = a[(g + r % 2 * 8) * 8 + t + r / 2 * 4];
    a_part[r] = kRound ? round_tf32(value) : value;
  }
  for (int r = 0; r < 2; ++r) {
    const float value = b[(t + 4 * r) * 8 + g];
    b_part[r] = kRound ? round_tf32(value) : value;
  }
  for (int r = 0; r < 4; ++r) sum[r] = d[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
  mma_tf32(sum, a_part, b_part);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
}

// ---- numbers: y[i] = x[i] in T, and back ----

template <class T>
__global__ void round_trip(const float* x, float* y, uint32_t* packed, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    y[i] = to_float(from_float<T>(x[i]));
    packed[i] = pack<T>(x[i], 1.0f);
  }
}

}  // namespace rnn_ext::cuda::test
