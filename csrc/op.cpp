#include "op.h"

#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <numeric>

namespace rnn_ext {
namespace {

using torch::headeronly::ScalarType;

// A device, as PyTorch numbers them.
struct Place {
  int32_t type, index;
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
};

Place place_of(const Tensor& t) {
  Place place = {};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &place.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &place.index));
  return place;
}

const int64_t* int64_values(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous(), name,
                  " must be a contiguous one-dimensional int64 tensor on the CPU");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

// glibc maps a block of 32 MiB or more anew each time, so that a call's large output costs a page fault for each 4 KiB
// of it, up to a sixth of the call. Pages of 2 MiB are 512 times as few, where the system gives them to whoever asks.
void ask_for_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kAlways = 32 << 20, kPage = 2 << 20;
  const uintptr_t bytes = t.numel() * t.element_size();
  if (bytes < kAlways) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may be refused
#endif
}

std::string text(const Tensor& t) {
  std::string s = "(";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + ")";
}

}  // namespace

OwnedRows rows_of_packed(const Tensor& batch_sizes, int64_t packed_rows) {
  const int64_t* sizes = int64_values(batch_sizes, "batch_sizes");
  const int64_t steps = batch_sizes.size(0);
  OwnedRows rows;
  for (int64_t t = 0; t < steps; ++t)
    STD_TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                    "batch_sizes must be positive and not increasing, got ", sizes[t], " at step ", t);
  rows.alive_at.assign(sizes, sizes + steps);
  rows.pack();
  STD_TORCH_CHECK(rows.count() == packed_rows, "batch_sizes add up to ", rows.count(), ", but the packed data has ",
                  packed_rows, " rows");
  return rows;
}

OwnedRows rows_of_lengths(const Tensor& lengths, int64_t steps, int64_t batch) {
  const int64_t* length = int64_values(lengths, "lengths");
  STD_TORCH_CHECK(lengths.size(0) == batch, "lengths must have one entry for each of the ", batch, " sequences, got ",
                  lengths.size(0));
  OwnedRows rows;
  auto longer = [=](int64_t a, int64_t b) { return length[a] > length[b]; };
  rows.order.resize(batch);
  std::iota(rows.order.begin(), rows.order.end(), int64_t{0});
  if (std::is_sorted(rows.order.begin(), rows.order.end(), longer))
    rows.order.clear();
  else
    std::stable_sort(rows.order.begin(), rows.order.end(), longer);
  rows.alive_at.assign(steps, 0);
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(length[b] >= 1 && length[b] <= steps, "lengths must be from 1 to the padded length ", steps,
                    ", got ", length[b], " for sequence ", b);
    ++rows.alive_at[length[b] - 1];
  }
  for (int64_t t = steps - 1; t > 0; --t) rows.alive_at[t - 1] += rows.alive_at[t];
  return rows;
}

void check_shape(const Tensor& t, Extents expected, const char* name) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  int64_t dim = 0;
  for (const int64_t size : expected) same = same && t.size(dim++) == size;
  if (same) return;
  std::string want;
  for (const int64_t size : expected) want += (want.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, name, " must have shape (", want, "), got ", text(t));
}

void check_reset(const Tensor& reset, const Tensor& w, int64_t steps, int64_t batch) {
  STD_TORCH_CHECK(place_of(reset) == place_of(w) && reset.scalar_type() == ScalarType::Bool,
                  "reset must be a bool tensor on w's device");
  check_shape(reset, {steps, batch}, "reset");
}

Tensor with_unit_stride(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}

