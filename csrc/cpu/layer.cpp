// A whole layer as one op on the CPU, and its first-order gradient as another: at B = 1 a call of PyTorch costs about
// as much as the work that it asks for, so what rnn_ext/layer.py composes of a dozen calls is here the same formulas in
// one. Only for what is called most: no reset, mask or leak, and gradients of first order.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>

#include "cpu/gemm.h"
#include "cpu/planner.h"
#include "cpu/runs.h"

namespace rnn_ext {
namespace {

using cpu::batched_product, cpu::matrix, cpu::multiply, cpu::multiply_by_group, cpu::product, cpu::sum, cpu::transposed;
using torch::headeronly::ScalarType;

// (T, B, features) as a matrix of T * B rows; packed it is one.
Tensor rows_of(const Tensor& sequence) {
  if (sequence.dim() == 2) return sequence;
  const int64_t steps = sequence.size(0), batch = sequence.size(1);
  if (steps > 1 && batch > 1 && sequence.stride(0) != batch * sequence.stride(1))
    return rows_of(torch::stable::contiguous(sequence));
  const int64_t row_stride = batch > 1 ? sequence.stride(1) : sequence.stride(0);
  return matrix(sequence, steps * batch, sequence.size(2), row_stride, sequence.stride(2));
}

// Of a ragged call, or null. Sequences with two dimensions are packed, with `lengths` those that this makes itself.
std::optional<OwnedRows> ragged_rows(const Tensor& x, const std::optional<Tensor>& batch_sizes,
                                     const std::optional<Tensor>& lengths) {
  STD_TORCH_CHECK(!(batch_sizes && lengths), "batch_sizes and lengths exclude each other");
  if (batch_sizes) return rows_of_packed(*batch_sizes, x.size(0));
  if (!lengths) return std::nullopt;
  OwnedRows rows = rows_of_lengths(*lengths, x.size(0), x.size(1));
  rows.pack();
  return rows;
}

// Calls visit(row, n, at, stride) for all rows of the steps from `first` on: n of them from `row` on in a packed
// sequence are in `sequence` those of `back` steps before, from `at` on, in bytes. As many at once as are evenly
// spaced.
template <class Visit>
void for_each_run(const Tensor& sequence, const OwnedRows& rows, int64_t first, int64_t back, Visit visit) {
  const bool packed = sequence.dim() == 2, in_order = packed || rows.order.empty();
  const int64_t bytes = sequence.element_size(), stride = sequence.stride(packed ? 0 : 1) * bytes;
  int64_t row = 0;
  for (size_t t = first; t < rows.alive_at.size(); ++t) {
    const int64_t alive = rows.alive_at[t], before = static_cast<int64_t>(t) - back;
    const int64_t at = packed ? rows.packed_at[before] * stride : before * sequence.stride(0) * bytes;
    if (in_order)
      visit(row, alive, at, stride);
    else
      for (int64_t i = 0; i < alive; ++i) visit(row + i, 1, at + rows.order[i] * stride, stride);
    row += alive;
  }
}

// n rows of so many bytes to where they lie otherwise.
void copy_rows(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n, int64_t bytes) {
  if (to_stride == bytes && from_stride == bytes)
    std::memcpy(to, from, n * bytes);
  else
    for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, bytes);
}

// The rows of the steps from `first` on, packed: some columns of them, `back` steps before. `sequence` has unit stride.
Tensor packed_rows(const Tensor& sequence, const OwnedRows& rows, int64_t first, int64_t back, int64_t column,
                   int64_t columns) {
  const Tensor packed = empty(sequence, {rows.count() - (first ? rows.batch() : 0), columns});
  const int64_t bytes = columns * sequence.element_size();
  const char* from = static_cast<const char*>(sequence.const_data_ptr()) + column * sequence.element_size();
  char* to = static_cast<char*>(packed.mutable_data_ptr());
  for_each_run(sequence, rows, first, back, [&](int64_t row, int64_t n, int64_t at, int64_t stride) {
    copy_rows(to + row * bytes, bytes, from + at, stride, n, bytes);
  });
  return packed;
}

// All of them, as a matrix: of a padded sequence only what is not padding.
Tensor rows_of(const Tensor& sequence, const std::optional<OwnedRows>& ragged) {
  if (!ragged || sequence.dim() == 2) return rows_of(sequence);
  return packed_rows(with_unit_stride(sequence), *ragged, 0, 0, 0, sequence.size(2));
}

// A new padded sequence, in memory by step or by sequence, as x is.
Tensor empty_padded(const Tensor& x, int64_t columns) {
  const int64_t steps = x.size(0), batch = x.size(1);
  if (x.stride(1) <= x.stride(0)) return empty_sequence(x, columns);
  const int64_t sizes[] = {steps, batch, columns}, strides[] = {columns, steps * columns, 1};
  AtenTensorHandle by_step = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(empty(x, {batch, steps, columns}).get(), 3, sizes, strides, 0, &by_step));
  return Tensor(by_step);
}

