// The CPU ops: from tensors to the torch-free problem, its plan and its threads. This file, ops.cpp and
// module.cpp are the only ones of the CPU build that see PyTorch, and only its stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "isa.h"
#include "planner.h"

namespace rnn_ext {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// PyTorch's thread pool as a Launcher. parallel_for cuts [0, workers) into equal chunks, one a thread, and
// all run at once; it makes fewer of them where it has fewer threads, and one inside a parallel region.
void launch_on_torch_pool(int workers, Body body, void* context) {
  if (workers == 1) return body(0, 1, context);
  torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    const int64_t chunk = thread == 0 ? end - begin : begin / thread;
    body(static_cast<int>(thread), static_cast<int>((workers + chunk - 1) / chunk), context);
  });
}

// Which rows live when, and the arrays behind it (recurrence.h).
struct OwnedRows {
  std::vector<int64_t> alive_at, packed_at, order;
  const bool* resets = nullptr;

  Rows view() const {
    auto data = [](const std::vector<int64_t>& v) { return v.empty() ? nullptr : v.data(); };
    return {data(alive_at), data(packed_at), data(order), resets};
  }
};

const int64_t* int64_values(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous(), name,
                  " must be a contiguous one-dimensional int64 tensor on the CPU");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

OwnedRows rows_of_packed(const Tensor& batch_sizes, int64_t packed_rows) {
  const int64_t* sizes = int64_values(batch_sizes, "batch_sizes");
  const int64_t steps = batch_sizes.size(0);
  OwnedRows rows;
  rows.alive_at.assign(sizes, sizes + steps);
  rows.packed_at.resize(steps);
  int64_t row = 0;
  for (int64_t t = 0; t < steps; ++t) {
    STD_TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                    "batch_sizes must be positive and not increasing, got ", sizes[t], " at step ", t);
    rows.packed_at[t] = row;
    row += sizes[t];
  }
  STD_TORCH_CHECK(row == packed_rows, "batch_sizes add up to ", row, ", but the packed data has ", packed_rows,
                  " rows");
  return rows;
}

OwnedRows rows_of_lengths(const Tensor& lengths, int64_t steps, int64_t batch) {
  const int64_t* length = int64_values(lengths, "lengths");
  STD_TORCH_CHECK(lengths.size(0) == batch, "lengths must have one entry for each of the ", batch, " sequences, got ",
                  lengths.size(0));
  OwnedRows rows;
  rows.order.resize(batch);
  std::iota(rows.order.begin(), rows.order.end(), int64_t{0});
  std::stable_sort(rows.order.begin(), rows.order.end(), [=](int64_t a, int64_t b) { return length[a] > length[b]; });
  rows.alive_at.assign(steps, 0);
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(length[b] >= 1 && length[b] <= steps, "lengths must be from 1 to the padded length ", steps,
                    ", got ", length[b], " for sequence ", b);
    ++rows.alive_at[length[b] - 1];
  }
  for (int64_t t = steps - 1; t > 0; --t) rows.alive_at[t - 1] += rows.alive_at[t];
  return rows;
}

std::string text(const Tensor& t) {
  std::string s = "(";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + ")";
}

void check_shape(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = t.size(i) == expected[i];
  std::string want;
  for (size_t i = 0; i < expected.size(); ++i) want += (i ? ", " : "") + std::to_string(expected[i]);
  STD_TORCH_CHECK(same, name, " must have shape (", want, "), got ", text(t));
}

Tensor with_unit_stride(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}

// A contiguous tensor of the dtype of `like`. Through the C shim itself: the dispatcher, asked by name, takes 1 us.
Tensor empty(const Tensor& like, const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <class T>
Sequence<T> sequence_of(const Tensor& t) {
  const bool packed = t.dim() == 2;
  auto* data = static_cast<T*>(std::is_const_v<T> ? const_cast<void*>(t.const_data_ptr()) : t.mutable_data_ptr());
  return {data, packed ? 0 : t.stride(0), t.stride(packed ? 0 : 1)};
}

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
};

