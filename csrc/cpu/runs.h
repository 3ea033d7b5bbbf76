// What runs a checked call on the CPU, for the ops of op.cpp, layer.cpp and gradient.cpp.
#pragma once

#include "cpu/isa.h"
#include "op.h"

namespace rnn_ext::cpu {

extern const Runs kRuns;

// By the shapes of a plain layer's tensors, of so many rows in all and in the first step. Where it projects, run_call
// is to be given a projection rather than its result.
Way way_of(int64_t rows, int64_t batch, const Tensor& w_ih, const Tensor& w_hh);

}  // namespace rnn_ext::cpu
