// What runs a checked call on the CPU, for the ops of op.cpp, layer.cpp and gradient.cpp.
#pragma once

#include "op.h"

namespace rnn_ext::cpu {

extern const Runs kRuns;

// How a plain layer is computed, by the shapes of its tensors, of so many rows in all and in the first step: whether
// from weights as they lie (rows.inl), and whether run_call is to be given a projection rather than its result.
struct Way {
  bool by_rows = false, projects = false;
};
Way way_of(int64_t rows, int64_t batch, const Tensor& w_ih, const Tensor& w_hh);

}  // namespace rnn_ext::cpu