Shape check_call(const Call& c) {
  const Tensor& rows = c.factor ? *c.factor : *c.input;
  const char* name = c.factor ? "factor" : "u";
  const int64_t groups = static_cast<int64_t>(c.direction.size());
  for (int64_t d : c.direction) STD_TORCH_CHECK(d == 1 || d == -1, "direction must be made of 1 and -1, got ", d);
  STD_TORCH_CHECK(c.weight.dim() == 2 && c.weight.size(0) == groups * c.weight.size(1),
                  "w must have shape (G*H, H) with ", groups, " groups (the length of direction), got ",
                  text(c.weight));
  STD_TORCH_CHECK(!(c.batch_sizes && c.lengths), "batch_sizes and lengths exclude each other");
  const int64_t dims = c.batch_sizes ? 2 : 3;
  STD_TORCH_CHECK(rows.dim() == dims, name, " must have ", dims, " dimensions, got ", rows.dim());
  Shape shape;
  shape.groups = groups;
  shape.hidden = c.weight.size(1);
  shape.time = c.batch_sizes ? c.batch_sizes->size(0) : rows.size(0);
  shape.batch = !c.batch_sizes ? rows.size(1) : shape.time == 0 ? 0 : int64_values(*c.batch_sizes, "batch_sizes")[0];
  const int64_t columns = groups * shape.hidden;
  STD_TORCH_CHECK(rows.size(dims - 1) == columns, name, " must have G*H = ", columns, " columns, got ", text(rows));
  Sizes expected;
  for (int64_t i = 0; i < dims; ++i) expected.push_back(rows.size(i));
  if (c.factor && c.input) check_shape(*c.input, expected, "v");
  if (c.leak) check_shape(*c.leak, expected, "leak");
  if (c.seed) check_shape(*c.seed, {groups, shape.batch, shape.hidden}, c.factor ? "seed" : "h0");
  if (c.mask) check_shape(*c.mask, {groups, shape.batch, shape.hidden}, "mask");
  if (c.reset) {
    STD_TORCH_CHECK(!c.batch_sizes, "reset is for padded sequences; it excludes batch_sizes");
    STD_TORCH_CHECK(c.reset->is_cpu() && c.reset->scalar_type() == ScalarType::Bool,
                    "reset must be a bool tensor on the CPU");
    check_shape(*c.reset, {shape.time, shape.batch}, "reset");
  }
  for (const auto* t : {&c.input, &c.seed, &c.factor, &c.mask, &c.leak})
    STD_TORCH_CHECK(!*t || ((*t)->is_cpu() && ((*t)->scalar_type() == c.weight.scalar_type() ||
                                               (t == &c.leak && (*t)->scalar_type() == ScalarType::Bool))),
                    "all of the tensors must be on the CPU and of w's dtype");
  return shape;
}

// Whether calls whose workers meet after each step (team.h) have lately lost a core to other processes. Such a call
// costs some time slices, tens of milliseconds where it gets bad; after each the next try waits twice as long, so
// that a crowded machine is probed ever more rarely, and a single interruption is soon forgotten.
class Crowd {
 public:
  bool here() const { return now_ms() < until_.load(std::memory_order_relaxed); }
  void note(bool lost_a_core) {
    const int64_t wait = lost_a_core ? std::min<int64_t>(2 * wait_.load(std::memory_order_relaxed), 2000) : kFirstWait;
    wait_.store(wait, std::memory_order_relaxed);
    if (lost_a_core) until_.store(now_ms() + wait, std::memory_order_relaxed);
  }

 private:
  static int64_t now_ms() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  static constexpr int64_t kFirstWait = 4;
  std::atomic<int64_t> until_{0}, wait_{kFirstWait};
};
Crowd crowd;

