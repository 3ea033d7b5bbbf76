// The matrix products and sums around the kernels: PyTorch's GEMMs, on matrices that are views of tensors' memory.
#pragma once

#include "../op.h"

namespace rnn_ext::cpu {

// Whether PyTorch has GEMMs for a format that are made for this CPU: for 16 bits oneDNN's, which want AVX-512 and its
// BF16 or FP16 extension, or Arm's instructions. Without, they are plain loops, which take 3 to 40 times as long as
// sgemm; or, for bfloat16 on other AVX-512 machines, oneDNN's emulation, 4 to 10 times.
bool has_gemm(torch::headeronly::ScalarType dtype);

// A view of t's memory, `offset` elements after its first.
Tensor view(const Tensor& t, Extents sizes, Extents strides, int64_t offset = 0);
// As a matrix that begins `offset` elements after its first.
Tensor matrix(const Tensor& t, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
              int64_t offset = 0);

Tensor transposed(const Tensor& m);
Tensor rows_of(const Tensor& m, int64_t begin, int64_t end);
Tensor columns_of(const Tensor& m, int64_t begin, int64_t end);

// out = a b; or, where `add`, out += a b.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool add = false);

// New tensors: a + b; a times b, element by element; and the matrices' product a b.
Tensor sum(const Tensor& a, const Tensor& b);
Tensor times(const Tensor& a, const Tensor& b);
Tensor product(const Tensor& a, const Tensor& b);

// total += s^T x, a weight's gradient, of rows by the thousand; or what it begins with. Of its own, and not in its
// place among others': where memory is aligned otherwise, a GEMM may give other bits.
void add_product_of_columns(std::optional<Tensor>& total, const Tensor& s, const Tensor& x);

// out += a b, by a product and a sum. As nn.RNN's directions are, so one direction's product is added to the other's:
// in a single one sums are twice as long, and the error was up to 2.8 times as large.
void add_product(const Tensor& out, const Tensor& a, const Tensor& b);
// out = s w, the sum of what each group's columns of s contribute, all groups of which have `hidden` of them.
void multiply_by_group(const Tensor& out, const Tensor& s, const Tensor& w, int64_t hidden);

// The sum of a matrix's rows.
Tensor sum_of_rows(const Tensor& m);

// (G, B, H) states, each group's by its own of the matrices in w, which is (G*H, H).
Tensor batched_product(const Tensor& states, const Tensor& w);

}  // namespace rnn_ext::cpu
