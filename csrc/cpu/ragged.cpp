#include "ragged.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "gemm.h"

namespace rnn_ext::cpu {

namespace {

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

}  // namespace

Tensor rows_of(const Tensor& sequence) {
  if (sequence.dim() == 2) return sequence;
  const int64_t steps = sequence.size(0), batch = sequence.size(1);
  if (steps > 1 && batch > 1 && sequence.stride(0) != batch * sequence.stride(1))
    return rows_of(torch::stable::contiguous(sequence));
  const int64_t row_stride = batch > 1 ? sequence.stride(1) : sequence.stride(0);
  return matrix(sequence, steps * batch, sequence.size(2), row_stride, sequence.stride(2));
}

std::optional<OwnedRows> ragged_rows(const Tensor& x, const std::optional<Tensor>& batch_sizes,
                                     const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset) {
  STD_TORCH_CHECK(!(batch_sizes && lengths), "batch_sizes and lengths exclude each other");
  STD_TORCH_CHECK(!(batch_sizes && reset), "reset is for padded sequences; it excludes batch_sizes");
  if (batch_sizes) return rows_of_packed(*batch_sizes, x.size(0));
  if (!lengths) return std::nullopt;
  OwnedRows rows = rows_of_lengths(*lengths, x.size(0), x.size(1));
  rows.pack();
  return rows;
}

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

Tensor without(const bool* resets, const Tensor& m) {
  const Tensor kept = empty(m, {m.size(0), m.size(1)});
  const int64_t bytes = m.size(1) * m.element_size(), stride = m.stride(0) * m.element_size();
  const char* from = static_cast<const char*>(m.const_data_ptr());
  char* to = static_cast<char*>(kept.mutable_data_ptr());
  for (int64_t r = 0; r < m.size(0); ++r, from += stride, to += bytes)
    resets[r] ? std::memset(to, 0, bytes) : std::memcpy(to, from, bytes);
  return kept;
}

Tensor masked(const Tensor& states, const Tensor& mask, int64_t group, const std::optional<OwnedRows>& ragged) {
  const int64_t batch = mask.size(1), hidden = mask.size(2);
  const int64_t steps = ragged ? ragged->alive_at.size() : states.size(0) / std::max<int64_t>(1, batch);
  const Tensor all = view(mask, {steps, batch, hidden}, {0, mask.stride(1), 1}, group * mask.stride(0));
  if (ragged) return times(states, packed_rows(all, *ragged, 1, 0, 0, hidden));
  const int64_t row = states.stride(0);
  return rows_of(times(view(states, {steps, batch, hidden}, {batch * row, row, states.stride(1)}), all));
}

Tensor rows_of(const Tensor& sequence, const std::optional<OwnedRows>& ragged) {
  if (!ragged || sequence.dim() == 2) return rows_of(sequence);
  return packed_rows(with_unit_stride(sequence), *ragged, 0, 0, 0, sequence.size(2));
}

Tensor empty_padded(const Tensor& x, int64_t columns) {
  const int64_t steps = x.size(0), batch = x.size(1);
  if (x.stride(1) <= x.stride(0)) return empty_sequence(x, columns);
  return view(empty(x, {batch, steps, columns}), {steps, batch, columns}, {columns, steps * columns, 1});
}

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

}  // namespace rnn_ext::cpu
