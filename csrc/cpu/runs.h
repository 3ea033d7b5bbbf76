// What runs a checked call on the CPU, for the ops of op.cpp and layer.cpp.
#pragma once

#include "op.h"
#include "planner.h"

namespace rnn_ext::cpu {

extern const Runs kRuns;

// How a plain layer is computed, by the shapes of its tensors, of so many rows in all and in the first step: whether
// from weights as they lie (rows.inl), and whether run_call is to be given a projection rather than its result.
struct Way {
  bool by_rows = false, projects = false;
};
Way way_of(int64_t rows, int64_t batch, const Tensor& w_ih, const Tensor& w_hh);

// This machine as the planner is to see it for such a call: with what its threads cost each other, which the first call
// that depends on it measures.
Machine machine_for(const Shape& shape, const Tiling& tiling, int threads);

}  // namespace rnn_ext::cpu
