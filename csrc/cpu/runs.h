// What runs a checked call on the CPU, for the ops of op.cpp and layer.cpp.
#pragma once

#include "op.h"

namespace rnn_ext::cpu {

extern const Runs kRuns;

}  // namespace rnn_ext::cpu