template <class T>
void run(const Call& c, const Shape& shape, const OwnedRows& rows, Tensor& output, Tensor& last) {
  Problem<T> problem;
  problem.shape = shape;
  problem.rows = rows.view();
  problem.epilogue = c.epilogue;
  problem.seed_kind = c.seed_kind;
  problem.transpose = c.transpose;
  problem.direction = c.direction.data();
  problem.weight = {static_cast<const T*>(c.weight.const_data_ptr()), c.weight.stride(0), c.weight.stride(1)};
  if (c.input) problem.input = sequence_of<const T>(*c.input);
  if (c.factor) problem.factor = sequence_of<const T>(*c.factor);
  if (c.leak && c.leak->scalar_type() == ScalarType::Bool)
    problem.kept = sequence_of<const bool>(*c.leak);
  else if (c.leak)
    problem.leak = sequence_of<const T>(*c.leak);
  if (c.seed) problem.seed = {static_cast<const T*>(c.seed->const_data_ptr()), c.seed->stride(0), c.seed->stride(1)};
  if (c.mask) problem.mask = {static_cast<const T*>(c.mask->const_data_ptr()), c.mask->stride(0), c.mask->stride(1)};
  problem.output = sequence_of<T>(output);
  problem.last = {static_cast<T*>(last.mutable_data_ptr()), last.stride(0), last.stride(1)};

  const Kernel<T>& kernel = kernel_for<T>(current_isa());
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  Plan plan = make_plan(shape, kernel.tiling, this_machine(), threads);
  if (plan.column_workers > 1 && crowd.here()) plan = make_plan(shape, kernel.tiling, this_machine(), threads, false);
  // One allocation for both; each part is a whole number of cache lines and begins at one. From malloc, not from an
  // aligned allocation: glibc's memalign splits a block at both ends, and before 2.38 a long run of calls
  // leaves the heap growing and each call searching through it, at ten times the cost of a small one.
  constexpr int64_t line = 64;
  const int64_t packed = (plan.packed_bytes + line - 1) / line * line;
  const std::unique_ptr<char[]> scratch(new char[packed + plan.states_bytes + line]);
  char* const memory = scratch.get() + (line - reinterpret_cast<uintptr_t>(scratch.get()) % line);
  std::vector<Arrivals> arrivals(plan.workers() > 1 ? 2 * plan.workers() : 0);
  const Workspace space = {memory, memory + packed, arrivals.data()};

  struct Context {
    const Problem<T>& problem;
    const Plan& plan;
    const Workspace& space;
    decltype(kernel.run) run;
  } context = {problem, plan, space, kernel.run};
  launch_on_torch_pool(
      plan.workers(),
      [](int worker, int workers, void* p) {
        const Context& x = *static_cast<Context*>(p);
        x.run(x.problem, x.plan, x.space, worker, workers);
      },
      &context);
  if (plan.column_workers > 1)
    crowd.note(std::any_of(arrivals.begin(), arrivals.end(),
                           [](const Arrivals& a) { return a.takeover.load(std::memory_order_relaxed) != 0; }));
}

std::tuple<Tensor, Tensor> call(Call c) {
  const Shape shape = check_call(c);
  for (auto* t : {&c.input, &c.seed, &c.factor, &c.mask, &c.leak})
    if (*t) *t = with_unit_stride(**t);
  if (c.weight.stride(0) != 1) c.weight = with_unit_stride(c.weight);
  const Tensor& like = c.factor ? *c.factor : *c.input;
  const int64_t columns = shape.groups * shape.hidden;
  OwnedRows rows = c.batch_sizes ? rows_of_packed(*c.batch_sizes, like.size(0))
                   : c.lengths   ? rows_of_lengths(*c.lengths, shape.time, shape.batch)
                                 : OwnedRows();
  if (c.reset) {
    c.reset = torch::stable::contiguous(*c.reset);
    rows.resets = static_cast<const bool*>(c.reset->const_data_ptr());
  }
  Tensor output =
      c.batch_sizes ? empty(like, {like.size(0), columns}) : empty(like, {shape.time, shape.batch, columns});
  Tensor last = empty(like, {shape.groups, shape.batch, shape.hidden});
  if (shape.groups * shape.batch * shape.hidden == 0) return {output, last};
  switch (c.weight.scalar_type()) {
    case ScalarType::Float: run<float>(c, shape, rows, output, last); break;
    case ScalarType::Double: run<double>(c, shape, rows, output, last); break;
    case ScalarType::Half: run<half>(c, shape, rows, output, last); break;
    case ScalarType::BFloat16: run<bfloat16>(c, shape, rows, output, last); break;
    default:
      STD_TORCH_CHECK(false,
                      "the CPU kernels take float32, float64, float16 and bfloat16 tensors; use rnn_ext.functional, "
                      "which falls back to plain PyTorch for other dtypes");
  }
  return {output, last};
}

