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

// Puts the launches on `stream` (a cudaStream_t) and returns what went wrong, or nothing. The problem's pointers are to
// device memory, but direction and rows.alive_at, which the host reads; ragged rows come with their lengths as well.
template <class T>
std::string run(const Problem<T>& problem, const Plan& plan, void* stream);

}  // namespace rnn_ext::cuda
