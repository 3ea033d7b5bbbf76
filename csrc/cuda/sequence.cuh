// The loop over time of every variant that keeps W on the chip: `resident`, `cluster` and `persistent`.
//
// A team of blocks takes some rows of one group through the whole sequence. Each block has some columns of the state:
// it multiplies whole states by its part of W (multiply.cuh, tensor.cuh), finishes the sums that are its own, and hands
// the new states to the team (exchange.cuh). Inputs of the steps to come arrive by cp.async, in words of the thread
// that will use them: no barrier for these.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/planner.h"
#include "cuda/track.cuh"

namespace rnn_ext::cuda {

// The aligned word of four bytes with an element in it; cp.async copies no less. Allocations are made of whole words.
template <class T>
__device__ __forceinline__ const void* word_of(const T* element) {
  if constexpr (sizeof(T) == 4) return element;
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(element) & ~uintptr_t(3));
}
template <class T>
__device__ __forceinline__ float from_word(const uint32_t* word, const T* element) {
  if constexpr (sizeof(T) == 4) return *reinterpret_cast<const T*>(word);
  return to_float(
      *reinterpret_cast<const T*>(reinterpret_cast<const char*>(word) + (reinterpret_cast<uintptr_t>(element) & 3)));
}

// Brings the next value to the front, where a loop that is not unrolled finds it: registers have no index.
template <int kCount>
__device__ __forceinline__ void turn(float (&values)[kCount]) {
  const float first = values[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) values[i - 1] = values[i];
  values[kCount - 1] = first;
}

// What one thread finishes of a tile of Multiply::kRows rows: kValues elements of one row, kSpread apart. kAlone: it is
// one, and not beyond H.
template <class T, class Multiply, bool kPlain, bool kAlone>
struct Part {
  Track<T, kPlain> track;
  int tile_row, column, values, steps;  // steps: 0 where there is nothing to finish; values: may be negative
  const T *input, *factor;
  T* output;

  __device__ __forceinline__ Part(const DeviceProblem<T>& problem, const Multiply& multiply, int group, int first_row,
                                  int end_row, int first_column)
      : track(problem, group, first_row + multiply.row() < end_row ? first_row + multiply.row() : first_row),
        tile_row(multiply.row()),
        column(first_column + multiply.column()) {
    const int hidden = static_cast<int>(problem.shape.hidden);
    const int left = (hidden - column + Multiply::kSpread - 1) / Multiply::kSpread;
    values = left < Multiply::kValues ? left : Multiply::kValues;
    steps = multiply.mine() && first_row + tile_row < end_row && (!kAlone || values > 0) ? track.steps : 0;
    input = track.origin(problem.input, column);
    factor = track.origin(problem.factor, column);
    output = track.origin(problem.output, column);
  }
};

