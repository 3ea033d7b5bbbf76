// PyTorch's threads: how a call's workers come from its pool, and what they cost each other.
#pragma once

#include "planner.h"
#include "team.h"

namespace rnn_ext::cpu {

int64_t now_ms();

// PyTorch's thread pool as a Launcher.
void launch_on_torch_pool(int workers, Body body, void* context);

// This machine as the planner is to see it for such a call: with what its threads cost each other, which the first call
// that depends on it measures.
Machine machine_for(const Shape& shape, const Tiling& tiling, int threads);

}  // namespace rnn_ext::cpu
