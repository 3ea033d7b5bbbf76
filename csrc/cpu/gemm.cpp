#include "gemm.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "isa.h"

// MKL's own, where that is in PyTorch: how many threads it may have for calls from this thread, 0 for no other number
// than all others have. Returns what that was.
#if defined(__linux__)
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
#else
constexpr int (*MKL_Set_Num_Threads_Local)(int) = nullptr;
#endif

namespace rnn_ext::cpu {

namespace {

using torch::headeronly::ScalarType;

// With fewer columns than a vector has lanes, a BLAS's vectors, which lie along those of x, are mostly empty in s^T x,
// and full in x^T s: on AMD, MKL takes 3 to 30 times as long for the one as for the other. (One column is a vector, and
// no matter.)
constexpr int64_t kFewColumns = 16;

bool few_columns(const Tensor& s, const Tensor& x) {
  return x.size(1) > 1 && x.size(1) < kFewColumns && s.size(1) >= 2 * x.size(1) && s.size(0) >= kFewColumns;
}

// s^T x, a new tensor.
Tensor product_of_columns(const Tensor& s, const Tensor& x) {
  if (!few_columns(s, x)) return product(transposed(s), x);
  Tensor out = empty(s, {s.size(1), x.size(1)});
  return torch::stable::copy_(out, transposed(product(transposed(x), s)));
}

bool supported(const char* query) {
  StableIValue answer[1] = {};
  return torch_call_dispatcher(query, "", answer, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS &&
         torch::stable::detail::to<bool>(answer[0]);
}

// Up to so many multiply-adds, 40 us of one thread, a second one saves a tenth where it is there at once; and where it
// sleeps, or its core is busy with something else, waking it takes several times as long as the product.
constexpr int64_t kWorthThreads = 1 << 21;
// By size alone: a product that had one thread while cores are busy would not have the same bits in every call.

// While this lives, a product of so many multiply-adds has one thread if it is not worth more.
class Threads {
 public:
  explicit Threads(int64_t multiply_adds)
      : limits_(MKL_Set_Num_Threads_Local != nullptr && multiply_adds <= kWorthThreads) {
    if (limits_) before_ = MKL_Set_Num_Threads_Local(1);
  }
  ~Threads() {
    if (limits_) MKL_Set_Num_Threads_Local(before_);
  }
  Threads(const Threads&) = delete;

 private:
  const bool limits_;
  int before_ = 0;
};

void multiply_as_they_are(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  const Threads threads(a.size(0) * a.size(1) * b.size(1));
  TORCH_ERROR_CODE_CHECK(add ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1, 1)
                             : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// From here on a product takes longer than the four more calls of PyTorch that the detour by float costs.
constexpr int64_t kWorthFloat = 1 << 15;
// Rows that go through more than one hand are taken some at a time, 1 MiB of float: enough for a GEMM to run at its
// full rate, still in the cache for the next hand, and as good as no memory.
int64_t rows_at_once(int64_t columns) { return std::max<int64_t>(64, (1 << 18) / (columns + 1)); }

// Plain loops for a row by contiguous columns are dot products, which read the weights once as they lie: half the time
// of a conversion.
bool worth_float(const Tensor& a, const Tensor& b) {
  const bool dots = a.size(0) == 1 && b.stride(0) == 1;
  return !has_gemm(a.scalar_type()) && !dots && a.size(0) * a.size(1) * b.size(1) > kWorthFloat;
}

Tensor empty_float(const Tensor& m) { return torch::stable::new_empty(m, {m.size(0), m.size(1)}, ScalarType::Float); }

// In memory as m is, by rows or by columns.
Tensor in_float(const Tensor& m) {
  if (m.stride(0) == 1 && m.stride(1) != 1) return transposed(in_float(transposed(m)));
  Tensor converted = empty_float(m);
  return torch::stable::copy_(converted, m);
}

// Blocks of rows of a tall product; of a wide sum, as a weight's gradient is, blocks of its terms, into one float sum.
// Rounded once, where the kernels that this stands for round once, too.
void multiply_in_float(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  const int64_t rows = a.size(0), inner = a.size(1), columns = b.size(1);
  const bool tall = rows >= inner;
  const int64_t all = tall ? rows : inner, others = tall ? inner + columns : rows + columns;
  const int64_t block = rows_at_once(others);
  if (tall) {
    const Tensor whole = in_float(b);
    for (int64_t begin = 0; begin < all; begin += block) {
      const int64_t end = std::min(begin + block, all);
      Tensor to = rows_of(out, begin, end);
      const Tensor sums = add ? in_float(to) : empty_float(to);
      multiply_as_they_are(sums, in_float(rows_of(a, begin, end)), whole, add);
      torch::stable::copy_(to, sums);
    }
    return;
  }
  const Tensor sums = add ? in_float(out) : empty_float(out);
  for (int64_t begin = 0; begin < all; begin += block) {
    const int64_t end = std::min(begin + block, all);
    multiply_as_they_are(sums, in_float(columns_of(a, begin, end)), in_float(rows_of(b, begin, end)), add || begin > 0);
  }
  Tensor to = out;
  torch::stable::copy_(to, sums);
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

}  // namespace

bool has_gemm(ScalarType dtype) {
  static const bool bf16 = supported("mkldnn::_is_mkldnn_bf16_supported");
  static const bool f16 = supported("mkldnn::_is_mkldnn_fp16_supported");
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) return true;
#if defined(__x86_64__)
  // A CPU that is told to be an older one has what that would have.
  if (current_isa().vector_bytes < 64) return false;
  if (dtype == ScalarType::BFloat16 && !__builtin_cpu_supports("avx512bf16")) return false;
#endif
  return dtype == ScalarType::BFloat16 ? bf16 : f16;
}

Tensor view(const Tensor& t, Extents sizes, Extents strides, int64_t offset) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(sizes.size()), sizes.begin(),
                                                        strides.begin(), offset, &handle));
  return Tensor(handle);
}