// And back, to padded rows that lie as x does; zeros where a sequence has ended.
Tensor padded_rows(const Tensor& packed, const OwnedRows& rows, const Tensor& x) {
  const Tensor padded = empty_padded(x, packed.size(1));
  const int64_t bytes = padded.size(2) * padded.element_size();
  const char* from = static_cast<const char*>(packed.const_data_ptr());
  char* to = static_cast<char*>(padded.mutable_data_ptr());
  for_each_run(padded, rows, 0, 0, [&](int64_t row, int64_t n, int64_t at, int64_t stride) {
    copy_rows(to + at, stride, from + row * bytes, bytes, n, bytes);
  });
  const int64_t step = padded.stride(0) * padded.element_size(), row = padded.stride(1) * padded.element_size();
  const Rows view = rows.view();
  for (size_t t = 0; t < rows.alive_at.size(); ++t)
    for (int64_t i = rows.alive_at[t]; i < padded.size(1); ++i)
      std::memset(to + t * step + view.batch_index(i) * row, 0, bytes);
  return padded;
}

// b_ih + b_hh in each row of a contiguous matrix.
template <class T>
void fill_rows(const Tensor& out, const Tensor& b_ih, const Tensor& b_hh) {
  const int64_t rows = out.size(0), columns = out.size(1);
  if (rows == 0) return;
  const T *a = static_cast<const T*>(b_ih.const_data_ptr()), *b = static_cast<const T*>(b_hh.const_data_ptr());
  T* const first = static_cast<T*>(out.mutable_data_ptr());
  for (int64_t c = 0; c < columns; ++c) first[c] = a[c * b_ih.stride(0)] + b[c * b_hh.stride(0)];
  for (int64_t r = 1; r < rows; ++r) std::copy(first, first + columns, first + r * columns);
}

void fill_rows(const Tensor& out, const Tensor& b_ih, const Tensor& b_hh) {
  switch (out.scalar_type()) {
    case ScalarType::Float: return fill_rows<float>(out, b_ih, b_hh);
    case ScalarType::Double: return fill_rows<double>(out, b_ih, b_hh);
    case ScalarType::Half: return fill_rows<torch::headeronly::Half>(out, b_ih, b_hh);
    case ScalarType::BFloat16: return fill_rows<torch::headeronly::BFloat16>(out, b_ih, b_hh);
    default: STD_TORCH_CHECK(false, "plain_layer takes float32, float64, float16 and bfloat16 tensors");
  }
}

// The sum of a contiguous matrix's rows, by blocks, so that rounding errors do not grow with the number of rows.
template <class T>
Tensor small_sum_of_rows(const Tensor& m) {
  constexpr int64_t kBlock = 32;
  const int64_t rows = m.size(0), columns = m.size(1);
  const T* const data = static_cast<const T*>(m.const_data_ptr());
  const Tensor sum = empty(m, {columns});
  T* const total = static_cast<T*>(sum.mutable_data_ptr());
  std::fill(total, total + columns, T(0));
  std::vector<T> block(columns);
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    std::fill(block.begin(), block.end(), T(0));
    for (int64_t r = begin; r < std::min(rows, begin + kBlock); ++r)
      for (int64_t c = 0; c < columns; ++c) block[c] += data[r * columns + c];
    for (int64_t c = 0; c < columns; ++c) total[c] += block[c];
  }
  return sum;
}

