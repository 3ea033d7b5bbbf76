// One row's way through time, and what becomes of its sums (recurrence.h): what all variants of the kernels have in
// common.
//
// On a GPU a row keeps its own time: its step s = 0, 1, ... is at t = s, or, reversed, at t = T_i - 1 - s. So every row
// begins at s = 0, from its seed, and none has to wait for another; alive rows are those with s < T_i.
#pragma once

#include "cuda/device.cuh"
#include "cuda/planner.h"

namespace rnn_ext::cuda {

// What sums are computed in.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

__device__ __forceinline__ double to_sum(double x) { return x; }
template <class T>
__device__ __forceinline__ float to_sum(T x) {
  return to_float(x);
}

template <class T>
__device__ __forceinline__ T rounded(Sum<T> x) {
  if constexpr (sizeof(T) == sizeof(Sum<T>))
    return x;
  else
    return from_float<T>(x);
}

// The problem as a kernel's argument: with which groups run reversed, and all pointers to device memory.
template <class T>
struct DeviceProblem : Problem<T> {
  uint32_t reversed[kMaxGroups / 32] = {};

  explicit DeviceProblem(const Problem<T>& problem) : Problem<T>(problem) {
    for (int64_t g = 0; g < problem.shape.groups; ++g)
      if (problem.direction[g] < 0) reversed[g / 32] |= 1u << g % 32;
    this->direction = nullptr;
    this->rows.alive_at = nullptr;
  }
};

// Whether a problem has none of what few calls have: packed rows, resets, a mask, a leak. Its kernels then have none of
// the instructions that ask for them at each step, which are more than those that multiply.
template <class T>
bool is_plain(const Problem<T>& p) {
  return p.rows.padded() && !p.rows.resets && !p.mask.data && !p.leaks();
}

// Row `row` of group `group`, rows in order of length.
template <class T, bool kPlain = false>
struct Track {
  const DeviceProblem<T>& problem;
  // Four bytes are enough for each (planner.h), and leave registers to the weights; offsets into tensors need eight.
  int group, batch, steps;
  bool reversed;

  __device__ __forceinline__ Track(const DeviceProblem<T>& p, int group, int row)
      : problem(p),
        group(group),
        batch(static_cast<int>(p.rows.batch_index(row))),
        steps(static_cast<int>(p.rows.length ? p.rows.length[row] : p.shape.time)),
        reversed(p.reversed[group / 32] >> group % 32 & 1) {}

  __device__ __forceinline__ int time(int s) const { return reversed ? steps - 1 - s : s; }

  // Column `column` of this row's part of a sequence is at origin + offset(t).
  template <class E>
  __device__ __forceinline__ E* origin(const Sequence<E>& sequence, int column) const {
    return sequence.data + batch * sequence.row_stride + group * problem.shape.hidden + column;
  }
  template <class E>
  __device__ __forceinline__ int64_t offset(const Sequence<E>& sequence, int t) const {
    if (kPlain || problem.rows.padded()) return t * sequence.time_stride;
    return problem.rows.packed_at[t] * sequence.row_stride;
  }
  template <class E>
  __device__ __forceinline__ E* at(const Sequence<E>& sequence, int t, int column) const {
    return origin(sequence, column) + offset(sequence, t);
  }

  __device__ __forceinline__ bool leaks() const { return !kPlain && problem.leaks(); }

  // Whether zeros stand in place of the state that step s leaves; 0 <= s < steps - 1.
  __device__ __forceinline__ bool reset_after(int s) const {
    if (kPlain || !problem.rows.resets) return false;
    const int later = reversed ? time(s) : time(s) + 1;
    return problem.rows.resets[later * problem.shape.batch + batch];
  }

  // y_{s-1}, s > 0, from the output; zero if it was reset.
  __device__ __forceinline__ Sum<T> before(int s, int column) const {
    return reset_after(s - 1) ? Sum<T>(0) : to_sum(*at(problem.output, time(s - 1), column));
  }

  // What M multiplies after a step, where the new state is y and the factor was f.
  __device__ __forceinline__ Sum<T> multiplied(Sum<T> y, Sum<T> f, int column) const {
    if (kPlain) return y;
    if (problem.masks_states()) return y * to_sum(problem.mask.at(group, batch)[column]);
    return problem.leaks() && problem.transpose ? f * y : y;
  }

