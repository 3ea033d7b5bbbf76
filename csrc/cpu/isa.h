// The instruction sets the kernels are compiled for, and the choice among them at run time.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "../recurrence.h"
#include "panels.h"
#include "planner.h"
#include "team.h"

namespace rnn_ext {

// What one call's workers share besides the problem; sizes from the plan.
struct Workspace {
  void* packed = nullptr;        // G groups of packed panels, with those of W_ih and biases where it is projected
  void* states = nullptr;        // two buffers of G*B rows
  void* inputs = nullptr;        // of coming steps, or rows of x (projection.inl)
  Arrivals* arrivals = nullptr;  // two barriers' worth
  const Panel* cut = nullptr;    // the plan's
};

// The kernel for one format of tensors.
template <class S>
struct Kernel {
  Tiling tiling;
  // One worker's share of the whole call, all time steps.
  void (*run)(const Problem<S>&, const Plan&, const Workspace&, int worker, int workers);
};

// One build of the kernels.
struct Isa {
  const char* name;
  int vector_bytes;
  bool (*supported)();
  // Whether it is the fastest on a CPU that supports it, and nothing later in the list is.
  bool (*preferred)();
  Kernel<float> f32;
  Kernel<double> f64;
  Kernel<half> f16;
  Kernel<bfloat16> bf16;
  // Likewise without packed weights (rows.inl).
  Kernel<float> f32_rows;
  Kernel<double> f64_rows;
  Kernel<half> f16_rows;
  Kernel<bfloat16> bf16_rows;
  // tanh over an array, as the epilogue computes it; for the native tests.
  void (*tanh_f32)(const float* x, float* y, int64_t n);
  void (*tanh_f64)(const double* x, double* y, int64_t n);
};

// What was compiled, best last.
const std::vector<const Isa*>& compiled_isas();

// The best that this CPU runs, or the one that RNN_EXT_CPU_ISA names (std::invalid_argument if it cannot
// run here). Read at every call, so that a test can change it.
const Isa& current_isa();

// An ISA's kernel for the format S; `by_rows`: that without packed weights.
template <class S>
const Kernel<S>& kernel_for(const Isa& isa, bool by_rows = false) {
  if constexpr (std::is_same_v<S, float>) return by_rows ? isa.f32_rows : isa.f32;
  if constexpr (std::is_same_v<S, double>) return by_rows ? isa.f64_rows : isa.f64;
  if constexpr (std::is_same_v<S, half>) return by_rows ? isa.f16_rows : isa.f16;
  if constexpr (std::is_same_v<S, bfloat16>) return by_rows ? isa.bf16_rows : isa.bf16;
}

// How a plain layer is computed: whether from weights as they lie (rows.inl), which have to be contiguous for that, and
// whether the kernel projects the input itself.
struct Way {
  bool by_rows = false, projects = false;
};

// Of a layer of one group. A matter of its shape alone, and not of threads, so that these do not change its states'
// order of summation.
template <class S>
Way way_for(const Isa& isa, const Shape& shape, bool contiguous) {
  const bool by_rows = contiguous && !worth_packing(shape, sizeof(S) == 2);
  return {by_rows, projects(shape, kernel_for<S>(isa, by_rows).tiling, this_machine())};
}

}  // namespace rnn_ext
