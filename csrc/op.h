// What the ops of every device have in common: their arguments, checked, and the torch-free problem in them. The op
// glue (this, op.cpp in cpu/ and cuda/, layer.cpp, gradient.cpp, ragged.cpp, gemm.cpp and threads.cpp in cpu/), ops.cpp
// and module.cpp are all that sees PyTorch, and only its stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "recurrence.h"

namespace rnn_ext {

using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
// Up to three, of a tensor; on the stack, since some of these a call are a good part of a short one.
using Extents = std::initializer_list<int64_t>;

// Which rows live when, and the arrays behind it (recurrence.h), on the CPU.
struct OwnedRows {
  std::vector<int64_t> alive_at, packed_at, order;
  const bool* resets = nullptr;

  // Says where each step's rows are in sequences that are packed.
  void pack();
  // Then: those of the first step, and those of all.
  int64_t batch() const { return alive_at.empty() ? 0 : alive_at[0]; }
  int64_t count() const { return alive_at.empty() ? 0 : packed_at.back() + alive_at.back(); }
  // The steps of each row, longest first; empty if all have as many.
  std::vector<int64_t> lengths(int64_t batch) const;
  Rows view() const {
    auto data = [](const std::vector<int64_t>& v) { return v.empty() ? nullptr : v.data(); };
    return {data(alive_at), data(packed_at), data(order), resets};
  }
};

// What the kernel is to make the input of (recurrence.h, Projection), checked and with strides that it takes.
struct ProjectionOf {
  Tensor x, w_ih;
  std::optional<Tensor> b_ih, b_hh;
};

// The arguments of all ops: recurrence is a call whose factor is absent.
struct Call {
  std::optional<Tensor> input;
  std::optional<Tensor> seed;
  Tensor weight;
  std::optional<Tensor> factor;
  std::optional<Tensor> batch_sizes, lengths, reset;
  std::optional<Tensor> mask, leak;
  Epilogue epilogue;
  Seed seed_kind;
  bool transpose;
  const Sizes& direction;
  // Null: a new one. It may be the input: each element is read before it is written.
  std::optional<Tensor> output = {};
  // What the CPU's plain layer asks for. In place of batch_sizes and lengths, rows of which sequences with two
  // dimensions are packed and those with three are not. What the input is made of, which is then nothing but its shape.
  // And weights as they lie (cpu/rows.inl), which are contiguous.
  OwnedRows* rows = nullptr;
  const ProjectionOf* projection = nullptr;
  bool by_rows = false;
  // Of input and factor (recurrence.h), of which only the first group's steps are looked at here.
  int64_t lag = 0;
};

// t, or a copy of it, in which the last dimension is contiguous.
Tensor with_unit_stride(const Tensor& t);

// A contiguous tensor of the dtype and device of `like`.
Tensor empty(const Tensor& like, Extents sizes);
// A sequence of as many rows as another, (T, B, columns) or packed.
Tensor empty_sequence(const Tensor& like, int64_t columns);

template <class T>
Sequence<T> sequence_of(const Tensor& t) {
  const bool packed = t.dim() == 2;
  auto* data = static_cast<T*>(std::is_const_v<T> ? const_cast<void*>(t.const_data_ptr()) : t.mutable_data_ptr());
  return {data, packed ? Sequence<T>::kPacked : t.stride(0), t.stride(packed ? 0 : 1)};
}

template <class T>
States<T> states_of(const Tensor& t) {
  auto* data = static_cast<T*>(std::is_const_v<T> ? const_cast<void*>(t.const_data_ptr()) : t.mutable_data_ptr());
  return {data, t.stride(0), t.stride(1)};
}

// The problem but for its rows and directions, which lie where its device wants them.
template <class T>
Problem<T> problem_of(const Call& c, const Shape& shape, const Tensor& output, const Tensor& last) {
  Problem<T> problem;
  problem.shape = shape;
  problem.epilogue = c.epilogue;
  problem.seed_kind = c.seed_kind;
  problem.transpose = c.transpose;
  problem.weight = {static_cast<const T*>(c.weight.const_data_ptr()), c.weight.stride(0), c.weight.stride(1)};
  if (c.input) problem.input = sequence_of<const T>(*c.input);
  if (c.factor) problem.factor = sequence_of<const T>(*c.factor);
  problem.input.lag = problem.factor.lag = c.lag;
  if (c.leak && c.leak->scalar_type() == torch::headeronly::ScalarType::Bool)
    problem.kept = sequence_of<const bool>(*c.leak);
  else if (c.leak)
    problem.leak = sequence_of<const T>(*c.leak);
  if (c.seed) problem.seed = states_of<const T>(*c.seed);
  if (c.mask) problem.mask = states_of<const T>(*c.mask);
  problem.output = sequence_of<T>(output);
  problem.last = states_of<T>(last);
  return problem;
}

// What a device does with a call whose arguments are checked, of one dtype.
template <class T>
using Run = void (*)(const Call&, const Shape&, const OwnedRows&, const Tensor& output, const Tensor& last);

struct Runs {
  Run<float> f32;
  Run<double> f64;
  Run<half> f16;
  Run<bfloat16> bf16;
};

using Results = std::tuple<Tensor, Tensor>;

// Raises an error that names the tensor, unless it has that shape.
void check_shape(const Tensor& t, Extents expected, const char* name);
// A bool (T, B) where w is.
void check_reset(const Tensor& reset, const Tensor& w, int64_t steps, int64_t batch);

// The rows of a packed sequence of so many, and of a padded one, from what says how long each is.
OwnedRows rows_of_packed(const Tensor& batch_sizes, int64_t packed_rows);
OwnedRows rows_of_lengths(const Tensor& lengths, int64_t steps, int64_t batch);

// Checks the arguments and runs the call.
Results run_call(const Runs& runs, Call c);

// The ops of ops.cpp on a device.
Results recurrence(const Runs& runs, Tensor u, std::optional<Tensor> h0, Tensor w, std::optional<Tensor> batch_sizes,
                   std::optional<Tensor> lengths, std::optional<Tensor> reset, std::optional<Tensor> mask,
                   std::optional<Tensor> leak, std::string nonlinearity, Sizes direction);
Results linear_recurrence(const Runs& runs, std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                          Tensor factor, std::optional<Tensor> batch_sizes, std::optional<Tensor> lengths,
                          std::optional<Tensor> reset, std::optional<Tensor> mask, std::string derivative,
                          std::string seed_kind, bool transpose, Sizes direction);
Results leaky_linear_recurrence(const Runs& runs, std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                                Tensor factor, Tensor leak, std::optional<Tensor> batch_sizes,
                                std::optional<Tensor> lengths, std::optional<Tensor> reset, std::optional<Tensor> mask,
                                std::string seed_kind, bool transpose, Sizes direction);

// `op` as a function of the schema's arguments alone, to be registered for the device that `runs` is of.
template <const Runs& runs, auto op>
struct On;
template <const Runs& runs, class... Arguments, Results (*op)(const Runs&, Arguments...)>
struct On<runs, op> {
  static Results call(Arguments... arguments) { return op(runs, std::move(arguments)...); }
};

}  // namespace rnn_ext