// Rows [first_row, end_row) of a group, from the first step to the last of the longest, which comes first.
template <class T, class Multiply, bool kPlain, bool kOneTile, class Exchange>
__device__ __forceinline__ void run_rows(const DeviceProblem<T>& problem, Exchange& exchange, int group, int first_row,
                                         int end_row, int capacity) {
  using State = typename Multiply::State;
  constexpr int kRows = Multiply::kRows, kValues = Multiply::kValues, kThreads = Multiply::kThreads,
                kSpread = Multiply::kSpread;
  const int thread = static_cast<int>(threadIdx.x), hidden = static_cast<int>(problem.shape.hidden);
  const int stride = Multiply::stride(hidden), depth = Multiply::depth(hidden),
            first_column = exchange.rank() * Multiply::kColumns;
  const int tiles = kOneTile ? 1 : (end_row - first_row + kRows - 1) / kRows;

  State* const states = keep(dynamic_shared<State>());  // [kBuffers][capacity][stride]
  unsigned char* const weights = reinterpret_cast<unsigned char*>(states + Exchange::kBuffers * capacity * stride);
  uint32_t* const ahead = reinterpret_cast<uint32_t*>(weights + Multiply::shared_bytes(hidden));

  const Weight<T>& w = problem.weight;
  const T* const matrix = w.data + group * hidden * w.row_stride;
  const int64_t along_j = problem.transpose ? w.column_stride : w.row_stride;
  const int64_t along_k = problem.transpose ? w.row_stride : w.column_stride;
  Multiply multiply(hidden, first_column, weights, [&](int j, int k) {
    return j < hidden && k < hidden ? matrix[j * along_j + k * along_k] : rounded<T>(0.0f);
  });

  // Seeds, and zeros beyond H and beyond the batch; not unrolled, as it is no step.
#pragma unroll 1
  for (int n = thread; n < capacity * stride; n += kThreads) {
    const int row = first_row + n / stride, k = n % stride;
    float y = 0;
    if (problem.seed_kind == Seed::state && row < end_row && k < hidden) {
      const Track<T, kPlain> track(problem, group, row);
      y = track.multiplied(to_float(problem.seed.at(group, track.batch)[k]), 0.0f, k);
    }
    states[n] = Multiply::stored(y);
    if constexpr (Exchange::kBuffers == 2) states[capacity * stride + n] = Multiply::stored(0);
  }

  // In a block that is a team of its own both buffers have zeros beyond H from the start: with one value, a thread
  // whose value is there has nothing to finish.
  constexpr bool kAlone = !Exchange::kClusters && !Exchange::kQueues && Multiply::kValues == 1;
  auto part_of = [&](int tile) {
    return Part<T, Multiply, kPlain, kAlone>(problem, multiply, group, first_row + tile * kRows, end_row, first_column);
  };
  const Part<T, Multiply, kPlain, kAlone> first_part = part_of(0);
  const bool has_input = problem.input.data != nullptr, has_factor = uses_factor(problem.epilogue);
  uint32_t* const words = keep(ahead + thread);
  auto word = [&](int slot, int what, int i) { return words + ((slot * 2 + what) * kValues + i) * kThreads; };
  // Where no row is packed a step is as far from the one before as any: one tile's pointers go along.
  constexpr bool kGoAlong = kOneTile && kPlain && kSpread == 1;
  auto offset = [&](const auto& sequence) { return first_part.track.offset(sequence, first_part.track.time(0)); };
  auto pace = [&](const auto& sequence) {
    return first_part.track.reversed ? -sequence.time_stride : sequence.time_stride;
  };
  // As numbers: they go on beyond the last step, and from where there is no tensor at all.
  auto address = [](const T* p) { return reinterpret_cast<uintptr_t>(p); };
  // Or ptxas would work each of them out at every step; which it may where threads have no register to spare.
  auto kept = [](auto x) {
    if constexpr (Exchange::kQueues)
      return x;
    else
      return keep(x);
  };
  auto bytes = [&](const auto& sequence) { return kept(static_cast<uintptr_t>(pace(sequence)) * sizeof(T)); };
  const uintptr_t input_pace = bytes(problem.input), factor_pace = bytes(problem.factor);
  const auto output_pace = static_cast<int64_t>(kept(static_cast<uintptr_t>(pace(problem.output))));
  auto pointer = [](uintptr_t address) { return reinterpret_cast<const T*>(address); };
  uintptr_t input_along = address(first_part.input + offset(problem.input)),
            factor_along = address(first_part.factor + offset(problem.factor));
  T* output_along = first_part.output + offset(problem.output);
  const int first_inputs = kept(has_input ? first_part.values : 0),
            first_factors = kept(has_factor ? first_part.values : 0);
  auto inputs = [&](const auto& part) { return kGoAlong ? first_inputs : has_input ? part.values : 0; };
  auto factors = [&](const auto& part) { return kGoAlong ? first_factors : has_factor ? part.values : 0; };
  auto fetch = [&](int s, int tile, int slot) {
    const Part<T, Multiply, kPlain, kAlone> part = kOneTile ? first_part : part_of(tile);
    const bool due = s < part.steps;
    if (kGoAlong || due) {  // a branch would be more than the copies, and what is computed for them is little
      const int t = part.track.time(s);
      const T* const input = kGoAlong ? pointer(input_along) : part.input + part.track.offset(problem.input, t);
      const T* const factor = kGoAlong ? pointer(factor_along) : part.factor + part.track.offset(problem.factor, t);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (due && i < inputs(part)) cp_async<4>(word(slot, 0, i), word_of(input + i * kSpread));
        if (due && i < factors(part)) cp_async<4>(word(slot, 1, i), word_of(factor + i * kSpread));
      }
    }
    cp_async_commit();
    input_along += input_pace;
    factor_along += factor_pace;
  };
  // A tile and a step that is fetched is kAhead - 1 of them before the one that is computed; each has its own slot.
  int fetch_step = 0, fetch_tile = 0, slot = 0, spare = kAhead - 1;
  auto fetch_next = [&](int into) {
    fetch(fetch_step, fetch_tile, into);
    if (++fetch_tile == tiles) {
      fetch_tile = 0;
      ++fetch_step;
    }
  };
  for (int n = 0; n + 1 < kAhead; ++n) fetch_next(n);
  // With options a thread's values are finished one after the other: at once they want more registers than there are.
  constexpr int kAtOnce = kPlain ? kValues : 1;
  constexpr bool kInTurn = kAtOnce < kValues;
  // The last state needs no question at each step where a thread's states are at hand after the loop; in tensor cores'
  // kernels what that takes would be spilled until then.
  constexpr bool kLastIsKept = kOneTile && kSpread == 1;
  // The seed, then the states that leak, and the last; of more than one tile they are read again.
  float before[kValues] = {};
  constexpr bool kSeedIsKept = kOneTile && kPlain;
  if (kSeedIsKept && first_part.steps) {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (i < first_part.values) before[i] = first_part.track.seed(first_part.column + i * kSpread);
  }
  // Those at and beyond the depth are multiplied by nobody.
  auto hand_on = [&](State* to, int row, int column, const auto& values) {
    if (Multiply::kInside || column < depth) exchange.put(to, row, column, values);
  };
  exchange.begin();

  // The same in all lanes, as a shuffle's result is to the compiler, and what was divided and loaded is not; else each
  // shuffle in the loop would be prepared for lanes that have left it.
  const int longest = __shfl_sync(kFullWarp, Track<T, kPlain>(problem, group, first_row).steps, 0);
  // Where the states of a step begin, in one buffer and the other in turn.
  const int other = Exchange::kBuffers == 2 ? capacity * stride : 0;
  int buffer = 0;
  // Not unrolled: a step is long, and what nvcc unrolls it keeps addresses of, in registers.