// Likewise of any size. PyTorch's sum has threads and the 16-bit formats, and costs a dozen microseconds where its code
// is not in the cache, in which one thread is through with 2^15 elements.
Tensor sum_of_rows(const Tensor& m) {
  STD_TORCH_CHECK(m.dim() == 2, "m must have 2 dimensions, got ", m.dim());
  if (m.numel() <= 1 << 15 && m.is_contiguous()) {
    if (m.scalar_type() == ScalarType::Float) return small_sum_of_rows<float>(m);
    if (m.scalar_type() == ScalarType::Double) return small_sum_of_rows<double>(m);
  }
  return torch::stable::sum(m, Sizes{0});
}

// One direction after the other, of groups that alternate.
Sizes alternating(const Tensor& w_hh, bool reversed) {
  Sizes direction(w_hh.size(1) == 0 ? 0 : w_hh.size(0) / w_hh.size(1));
  for (size_t g = 0; g < direction.size(); ++g) direction[g] = (g % 2 == 1) == reversed ? 1 : -1;
  return direction;
}

// What the recurrence itself does not see; the rest is checked there (op.cpp).
void check_projection(const Tensor& x, int64_t dims, const Tensor& w_ih, const Tensor& w_hh,
                      const std::optional<Tensor>& b_ih, const std::optional<Tensor>& b_hh) {
  STD_TORCH_CHECK(x.dim() == dims, "x must have ", dims, " dimensions, got ", x.dim());
  check_shape(w_ih, {w_hh.size(0), x.size(dims - 1)}, "w_ih");
  STD_TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "b_ih and b_hh must both be given, or neither");
  if (b_ih) check_shape(*b_ih, {w_hh.size(0)}, "b_ih");
  if (b_hh) check_shape(*b_hh, {w_hh.size(0)}, "b_hh");
  auto fits = [&](const Tensor& t) { return t.is_cpu() && t.scalar_type() == w_hh.scalar_type(); };
  STD_TORCH_CHECK(fits(x) && fits(w_ih) && (!b_ih || fits(*b_ih)) && (!b_hh || fits(*b_hh)),
                  "all of the tensors must be on the CPU and of w_hh's dtype");
}

// What the kernel reads of them: x by rows, biases that are contiguous, and a matrix by either.
ProjectionOf readable(const Tensor& x, const Tensor& w_ih, const std::optional<Tensor>& b_ih,
                      const std::optional<Tensor>& b_hh) {
  auto bias = [](const std::optional<Tensor>& b) { return b ? std::optional(with_unit_stride(*b)) : std::nullopt; };
  return {with_unit_stride(x), w_ih.stride(0) == 1 ? w_ih : with_unit_stride(w_ih), bias(b_ih), bias(b_hh)};
}

Results plain_layer(const Tensor& x, const std::optional<Tensor>& h0, const Tensor& w_ih, const Tensor& w_hh,
                    const std::optional<Tensor>& b_ih, const std::optional<Tensor>& b_hh,
                    const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths, bool relu,
                    bool reversed) {
  check_projection(x, batch_sizes ? 2 : 3, w_ih, w_hh, b_ih, b_hh);
  const std::optional<OwnedRows> rows = ragged_rows(x, batch_sizes, lengths);
  const Tensor h = lengths ? empty_padded(x, w_ih.size(0)) : empty_sequence(x, w_ih.size(0));
  const Seed kind = h0 ? Seed::state : Seed::none;
  const Epilogue phi = relu ? Epilogue::relu : Epilogue::tanh;
  const Sizes direction = alternating(w_hh, reversed);
  Call c{h, h0, w_hh, {}, {}, {}, {}, {}, {}, phi, kind, false, direction, h};
  c.rows = rows ? &*rows : nullptr;
  const cpu::Way way =
      cpu::way_of(rows ? rows->count() : x.size(0) * x.size(1), rows ? rows->batch() : x.size(1), w_ih, w_hh);
  c.by_rows = way.by_rows;
  std::optional<ProjectionOf> projection;
  if (way.projects) {
    projection = readable(x, w_ih, b_ih, b_hh);
    c.projection = &*projection;
  } else {
    // In h's place, or of a padded batch only what is not padding.
    if (lengths) c.input = empty(x, {rows->count(), w_ih.size(0)});
    const Tensor u_rows = rows_of(*c.input);
    if (b_ih) fill_rows(u_rows, *b_ih, *b_hh);
    multiply(u_rows, rows_of(x, rows), transposed(w_ih), /*add=*/b_ih.has_value());
  }
  return run_call(cpu::kRuns, std::move(c));
}

