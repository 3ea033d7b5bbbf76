// The matrix products around the kernels: PyTorch's GEMMs, on matrices that are views of tensors' memory.
#pragma once

#include "../op.h"

namespace rnn_ext::cpu {

// A view of t's memory as a matrix that begins `offset` elements after its first.
Tensor matrix(const Tensor& t, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
              int64_t offset = 0);

Tensor transposed(const Tensor& m);

// out = a b; or, where `add`, out += a b.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool add = false);

// a b, a new tensor.
Tensor product(const Tensor& a, const Tensor& b);

// out += a.
void add(const Tensor& out, const Tensor& a);

// (G, B, H) states, each group's by its own of the matrices in w, which is (G*H, H).
Tensor batched_product(const Tensor& states, const Tensor& w);

}  // namespace rnn_ext::cpu