#pragma unroll 1
  for (int s = 0; s < longest; ++s) {
    const State* const previous = states + buffer;
    buffer ^= other;
    State* const next = states + buffer;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      fetch_next(spare);
      float sums[kValues];
      multiply(previous + tile * kRows * stride, sums);
      cp_async_wait<kAhead - 1>();
      const Part<T, Multiply, kPlain, kAlone> part = kOneTile ? first_part : part_of(tile);
      const Track<T, kPlain>& track = part.track;
      if (s < part.steps) {
        const int t = track.time(s);
        const bool ends = s == part.steps - 1, reset = !ends && track.reset_after(s);
        T* const output = kGoAlong ? output_along : part.output + track.offset(problem.output, t);
        // Where the words' elements lie in them.
        const T* const input_at =
            kGoAlong ? pointer(input_along - kAhead * input_pace) : part.input + track.offset(problem.input, t);
        const T* const factor_at =
            kGoAlong ? pointer(factor_along - kAhead * factor_pace) : part.factor + track.offset(problem.factor, t);
        const int row = tile * kRows + part.tile_row;
        Values<State, kSpread == 1 ? kValues : 1> together = {};
#pragma unroll 1
        for (int first = 0; first < kValues; first += kAtOnce) {
          float input[kAtOnce], f[kAtOnce], mine[kAtOnce], y[kAtOnce];
          const int column = part.column + first * kSpread;
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int n = first + i, at = n * kSpread;
            const bool there = kAlone || n < part.values;
            input[i] = n < inputs(part) ? from_word(word(slot, 0, n), input_at + at) : 0.0f;
            f[i] = n < factors(part) ? from_word(word(slot, 1, n), factor_at + at) : 0.0f;
            if (!kSeedIsKept && there && s == 0) before[i] = track.seed(column + i * kSpread);
            if (!kOneTile && there && track.leaks() && s > 0) before[i] = track.before(s, column + i * kSpread);
            y[i] = sums[i];
            mine[i] = before[i];
          }
          if (kPlain || first < part.values) track.to_states(s, y, input, f, mine, column, kSpread);
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            State multiplied = Multiply::stored(0);
            const int at = (first + i) * kSpread;
            if (kAlone || first + i < part.values) {
              const T state = rounded<T>(y[i]);
              output[at] = state;
              if (!kLastIsKept && ends) problem.last.at(group, track.batch)[part.column + at] = state;
              before[i] = reset ? 0.0f : to_float(state);
              if (!reset) multiplied = Multiply::stored(track.multiplied(before[i], f[i], part.column + at));
            }
            if constexpr (kSpread > 1) {
              hand_on(next, row, part.column + at, Values<State, 1>{multiplied});
            } else if constexpr (kInTurn) {
              turn(together.at);
              together.at[kValues - 1] = multiplied;
            } else {
              together.at[i] = multiplied;
            }
          }
          if constexpr (kInTurn) {
            turn(sums);
            turn(before);
          }
        }
        if constexpr (kSpread == 1) hand_on(next, row, part.column, together);
      }
      output_along += output_pace;
      spare = slot;
      slot = slot + 1 == kAhead ? 0 : slot + 1;
    }
    exchange.pass(next, tiles * kRows);
  }
  cp_async_wait<0>();
  if (kLastIsKept && first_part.steps) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int column = first_part.column + i * kSpread;
      if (i < first_part.values) problem.last.at(group, first_part.track.batch)[column] = rounded<T>(before[i]);
    }
  }
}

