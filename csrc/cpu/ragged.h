// A plain layer's sequences as the matrices that its GEMMs take: one row a token, without padding.
#pragma once

#include "../op.h"

namespace rnn_ext::cpu {

// (T, B, features) as a matrix of T * B rows; packed it is one.
Tensor rows_of(const Tensor& sequence);
// All of a ragged sequence's rows, as a matrix: of a padded one only what is not padding.
Tensor rows_of(const Tensor& sequence, const std::optional<OwnedRows>& ragged);

// Of a ragged call, or null. Sequences with two dimensions are packed, with `lengths` those that this makes itself.
std::optional<OwnedRows> ragged_rows(const Tensor& x, const std::optional<Tensor>& batch_sizes,
                                     const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset);

// The rows of the steps from `first` on, packed: some columns of them, `back` steps before. `sequence` has unit stride.
Tensor packed_rows(const Tensor& sequence, const OwnedRows& rows, int64_t first, int64_t back, int64_t column,
                   int64_t columns);

// A copy of a matrix with unit stride, in which there are zeros where a row is one of `resets`.
Tensor without(const bool* resets, const Tensor& m);

// A group's states, a matrix of all sequences' in each of some steps, each multiplied by its sequence's part of a mask,
// (G, B, H) with unit stride; of a ragged batch the steps are all but the first.
Tensor masked(const Tensor& states, const Tensor& mask, int64_t group, const std::optional<OwnedRows>& ragged);

// A new padded sequence, in memory by step or by sequence, as x is.
Tensor empty_padded(const Tensor& x, int64_t columns);
// Packed rows in one; zeros where a sequence has ended.
Tensor padded_rows(const Tensor& packed, const OwnedRows& rows, const Tensor& x);

}  // namespace rnn_ext::cpu