std::tuple<Tensor, Tensor> recurrence(Tensor u, std::optional<Tensor> h0, Tensor w, std::optional<Tensor> batch_sizes,
                                      std::optional<Tensor> lengths, std::optional<Tensor> reset,
                                      std::optional<Tensor> mask, std::optional<Tensor> leak, std::string nonlinearity,
                                      Sizes direction) {
  STD_TORCH_CHECK(nonlinearity == "tanh" || nonlinearity == "relu", "nonlinearity must be 'tanh' or 'relu', got '",
                  nonlinearity, "'");
  const Seed kind = h0 ? Seed::state : Seed::none;
  return call({std::move(u), std::move(h0), std::move(w), std::nullopt, std::move(batch_sizes), std::move(lengths),
               std::move(reset), std::move(mask), std::move(leak),
               nonlinearity == "tanh" ? Epilogue::tanh : Epilogue::relu, kind, false, direction});
}

Seed kind_of(const std::optional<Tensor>& seed, const std::string& seed_kind) {
  STD_TORCH_CHECK(seed_kind == "state" || seed_kind == "product", "seed_kind must be 'state' or 'product', got '",
                  seed_kind, "'");
  return !seed ? Seed::none : seed_kind == "state" ? Seed::state : Seed::product;
}

std::tuple<Tensor, Tensor> linear_recurrence(std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                                             Tensor factor, std::optional<Tensor> batch_sizes,
                                             std::optional<Tensor> lengths, std::optional<Tensor> reset,
                                             std::optional<Tensor> mask, std::string derivative, std::string seed_kind,
                                             bool transpose, Sizes direction) {
  const bool given = derivative == "given", tanh = derivative == "tanh";
  STD_TORCH_CHECK(given || tanh || derivative == "relu", "derivative must be 'tanh', 'relu' or 'given', got '",
                  derivative, "'");
  const Seed kind = kind_of(seed, seed_kind);
  const Epilogue epilogue = given  ? Epilogue::given_derivative
                            : tanh ? Epilogue::tanh_derivative
                                   : Epilogue::relu_derivative;
  return call({std::move(v), std::move(seed), std::move(w), std::move(factor), std::move(batch_sizes),
               std::move(lengths), std::move(reset), std::move(mask), std::nullopt, epilogue, kind, transpose,
               direction});
}

std::tuple<Tensor, Tensor> leaky_linear_recurrence(std::optional<Tensor> v, std::optional<Tensor> seed, Tensor w,
                                                   Tensor factor, Tensor leak, std::optional<Tensor> batch_sizes,
                                                   std::optional<Tensor> lengths, std::optional<Tensor> reset,
                                                   std::optional<Tensor> mask, std::string seed_kind, bool transpose,
                                                   Sizes direction) {
  const Seed kind = kind_of(seed, seed_kind);
  STD_TORCH_CHECK(kind != Seed::state || !transpose,
                  "a transposed leaky_linear_recurrence starts from a product: before its first step there is neither "
                  "factor nor leak that would say what of a state arrives");
  return call({std::move(v), std::move(seed), std::move(w), std::move(factor), std::move(batch_sizes),
               std::move(lengths), std::move(reset), std::move(mask), std::move(leak), Epilogue::given_derivative, kind,
               transpose, direction});
}

}  // namespace
}  // namespace rnn_ext

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("recurrence", TORCH_BOX(&rnn_ext::recurrence));
  m.impl("linear_recurrence", TORCH_BOX(&rnn_ext::linear_recurrence));
  m.impl("leaky_linear_recurrence", TORCH_BOX(&rnn_ext::leaky_linear_recurrence));
}
