// The ops on CUDA: the rows' arrays go to the device, the launches on PyTorch's current stream.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/tf32.h"
#include "op.h"

namespace rnn_ext::cuda {
namespace {

// PyTorch's stream for a device. Only a CUDA build of PyTorch has the function, so it is looked up where there is one:
// this library loads without. The tensors could not be on CUDA if PyTorch were not such a build.
void* current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const auto get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  if (get) TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

Tensor host_tensor(const std::vector<int64_t>& values) {
  const int64_t size = static_cast<int64_t>(values.size()), stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_int64(), aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(tensor.mutable_data_ptr()));
  return tensor;
}

// The rows' arrays on the device, as one tensor, which has to live until the launches are on their stream.
std::optional<Tensor> to_device(const OwnedRows& rows, int64_t batch, const Tensor& like, Rows& view) {
  const std::vector<int64_t> length = rows.lengths(batch);
  std::vector<int64_t> all;
  std::vector<std::pair<const int64_t**, size_t>> places;
  auto append = [&](const std::vector<int64_t>& part, const int64_t*& place) {
    place = nullptr;
    if (part.empty()) return;
    places.emplace_back(&place, all.size());
    all.insert(all.end(), part.begin(), part.end());
  };
  append(length, view.length);
  append(rows.packed_at, view.packed_at);
  append(rows.order, view.order);
  if (all.empty()) return std::nullopt;
  // From pageable memory: the copy has read `all` by the time it returns, and does not wait for the device.
  Tensor arrays = torch::stable::to(host_tensor(all), like.device(), /*non_blocking=*/true, /*copy=*/true);
  for (const auto& [place, begin] : places) *place = static_cast<const int64_t*>(arrays.const_data_ptr()) + begin;
  return arrays;
}

// float32 is TF32 where the user lets it be, at this call: a backward pass and a compiled graph ask when they run.
template <class T>
Format allowed_format() {
  if constexpr (kFormat<T> == Format::float32)
    if (tf32_is_allowed()) return Format::tf32;
  return kFormat<T>;
}

template <class T>
void run_on_device(const Call& c, const Shape& shape, const OwnedRows& rows, const Tensor& output, const Tensor& last) {
  // The emulator's device is the CPU, which has no number.
  const int32_t device = std::max(output.get_device_index(), 0);
  const CurrentDevice guard(device);
  Problem<T> problem = problem_of<T>(c, shape, output, last);
  problem.direction = c.direction.data();
  problem.rows = rows.view();
  const std::optional<Tensor> arrays = to_device(rows, shape.batch, output, problem.rows);
  const Plan plan = make_plan(shape, allowed_format<T>(), this_device());
  // PyTorch hands it to nobody else before the launches, which are on its current stream, are through with it.
  std::optional<Tensor> workspace;
  if (plan.workspace_bytes) workspace = empty(output, {plan.workspace_bytes / static_cast<int64_t>(sizeof(T))});
  void* const memory = workspace ? workspace->mutable_data_ptr() : nullptr;
  const std::string error = run(problem, plan, memory, current_stream(device));
  STD_TORCH_CHECK(error.empty(), "a CUDA kernel of rnn_ext was refused: ", error);
}

constexpr Runs kRuns = {run_on_device<float>, run_on_device<double>, run_on_device<half>, run_on_device<bfloat16>};
constexpr auto kRecurrence = On<kRuns, recurrence>::call;
constexpr auto kLinearRecurrence = On<kRuns, linear_recurrence>::call;
constexpr auto kLeakyLinearRecurrence = On<kRuns, leaky_linear_recurrence>::call;

}  // namespace
}  // namespace rnn_ext::cuda

// Emulated, device memory is the host's, and these kernels stand in for the CPU's.
#ifdef RNN_EXT_CUDA_EMULATED
STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CUDA, m) {
#endif
  m.impl("recurrence", TORCH_BOX(rnn_ext::cuda::kRecurrence));
  m.impl("linear_recurrence", TORCH_BOX(rnn_ext::cuda::kLinearRecurrence));
  m.impl("leaky_linear_recurrence", TORCH_BOX(rnn_ext::cuda::kLeakyLinearRecurrence));
}
