// What it costs two threads to meet after a step and to see what the other has written, measured: three trips of a
// cache line, which take a tenth of a microsecond between cores that share a cache, and six times that across a
// server's mesh.
#pragma once

#include <optional>

#include "team.h"

namespace rnn_ext {

// In cycles of a core, which is what the planner counts in.
struct Meeting {
  double barrier_cycles, state_line_cycles;
};

// Takes two threads a tenth of a millisecond. Nothing where only one comes, or where others keep the cores busy.
std::optional<Meeting> measure_meeting(Launcher launch);

}  // namespace rnn_ext