// Steps [begin, end) of a padded sequence.
std::optional<Tensor> steps_of(const std::optional<Tensor>& sequence, int64_t begin, int64_t end) {
  if (!sequence || sequence->dim() == 2 || end - begin == sequence->size(0)) return sequence;
  const int64_t sizes[] = {end - begin, sequence->size(1), sequence->size(2)};
  const int64_t strides[] = {sequence->stride(0), sequence->stride(1), sequence->stride(2)};
  AtenTensorHandle part = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(sequence->get(), 3, sizes, strides, begin * strides[0], &part));
  return Tensor(part);
}

// Into how many parts of the time its gradient is cut: s, which nobody wants to keep, then stays in L2 until the
// products have read it, and takes no memory that would be paged in anew in each call. A part has rows enough that to
// pack W for each takes 1 % of the time. Not in 16 bits, in which each part's sum would be rounded.
int64_t parts_of(const Tensor& h, int64_t rows) {
  constexpr int64_t kRows = 2048;
  if (h.element_size() == 2) return 1;
  const int64_t in_l2 = this_machine().l2 / 2 / std::max<int64_t>(1, h.size(2) * h.element_size());
  return std::clamp<int64_t>(rows / std::max(kRows, in_l2), 1, std::max<int64_t>(1, h.size(0)));
}

using Gradient = std::optional<Tensor>;

// total += a b, or what it begins with.
void add_product(Gradient& total, const Tensor& a, const Tensor& b) {
  if (!total)
    total = product(a, b);
  else if (a.size(1) > 0)
    multiply(*total, a, b, /*add=*/true);
}

