// What the op glue calls: a problem on the device, through the kernel that its plan names.
#pragma once

#include <string>

#include "cuda/planner.h"
#include "recurrence.h"

namespace rnn_ext::cuda {

// Makes a device the current one for as long as this lives, of what launches after.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;

 private:
  int before_ = -1;
};

// Of the current device.
Device this_device();

// What the planner calls the states' type.
template <class T>
constexpr Format kFormat = Format::float32;
template <>
inline constexpr Format kFormat<double> = Format::float64;
template <>
inline constexpr Format kFormat<half> = Format::float16;
template <>
inline constexpr Format kFormat<bfloat16> = Format::bfloat16;

// Puts the launches on `stream` (a cudaStream_t) and returns what went wrong, or nothing. The problem's pointers are to
// device memory, but direction and rows.alive_at, which the host reads; ragged rows come with their lengths as well.
// `workspace`: plan.workspace_bytes of device memory, aligned to 128.
template <class T>
std::string run(const Problem<T>& problem, const Plan& plan, void* workspace, void* stream);

}  // namespace rnn_ext::cuda
