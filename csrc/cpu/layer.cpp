// A whole layer as one op on the CPU, and its first-order gradient (gradient.cpp) as another: at B = 1 a call of
// PyTorch costs about as much as the work that it asks for, so what rnn_ext/layer.py composes of a dozen calls is here
// the same formulas in one. Only for what is called most: no leak, and gradients of first order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/ragged.h"
#include "cpu/runs.h"

namespace rnn_ext::cpu {
namespace {

using torch::headeronly::ScalarType;

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

}  // namespace

Sizes alternating(const Tensor& w_hh, bool reversed) {
  Sizes direction(w_hh.size(0) / w_hh.size(1));
  for (size_t g = 0; g < direction.size(); ++g) direction[g] = (g % 2 == 1) == reversed ? 1 : -1;
  return direction;
}

void check_projection(const Tensor& x, int64_t dims, const Tensor& w_ih, const Tensor& w_hh,
                      const std::optional<Tensor>& b_ih, const std::optional<Tensor>& b_hh) {
  STD_TORCH_CHECK(x.dim() == dims, "x must have ", dims, " dimensions, got ", x.dim());
  STD_TORCH_CHECK(w_hh.dim() == 2 && w_hh.numel() > 0, "w_hh must be a matrix (G*H, H) that is not empty, got ",
                  w_hh.dim(), " dimensions and ", w_hh.numel(), " elements");
  check_shape(w_ih, {w_hh.size(0), x.size(dims - 1)}, "w_ih");
  STD_TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "b_ih and b_hh must both be given, or neither");
  if (b_ih) check_shape(*b_ih, {w_hh.size(0)}, "b_ih");
  if (b_hh) check_shape(*b_hh, {w_hh.size(0)}, "b_hh");
  auto fits = [&](const Tensor& t) { return t.is_cpu() && t.scalar_type() == w_hh.scalar_type(); };
  STD_TORCH_CHECK(fits(x) && fits(w_ih) && (!b_ih || fits(*b_ih)) && (!b_hh || fits(*b_hh)),
                  "all of the tensors must be on the CPU and of w_hh's dtype");
}

namespace {

// What the kernel reads of them: x by rows, biases that are contiguous, and a matrix by either.
ProjectionOf readable(const Tensor& x, const Tensor& w_ih, const std::optional<Tensor>& b_ih,
                      const std::optional<Tensor>& b_hh) {
  auto bias = [](const std::optional<Tensor>& b) { return b ? std::optional(with_unit_stride(*b)) : std::nullopt; };
  return {with_unit_stride(x), w_ih.stride(0) == 1 ? w_ih : with_unit_stride(w_ih), bias(b_ih), bias(b_hh)};
}

Results plain_layer(const Tensor& x, const std::optional<Tensor>& h0, const Tensor& w_ih, const Tensor& w_hh,
                    const std::optional<Tensor>& b_ih, const std::optional<Tensor>& b_hh,
                    const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
                    const std::optional<Tensor>& reset, const std::optional<Tensor>& mask, bool relu, bool reversed) {
  check_projection(x, batch_sizes ? 2 : 3, w_ih, w_hh, b_ih, b_hh);
  std::optional<OwnedRows> rows = ragged_rows(x, batch_sizes, lengths, reset);
  const Tensor h = lengths ? empty_padded(x, w_ih.size(0)) : empty_sequence(x, w_ih.size(0));
  const Seed kind = h0 ? Seed::state : Seed::none;
  const Epilogue phi = relu ? Epilogue::relu : Epilogue::tanh;
  const Sizes direction = alternating(w_hh, reversed);
  Call c{h, h0, w_hh, {}, {}, {}, reset, mask, {}, phi, kind, false, direction, h};
  c.rows = rows ? &*rows : nullptr;
  const Way way = way_of(rows ? rows->count() : x.size(0) * x.size(1), rows ? rows->batch() : x.size(1), w_ih, w_hh);
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
  return run_call(kRuns, std::move(c));
}

}  // namespace
}  // namespace rnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("sum_of_rows", TORCH_BOX(rnn_ext::cpu::sum_of_rows));
  m.impl("plain_layer", TORCH_BOX(rnn_ext::cpu::plain_layer));
  m.impl("plain_layer_backward", TORCH_BOX(rnn_ext::cpu::plain_layer_backward));
}