// The derivative formulas are those of Layer.backward and of what it calls (rnn_ext/layer.py, ops.py, transition.py).
std::tuple<Gradient, Gradient, Gradient, Gradient, Gradient> plain_layer_backward(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_n, const Tensor& x, const std::optional<Tensor>& h0,
    const Tensor& w_ih, const Tensor& w_hh, const Tensor& h, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& lengths, bool relu, bool reversed, bool need_x, bool need_h0, bool need_w_ih,
    bool need_w_hh, bool need_b) {
  check_projection(x, batch_sizes ? 2 : 3, w_ih, w_hh, {}, {});
  const std::optional<OwnedRows> ragged = ragged_rows(x, batch_sizes, lengths);
  const int64_t rows = ragged ? ragged->count() : x.size(0) * x.size(1), batch = ragged ? ragged->batch() : x.size(1);
  const int64_t hidden = w_hh.size(1), columns = w_hh.size(0);
  const Sizes direction = alternating(w_hh, reversed), backwards = alternating(w_hh, !reversed);
  const Epilogue derivative = relu ? Epilogue::relu_derivative : Epilogue::tanh_derivative;
  if (batch_sizes)
    check_shape(h, {rows, columns}, "h");
  else
    check_shape(h, {x.size(0), batch, columns}, "h");
  if (g && !batch_sizes) check_shape(*g, {x.size(0), batch, columns}, "g");
  if (h0) check_shape(*h0, {static_cast<int64_t>(direction.size()), batch, hidden}, "h0");

  const Tensor unit_h = with_unit_stride(h), h_rows = lengths ? unit_h : rows_of(unit_h);
  Gradient x_bar, h0_bar, w_ih_bar, b_bar, s_first;
  std::vector<Gradient> w_hh_bars(direction.size());
  if (need_x) x_bar = lengths ? empty(x, {rows, w_ih.size(1)}) : empty_sequence(x, w_ih.size(1));
  // Two directions go through time the other way round, and a ragged batch is packed.
  const int64_t steps = x.size(0), parts = ragged || direction.size() > 1 ? 1 : parts_of(h, rows);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t part = reversed ? i : parts - 1 - i, begin = part * steps / parts, end = (part + 1) * steps / parts;
    const Seed kind = i > 0 ? Seed::state : g_n ? Seed::product : Seed::none;
    const Gradient g_part = steps_of(g, begin, end), h_part = steps_of(h, begin, end), seed = i > 0 ? s_first : g_n;
    Call c{g_part, seed, w_hh, h_part, {}, {}, {}, {}, {}, derivative, kind, true, backwards};
    c.rows = ragged ? &*ragged : nullptr;
    // Without the padding of h and g: what the GEMMs then take of x and h has none either, where there may be NaN.
    if (lengths) c.output = empty(h, {rows, columns});
    Tensor s = h;
    std::tie(s, s_first) = run_call(cpu::kRuns, std::move(c));

    const Tensor s_rows = rows_of(s);
    if (need_w_ih) add_product(w_ih_bar, transposed(s_rows), rows_of(*steps_of(x, begin, end), ragged));
    if (need_b) b_bar = b_bar ? sum(*b_bar, sum_of_rows(s_rows)) : sum_of_rows(s_rows);
    if (need_x) multiply_by_group(rows_of(*steps_of(x_bar, begin, end)), s_rows, w_ih, hidden);
    for (size_t group = 0; need_w_hh && group < direction.size(); ++group) {
      // s_t against the state before it, in the group's own time: of all steps but the first with those one before.
      const bool forward = direction[group] == 1;
      const int64_t column = group * hidden;
      const int64_t from = forward ? std::max<int64_t>(begin, 1) : begin;
      const int64_t to = forward ? end : std::min(end, steps - 1);
      auto before = [&](const Tensor& t, bool one_before, int64_t first) {
        if (ragged && (one_before || t.dim() == 3)) return packed_rows(t, *ragged, 1, one_before, column, hidden);
        const int64_t count = std::max<int64_t>(0, ragged ? rows - batch : (to - from) * batch);
        const int64_t row = ragged ? (one_before ? 0 : batch) : first * batch;
        return matrix(t, count, hidden, t.stride(0), t.stride(1), row * t.stride(0) + column * t.stride(1));
      };
      // Of its own, and then to its place: where memory is aligned otherwise, a GEMM may give other bits.
      add_product(w_hh_bars[group], transposed(before(s_rows, !forward, from - begin)),
                  before(h_rows, forward, forward ? from - 1 : from + 1));
    }
  }
  if (lengths && need_x) x_bar = padded_rows(*x_bar, *ragged, x);
  if (need_h0) h0_bar = batched_product(*s_first, w_hh);
  Gradient w_hh_bar;
  for (size_t group = 0; need_w_hh && group < direction.size(); ++group) {
    const Tensor& block = *w_hh_bars[group];
    if (h0) {
      const Tensor first = matrix(*s_first, batch, hidden, hidden, 1, group * batch * hidden);
      const Tensor before = matrix(*h0, batch, hidden, h0->stride(1), h0->stride(2), group * h0->stride(0));
      multiply(block, transposed(first), before, /*add=*/true);
    }
    if (direction.size() == 1) {
      w_hh_bar = block;
    } else {
      if (group == 0) w_hh_bar = empty(w_hh, {columns, hidden});
      const size_t bytes = block.numel() * block.element_size();
      std::memcpy(static_cast<char*>(w_hh_bar->mutable_data_ptr()) + group * bytes, block.const_data_ptr(), bytes);
    }
  }
  return {x_bar, h0_bar, w_ih_bar, w_hh_bar, b_bar};
}

}  // namespace
}  // namespace rnn_ext

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("sum_of_rows", TORCH_BOX(rnn_ext::sum_of_rows));
  m.impl("plain_layer", TORCH_BOX(rnn_ext::plain_layer));
  m.impl("plain_layer_backward", TORCH_BOX(rnn_ext::plain_layer_backward));
}