namespace {

Shape check_call(const Call& c) {
  const Tensor& rows = c.factor ? *c.factor : *c.input;
  const char* name = c.factor ? "factor" : "u";
  const Place place = place_of(c.weight);
  const int64_t groups = static_cast<int64_t>(c.direction.size());
  for (int64_t d : c.direction) STD_TORCH_CHECK(d == 1 || d == -1, "direction must be made of 1 and -1, got ", d);
  STD_TORCH_CHECK(c.weight.dim() == 2 && c.weight.size(0) == groups * c.weight.size(1),
                  "w must have shape (G*H, H) with ", groups, " groups (the length of direction), got ",
                  text(c.weight));
  STD_TORCH_CHECK(!(c.batch_sizes && c.lengths), "batch_sizes and lengths exclude each other");
  const int64_t dims = c.rows ? rows.dim() : c.batch_sizes ? 2 : 3;
  STD_TORCH_CHECK(rows.dim() == dims, name, " must have ", dims, " dimensions, got ", rows.dim());
  Shape shape;
  shape.groups = groups;
  shape.hidden = c.weight.size(1);
  shape.ragged = c.batch_sizes || c.lengths || c.rows;
  int64_t packed_rows = rows.size(0);
  if (c.rows) {
    shape.time = static_cast<int64_t>(c.rows->alive_at.size());
    shape.batch = c.rows->batch();
    packed_rows = c.rows->count();
  } else if (c.batch_sizes) {
    shape.time = c.batch_sizes->size(0);
    const int64_t* sizes = int64_values(*c.batch_sizes, "batch_sizes");
    shape.batch = shape.time ? sizes[0] : 0;
  } else {
    shape.time = rows.size(0);
    shape.batch = rows.size(1);
  }
  // Without a step the last state would be the first, and so would its gradient, which no formula here gives.
  STD_TORCH_CHECK(shape.time > 0, c.batch_sizes ? "batch_sizes" : name, " must have at least one step, got ",
                  text(c.batch_sizes ? *c.batch_sizes : rows));
  const int64_t columns = groups * shape.hidden;
  STD_TORCH_CHECK(rows.size(dims - 1) == columns, name, " must have G*H = ", columns, " columns, got ", text(rows));
  auto check_like_rows = [&](const std::optional<Tensor>& t, const char* of) {
    if (!t) return;
    if (c.rows ? t->dim() == 2 : c.batch_sizes.has_value())
      check_shape(*t, {packed_rows, columns}, of);
    else
      check_shape(*t, {shape.time, shape.batch, columns}, of);
  };
  if (c.factor) check_like_rows(c.input, "v");
  check_like_rows(c.leak, "leak");
  if (c.seed) check_shape(*c.seed, {groups, shape.batch, shape.hidden}, c.factor ? "seed" : "h0");
  if (c.mask) check_shape(*c.mask, {groups, shape.batch, shape.hidden}, "mask");
  if (c.reset) {
    STD_TORCH_CHECK(!c.batch_sizes, "reset is for padded sequences; it excludes batch_sizes");
    check_reset(*c.reset, c.weight, shape.time, shape.batch);
  }
  for (const auto* t : {&c.input, &c.seed, &c.factor, &c.mask, &c.leak})
    STD_TORCH_CHECK(!*t || (place_of(**t) == place && ((*t)->scalar_type() == c.weight.scalar_type() ||
                                                       (t == &c.leak && (*t)->scalar_type() == ScalarType::Bool))),
                    "all of the tensors must be on w's device and of its dtype");
  return shape;
}

}  // namespace

void OwnedRows::pack() {
  packed_at.resize(alive_at.size());
  std::exclusive_scan(alive_at.begin(), alive_at.end(), packed_at.begin(), int64_t{0});
}

std::vector<int64_t> OwnedRows::lengths(int64_t batch) const {
  std::vector<int64_t> length;
  if (alive_at.empty()) return length;
  length.assign(batch, 0);
  for (int64_t alive : alive_at)
    for (int64_t i = 0; i < alive; ++i) ++length[i];
  return length;
}

// Through the C shim itself: the dispatcher, asked by name, takes 1 us.
Tensor empty(const Tensor& like, Extents sizes) {
  int64_t strides[3] = {1, 1, 1};
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes.begin()[i], 1);
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  const Place place = place_of(like);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype,
                                                  place.type, place.index, &handle));
  Tensor made(handle);
  if (made.is_cpu()) ask_for_huge_pages(made);
  return made;
}

Tensor empty_sequence(const Tensor& like, int64_t columns) {
  return like.dim() == 2 ? empty(like, {like.size(0), columns}) : empty(like, {like.size(0), like.size(1), columns});
}

namespace {

Seed kind_of(const std::optional<Tensor>& seed, const std::string& seed_kind) {
  STD_TORCH_CHECK(seed_kind == "state" || seed_kind == "product", "seed_kind must be 'state' or 'product', got '",
                  seed_kind, "'");
  return !seed ? Seed::none : seed_kind == "state" ? Seed::state : Seed::product;
}

}  // namespace