Tensor matrix(const Tensor& t, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
              int64_t offset) {
  return view(t, {rows, columns}, {row_stride, column_stride}, offset);
}

Tensor transposed(const Tensor& m) { return matrix(m, m.size(1), m.size(0), m.stride(1), m.stride(0)); }

Tensor rows_of(const Tensor& m, int64_t begin, int64_t end) {
  return matrix(m, end - begin, m.size(1), m.stride(0), m.stride(1), begin * m.stride(0));
}

Tensor columns_of(const Tensor& m, int64_t begin, int64_t end) {
  return transposed(rows_of(transposed(m), begin, end));
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  worth_float(a, b) ? multiply_in_float(out, a, b, add) : multiply_as_they_are(out, a, b, add);
}

Tensor sum(const Tensor& a, const Tensor& b) {
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_add_Tensor(a.get(), b.get(), 1, &result));
  return Tensor(result);
}

Tensor times(const Tensor& a, const Tensor& b) {
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mul_Tensor(a.get(), b.get(), &result));
  return Tensor(result);
}

Tensor product(const Tensor& a, const Tensor& b) {
  Tensor out = empty(a, {a.size(0), b.size(1)});
  multiply(out, a, b);
  return out;
}

void add_product_of_columns(std::optional<Tensor>& total, const Tensor& s, const Tensor& x) {
  if (!total)
    total = product_of_columns(s, x);
  else if (few_columns(s, x))
    total = sum(*total, product_of_columns(s, x));
  else if (s.size(0) > 0)
    multiply(*total, transposed(s), x, /*add=*/true);
}

void add_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  Tensor to = out;
  torch::stable::copy_(to, sum(out, product(a, b)));
}

void multiply_by_group(const Tensor& out, const Tensor& s, const Tensor& w, int64_t hidden) {
  if (s.size(1) <= hidden) return multiply(out, s, w);
  const int64_t block = rows_at_once(out.size(1));
  for (int64_t begin = 0; begin < s.size(0); begin += block) {
    const int64_t end = std::min(begin + block, s.size(0));
    const Tensor to = rows_of(out, begin, end), rows = rows_of(s, begin, end);
    for (int64_t column = 0; column < s.size(1); column += hidden) {
      const Tensor part = columns_of(rows, column, column + hidden), weights = rows_of(w, column, column + hidden);
      column == 0 ? multiply(to, part, weights) : add_product(to, part, weights);
    }
  }
}

Tensor batched_product(const Tensor& states, const Tensor& w) {
  const int64_t groups = states.size(0), batch = states.size(1), hidden = w.size(1);
  Tensor out = empty(states, {groups, batch, hidden});
  for (int64_t g = 0; g < groups; ++g)
    multiply(matrix(out, batch, hidden, hidden, 1, g * batch * hidden),
             matrix(states, batch, hidden, states.stride(1), states.stride(2), g * states.stride(0)),
             matrix(w, hidden, hidden, w.stride(0), w.stride(1), g * hidden * w.stride(0)));
  return out;
}

// PyTorch's sum has threads and the 16-bit formats, and costs a dozen microseconds where its code is not in the cache,
// in which one thread is through with 2^15 elements.
Tensor sum_of_rows(const Tensor& m) {
  STD_TORCH_CHECK(m.dim() == 2, "m must have 2 dimensions, got ", m.dim());
  if (m.numel() <= 1 << 15 && m.is_contiguous()) {
    if (m.scalar_type() == ScalarType::Float) return small_sum_of_rows<float>(m);
    if (m.scalar_type() == ScalarType::Double) return small_sum_of_rows<double>(m);
  }
  return torch::stable::sum(m, Sizes{0});
}

}  // namespace rnn_ext::cpu
