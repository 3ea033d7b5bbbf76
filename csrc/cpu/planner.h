// From (problem, machine) to a plan: a pure function, tested without the hardware.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../recurrence.h"
#include "meeting.h"
#include "panels.h"

namespace rnn_ext {

// Per-core data caches in bytes; l3 is what the cores share. And what two threads cost each other (meeting.h), until
// that is measured as on a large server.
struct Machine {
  int64_t l1 = 0, l2 = 0, l3 = 0;
  Meeting meeting = {1000, 100};
  // Whether l3 is a few cores' own, next to them and at their clock, and gives each of them nearly what l2 does.
  bool near_l3 = false;
};

// As the operating system tells it, or the processor, with a modest core's figures where it does not.
Machine this_machine();

// Between what two workers write again and again, and between that and what both read: a page, which no prefetcher
// looks beyond. A core that reads W or its own states asks for the lines after them too, and if these are another's
// states, both cores fetch them from each other in every step: twice the time at B = 2, H = 64.
constexpr int64_t kApart = 4096;

struct Plan {
  // The workers form a grid: row_workers share the G*B rows among them and never wait for one another;
  // column_workers share the columns of a row's state and meet after each step.
  int row_workers = 1;
  int column_workers = 1;
  int64_t panels = 0;         // of packed weights, a group (panels.h); and
  std::vector<Panel> cut;     // each of them
  int chains = 1;             // sums over k that run side by side
  bool streams = false;       // a worker's share of W exceeds its L2, so that each step brings most of it from L3
  bool turns_in_l1 = false;   // a step begins with the block of W that the one before ended with
  bool tiles_first = false;   // a tile of rows goes through all panels, rather than all rows through one
  bool whole_rows = false;    // and is finished only behind the last, all of its columns at once
  bool fetches_rows = false;  // what a tile's epilogue reads and writes is asked for while the tile is multiplied
  // Each row worker packs what it multiplies, a group at a time, into a place of its own; else there is one for each
  // group, which all of them pack together.
  bool packs_alone = false;
  int64_t state_stride = 0;  // elements between rows of a state buffer
  int64_t packed_bytes = 0;  // all places
  int64_t states_bytes = 0;  // both buffers, each worker's part of them apart
  // Where the input is projected (recurrence.h): panels of W_ih, a group; whether inputs are made ahead, which they are
  // not where rows fill tiles; and room for them, or else for a step's rows of x, if these may lie anywhere.
  int64_t projection_panels = 0;
  bool ahead = false;
  int64_t x_stride = 0;  // elements between rows of x there
  int64_t inputs_bytes = 0;
  // As the model has it, all steps: of this plan, and of one thread.
  double cycles = 0, serial_cycles = 0;

  int workers() const { return row_workers * column_workers; }
  int64_t places(int64_t groups) const { return packs_alone ? row_workers : groups; }
};

// For one kernel, with `threads` at the most; without sharing columns, and so without a barrier in each step, where the
// cores are known to be busy with something else.
Plan make_plan(const Shape& shape, const Tiling& tiling, const Machine& machine, int threads,
               bool may_share_columns = true);

// Whether threads would share columns in that plan if it cost them nothing to meet.
bool meeting_matters(const Shape& shape, const Tiling& tiling, Machine machine, int threads);

// Whether a plain layer's weights are worth packing, and whether a kernel is to project the input itself (isa.h).
bool worth_packing(const Shape& shape, bool in_16_bits);
bool projects(const Shape& shape, const Tiling& tiling, const Machine& machine);

// Why, in a sentence.
std::string reason(const Plan& plan, const Shape& shape);

}  // namespace rnn_ext
