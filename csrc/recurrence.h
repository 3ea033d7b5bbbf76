// The problem, as the kernels see it: plain sizes, strides and pointers, no PyTorch.
//
// The primitives of the package are one loop over time (docs/mathematics.md, (R), (L) and (A)):
//
//   recurrence               h_t = phi(u_t + W h_{t-1})                          Epilogue::tanh, ::relu
//      with a leak z         h_t = z_t * h_{t-1} + (1 - z_t) * phi(u_t + W h_{t-1})
//   linear_recurrence        y_t = d_t * (v_t + M y_{t-1})                       Epilogue::*_derivative
//   leaky_linear_recurrence  y_t = v_t + z_t * y_{t-1} + d_t * (M y_{t-1})       Epilogue::given_derivative and a leak
//      transposed            y_t = v_t + z_{t-1} * y_{t-1} + Mᵀ (d_{t-1} * y_{t-1})
//
// with M = W diag(mask), or the transpose of that; without a mask M = W. They differ only in what happens to a finished
// sum, so they are one Problem with an Epilogue. In what follows `y` is the state of any.
#pragma once

#include <cstdint>

namespace rnn_ext {

// The 16-bit formats, as they lie in memory; the kernels compute in float.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// What becomes of the sum a = input + M * previous state.
enum class Epilogue : int {
  tanh,              // y = tanh(a)
  relu,              // y = max(a, 0)
  tanh_derivative,   // y = (1 - f^2) a, f the saved tanh output
  relu_derivative,   // y = (f > 0) a, f the saved ReLU output
  given_derivative,  // y = f a
};

constexpr bool uses_factor(Epilogue e) { return e >= Epilogue::tanh_derivative; }
constexpr bool may_leak(Epilogue e) { return !uses_factor(e) || e == Epilogue::given_derivative; }

// What a sequence starts from: zeros, a state y_0 (which M multiplies, and which leaks), or a ready product that
// stands in for M y_0, and with a leak for all that arrives from y_0. The last is how a gradient that arrives at h_n
// enters the adjoint.
enum class Seed : int { none, state, product };

struct Shape {
  int64_t time = 0;      // T, of what is run at least 1
  int64_t batch = 0;     // B, the rows alive at the first step of a packed sequence
  int64_t groups = 0;    // G independent recurrences side by side (directions, heads)
  int64_t hidden = 0;    // H
  int64_t features = 0;  // I, where the kernel projects the input itself; 0: it is given
  bool ragged = false;   // whether sequences end before T
};

// Which rows live when. Rows are numbered so that longer sequences come first; row i lives at time t
// if i < alive(t). The one place that knows how ragged data lies in memory.
struct Rows {
  const int64_t* alive_at = nullptr;   // [T], not increasing; null: every row lives throughout
  const int64_t* packed_at = nullptr;  // [T], first packed row of time t; null: no sequence is packed
  const int64_t* order = nullptr;      // [B], the batch index of row i; null: i itself
  // (T, B), by batch index: true where no state passes between the steps t - 1 and t, in either direction, so that
  // zeros stand in its place; null: nowhere. There is no step before the first, whatever its row says.
  const bool* resets = nullptr;
  // [B], the steps of row i; null: all have T. The same as alive_at says, for kernels whose rows keep their own time.
  const int64_t* length = nullptr;

  constexpr bool ragged() const { return alive_at != nullptr; }
  constexpr bool padded() const { return packed_at == nullptr; }
  constexpr int64_t batch_index(int64_t i) const { return order ? order[i] : i; }
};

// A (T, B, G*H) or packed (N, G*H) array whose last dimension is contiguous; group g is the slice
// [g*H, (g+1)*H) of it. A null pointer stands for zeros.
//
// On a GPU all sequences of a problem are packed, or none is. On the CPU some may be: so a padded batch's gradient is
// made without its padding, for the GEMMs that follow (cpu/gradient.cpp).
template <class T>
struct Sequence {
  static constexpr int64_t kPacked = -1;  // in place of time_stride, which is never negative

  T* data = nullptr;
  int64_t time_stride = 0;
  int64_t row_stride = 0;
  // Steps by which each group's begins after that of the group before it: two directions' gradient takes parts of the
  // time from either end (cpu/gradient.cpp). On the CPU, for an input and a factor that are not packed.
  int64_t lag = 0;

  constexpr bool packed() const { return time_stride == kPacked; }
  T* at(const Rows& rows, int64_t t) const {
    return data + (packed() ? rows.packed_at[t] * row_stride : t * time_stride);
  }
  // Row i of those at a time, from their first on.
  constexpr int64_t offset(const Rows& rows, int64_t i) const {
    return (packed() ? i : rows.batch_index(i)) * row_stride;
  }
  T* at(const Rows& rows, int64_t t, int64_t i) const { return at(rows, t) + offset(rows, i); }
};

// A (G, B, H) array, last dimension contiguous: one state per group and sequence.
template <class T>
struct States {
  T* data = nullptr;
  int64_t group_stride = 0;
  int64_t row_stride = 0;

  constexpr T* at(int64_t group, int64_t row) const { return data + group * group_stride + row * row_stride; }
};

// A (G*H, H) matrix, or (G*H, I); one of its strides is 1.
template <class T>
struct Weight {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

// In place of an input u: u_t = W_ih x_t + b_ih + b_hh, which the kernel makes as it goes. For an M that is not
// transposed, and kernels that can (cpu/projection.inl).
template <class T>
struct Projection {
  Sequence<const T> x;      // (T, B, I), or packed (N, I); null: u is given
  Weight<T> weight;         // (G*H, I)
  const T* b_ih = nullptr;  // (G*H), contiguous; both or neither null
  const T* b_hh = nullptr;
};

template <class T>
struct Problem {
  Shape shape;
  Rows rows;
  Epilogue epilogue = Epilogue::tanh;
  Seed seed_kind = Seed::none;
  bool transpose = false;              // multiply with W transposed
  const int64_t* direction = nullptr;  // [G], +1 forward in time, -1 reversed
  Weight<T> weight;
  Sequence<const T> input;    // u or v
  Projection<T> projection;   // or what u is made of
  Sequence<const T> factor;   // f, for the epilogues that use one
  Sequence<const T> leak;     // z; or
  Sequence<const bool> kept;  // the same where it is 0 or 1; both null: none leaks
  States<const T> seed;
  States<const T> mask;
  Sequence<T> output;  // every state; zeros where a padded row has ended
  States<T> last;      // each row's own last state

  // M = W diag(mask) masks what it multiplies, its transpose diag(mask) Wᵀ the products.
  constexpr bool masks_states() const { return mask.data && !transpose; }
  constexpr bool masks_sums() const { return mask.data && transpose; }
  constexpr bool leaks() const { return leak.data || kept.data; }
};

}  // namespace rnn_ext
