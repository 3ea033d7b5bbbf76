// The instruction sets the kernels are compiled for, and the choice among them at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../recurrence.h"
#include "team.h"

namespace rnn_ext {

struct Plan;

// What one call's workers share besides the problem; sizes from the plan.
struct Workspace {
  void* packed = nullptr;        // G groups of packed panels
  void* states = nullptr;        // two buffers of G*B rows
  Arrivals* arrivals = nullptr;  // two barriers' worth
};

// One build of the kernels. The figures are the register-tile limits of microkernel.inl.
struct Isa {
  const char* name;
  int vector_bytes;
  int panel_vectors;
  int wide_panel_vectors;
  int wide_panel_rows;
  int two_chain_vectors;
  bool (*supported)();
  // One worker's share of the whole call, all time steps.
  void (*run_f32)(const Problem<float>&, const Plan&, const Workspace&, int worker, int workers);
  void (*run_f64)(const Problem<double>&, const Plan&, const Workspace&, int worker, int workers);
  // tanh over an array, as the epilogue computes it; for the native tests.
  void (*tanh_f32)(const float* x, float* y, int64_t n);
  void (*tanh_f64)(const double* x, double* y, int64_t n);
};

// What was compiled, best last.
const std::vector<const Isa*>& compiled_isas();

// The best that this CPU runs, or the one that RNN_EXT_CPU_ISA names (std::invalid_argument if it cannot
// run here). Read at every call, so that a test can change it.
const Isa& current_isa();

}  // namespace rnn_ext