Results run_call(const Runs& runs, Call c) {
  const Shape shape = check_call(c);
  for (auto* t : {&c.input, &c.seed, &c.factor, &c.mask, &c.leak})
    if (*t) *t = with_unit_stride(**t);
  if (c.weight.stride(0) != 1) c.weight = with_unit_stride(c.weight);
  const Tensor& like = c.factor ? *c.factor : *c.input;
  const int64_t columns = shape.groups * shape.hidden;
  OwnedRows made;
  if (c.batch_sizes) made = rows_of_packed(*c.batch_sizes, like.size(0));
  if (c.lengths) made = rows_of_lengths(*c.lengths, shape.time, shape.batch);
  OwnedRows& rows = c.rows ? *c.rows : made;
  if (c.reset) {
    c.reset = torch::stable::contiguous(*c.reset);
    rows.resets = static_cast<const bool*>(c.reset->const_data_ptr());
  }
  const Tensor output = c.output ? *c.output : empty_sequence(like, columns);
  Tensor last = empty(like, {shape.groups, shape.batch, shape.hidden});
  if (shape.groups * shape.batch * shape.hidden == 0) return {output, last};
  switch (c.weight.scalar_type()) {
    case ScalarType::Float: runs.f32(c, shape, rows, output, last); break;
    case ScalarType::Double: runs.f64(c, shape, rows, output, last); break;
    case ScalarType::Half: runs.f16(c, shape, rows, output, last); break;
    case ScalarType::BFloat16: runs.bf16(c, shape, rows, output, last); break;
    default:
      STD_TORCH_CHECK(false,
                      "the kernels take float32, float64, float16 and bfloat16 tensors; use rnn_ext.functional, "
                      "which falls back to plain PyTorch for other dtypes");
  }
  return {output, last};
}

Results recurrence(const Runs& runs, Tensor u, std::optional<Tensor> h0, Tensor w, std::optional<Tensor> batch_sizes,
                   std::optional<Tensor> lengths, std::optional<Tensor> reset, std::optional<Tensor> mask,
                   std::optional<Tensor> leak, std::string nonlinearity, Sizes direction) {
  STD_TORCH_CHECK(nonlinearity == "tanh" || nonlinearity == "relu", "nonlinearity must be 'tanh' or 'relu', got '",
                  nonlinearity, "'");
  const Seed kind = h0 ? Seed::state : Seed::none;
  return run_call(runs, {std::move(u), std::move(h0), std::move(w), std::nullopt, std::move(batch_sizes),
                         std::move(lengths), std::move(reset), std::move(mask), std::move(leak),
                         nonlinearity == "tanh" ? Epilogue::tanh : Epilogue::relu, kind, false, direction});
}

Results linear_recurrence(const Runs& runs, std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                          Tensor factor, std::optional<Tensor> batch_sizes, std::optional<Tensor> lengths,
                          std::optional<Tensor> reset, std::optional<Tensor> mask, std::string derivative,
                          std::string seed_kind, bool transpose, Sizes direction) {
  const bool given = derivative == "given", tanh = derivative == "tanh";
  STD_TORCH_CHECK(given || tanh || derivative == "relu", "derivative must be 'tanh', 'relu' or 'given', got '",
                  derivative, "'");
  const Seed kind = kind_of(seed, seed_kind);
  const Epilogue epilogue = given  ? Epilogue::given_derivative
                            : tanh ? Epilogue::tanh_derivative
                                   : Epilogue::relu_derivative;
  return run_call(
      runs, {std::move(v), std::move(seed), std::move(w), std::move(factor), std::move(batch_sizes), std::move(lengths),
             std::move(reset), std::move(mask), std::nullopt, epilogue, kind, transpose, direction});
}

Results leaky_linear_recurrence(const Runs& runs, std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                                Tensor factor, Tensor leak, std::optional<Tensor> batch_sizes,
                                std::optional<Tensor> lengths, std::optional<Tensor> reset, std::optional<Tensor> mask,
                                std::string seed_kind, bool transpose, Sizes direction) {
  const Seed kind = kind_of(seed, seed_kind);
  STD_TORCH_CHECK(kind != Seed::state || !transpose,
                  "a transposed leaky_linear_recurrence starts from a product: before its first step there is neither "
                  "factor nor leak that would say what of a state arrives");
  return run_call(runs, {std::move(v), std::move(seed), std::move(w), std::move(factor), std::move(batch_sizes),
                         std::move(lengths), std::move(reset), std::move(mask), std::move(leak),
                         Epilogue::given_derivative, kind, transpose, direction});
}

}  // namespace rnn_ext
