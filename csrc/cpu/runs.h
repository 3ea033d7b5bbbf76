// What runs a checked call on the CPU, for the ops of op.cpp and layer.cpp.
#pragma once

#include "op.h"

namespace rnn_ext::cpu {

extern const Runs kRuns;

// Whether run_call is to be given a projection rather than its result, for tensors like w_hh.
bool projects(const Tensor& w_hh, int64_t rows, int64_t features);

}  // namespace rnn_ext::cpu