// grid: teams of team.blocks blocks; each takes team.rows rows of a group, and where the exchange queues, as many more
// as are left when it is done with them. kOneTile: team.rows is Multiply::kRows.
template <class T, class Multiply, template <class> class Exchange, bool kPlain, bool kOneTile>
__global__ void __launch_bounds__(Multiply::kThreads, 1)
    sequence_kernel(const DeviceProblem<T> problem, const Team team) {
  using State = typename Multiply::State;
  if constexpr (Exchange<State>::kClusters && !kHasClusters) return;
  const int batch = static_cast<int>(problem.shape.batch), hidden = static_cast<int>(problem.shape.hidden);
  const int parts = (batch + team.rows - 1) / team.rows, items = parts * static_cast<int>(problem.shape.groups);
  Exchange<State> exchange(team, team.blocks * Multiply::kColumns, Multiply::depth(hidden), Multiply::stride(hidden));
  auto run = [&](int item) {
    const int group = item / parts, first = item % parts * team.rows;
    run_rows<T, Multiply, kPlain, kOneTile>(problem, exchange, group, first, min(first + team.rows, batch),
                                            kOneTile ? Multiply::kRows : team.rows);
  };
  const int mine = static_cast<int>(blockIdx.x) / team.blocks;
  if constexpr (Exchange<State>::kQueues) {
    for (int item = mine; item < items; item += static_cast<int>(gridDim.x) / team.blocks) run(item);
  } else {
    run(mine);
  }
}

}  // namespace rnn_ext::cuda