  // What the problem has for the first step: a state, or a product that is ready; zero where it has nothing.
  __device__ __forceinline__ Sum<T> seed(int column) const {
    return problem.seed_kind == Seed::none ? Sum<T>(0) : to_sum(problem.seed.at(group, batch)[column]);
  }

  // The states of step s at columns `spread` apart, in place of the sums M y_{s-1}: from those, the input, the factor,
  // and y_{s-1} itself, zero if it was reset, or in the first step the seed.
  template <int kCount>
  __device__ __forceinline__ void to_states(int s, Sum<T> (&sums)[kCount], const Sum<T> (&input)[kCount],
                                            const Sum<T> (&f)[kCount], const Sum<T> (&before)[kCount], int column,
                                            int spread) const;
};

// Within 2 ULP, and without a branch, so that no warp diverges and the verifier of races sees one path. Near zero an
// odd polynomial (minimax on [-0.625, 0.625]; S. L. Moshier's Cephes has the same form), elsewhere 1 - 2 / (exp(2x) +
// 1): there the quotient is less than the 1, so its error shrinks. A division would branch; its reciprocal, improved by
// one step of Newton's method, is as good, of what is not too large: beyond 10 the quotient is less than half a unit in
// the last place of 1.
__device__ __forceinline__ float tanh_of(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  const float d = expf(2.0f * fminf(fabsf(x), 10.0f)) + 1.0f;
  float r = reciprocal_approx(d);
  r = r * (2.0f - d * r);
  const float far = copysignf(1.0f - 2.0f * r, x);
  return fabsf(x) < 0.625f ? near : x == x ? far : x;
}
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

// Values to epilogue(value), with the factors f; as finish in cpu/epilogue.inl. The epilogue is the same for the whole
// launch, and asked for once for all values; no switch, of which nvcc would copy all that follows for each case.
template <class S, int kCount>
__device__ __forceinline__ void finish(Epilogue epilogue, S (&values)[kCount], const S (&f)[kCount]) {
  if (uses_factor(epilogue)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const S product = (epilogue == Epilogue::tanh_derivative ? S(1) - f[i] * f[i] : f[i]) * values[i];
      const S where_positive = f[i] <= S(0) ? S(0) : values[i];
      values[i] = epilogue == Epilogue::relu_derivative ? where_positive : product;
    }
  } else if (epilogue == Epilogue::tanh) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = tanh_of(values[i]);
  } else {
    // NaN compares false, and is kept.
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = values[i] < S(0) ? S(0) : values[i];
  }
}

template <class T, bool kPlain>
template <int kCount>
__device__ __forceinline__ void Track<T, kPlain>::to_states(int s, Sum<T> (&sums)[kCount],
                                                            const Sum<T> (&input)[kCount], const Sum<T> (&f)[kCount],
                                                            const Sum<T> (&before)[kCount], int column,
                                                            int spread) const {
  const DeviceProblem<T>& p = problem;
  const bool linear = uses_factor(p.epilogue), fresh = s == 0 && p.seed_kind != Seed::state;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    // Where there is no state, the seed is all that arrives: not even zero times a NaN of W.
    if (fresh)
      sums[i] = before[i];
    else if (!kPlain && p.masks_sums())
      sums[i] *= to_sum(p.mask.at(group, batch)[column + i * spread]);
  }
  if (!leaks()) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += input[i];
    return finish(p.epilogue, sums, f);
  }
  const int t = time(linear && p.transpose && s > 0 ? s - 1 : s);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (linear && fresh) {
      sums[i] += input[i];
      continue;
    }
    const int at_column = column + i * spread;
    const Sum<T> z = p.kept.data ? Sum<T>(*at(p.kept, t, at_column)) : to_sum(*at(p.leak, t, at_column));
    const Sum<T> kept = fresh ? Sum<T>(0) : z * before[i];
    if (linear) {
      sums[i] = input[i] + kept + (p.transpose ? sums[i] : f[i] * sums[i]);
    } else {
      Sum<T> one[1] = {sums[i] + input[i]};
      finish(p.epilogue, one, {f[i]});
      sums[i] = kept + (Sum<T>(1) - z) * one[0];
    }
  }
}

}  // namespace rnn_ext::cuda
