// How the columns of a state are cut into panels: column panels of whole vectors, the unit of packing,
// of the microkernel and of the split over cores. A panel has a row for each element of what is multiplied.
#pragma once

#include <cstdint>

namespace rnn_ext {

// How one kernel cuts its work into register tiles: all that the planner needs to know of it.
struct Tiling {
  int lanes;           // columns in a vector of sums
  int packed_bytes;    // of an element of the packed weights
  int state_bytes;     // of an element of the state buffers
  int depth_multiple;  // rows of a packed panel
  int panel_vectors;   // width of a panel; and
  int wide_panel_vectors;
  int wide_panel_rows;             // up to this many rows
  int two_chain_vectors;           // up to this width of all of H, sums over k run in two chains
  int row_multiple;                // what rows are rounded up to in the time that they take
  double multiply_adds_per_cycle;  // in vectors of `lanes`
  bool projects = false;           // whether it can make its own input (recurrence.h, Projection)
  bool packs = true;               // whether it needs panels packed; else it reads contiguous weights as they lie
  int sum_block = 0;               // rows of a panel that are summed up apart from those before them; 0 for all
  int tile_vectors = 0;            // vectors of sums that a tile has registers for; 0 where that is no matter of those
  int tile_rows = 0;               // and how many rows it may have
};

// Panel `index`: where its columns begin, how many vectors it is wide, and its columns without padding.
struct Panel {
  int64_t index, column;
  int width, columns;
};

struct Panels {
  int64_t hidden;   // H: columns in all before padding
  int64_t inner;    // H, or I in panels of W_ih
  int64_t depth;    // rows of a packed panel: that, padded to what the kernel multiplies at once
  int lanes;        // elements a vector
  int64_t vectors;  // ceil(H / lanes)
  int64_t count;    // panels; their widths differ by at most one vector

  Panels(int64_t hidden_, int64_t inner_, const Tiling& tiling, int64_t count_)
      : hidden(hidden_),
        inner(inner_),
        depth((inner_ + tiling.depth_multiple - 1) / tiling.depth_multiple * tiling.depth_multiple),
        lanes(tiling.lanes),
        vectors((hidden_ + lanes - 1) / lanes),
        count(count_) {}

  // Panel j is the vectors [first(j), first(j + 1)).
  int64_t first(int64_t j) const { return j * vectors / count; }
  int widest() const { return static_cast<int>((vectors + count - 1) / count); }
  int width(int64_t j) const { return static_cast<int>(first(j + 1) - first(j)); }
  // Its columns, without padding.
  int columns(int64_t j) const {
    return static_cast<int>((first(j + 1) * lanes < hidden ? first(j + 1) * lanes : hidden) - first(j) * lanes);
  }
  Panel at(int64_t j) const { return {j, first(j) * lanes, width(j), columns(j)}; }
  // Where it lies among the packed weights of one group, in elements: panels follow one another, [depth][width].
  int64_t offset(int64_t j) const { return first(j) * lanes * depth; }
  int64_t offset(const Panel& panel) const { return panel.column * depth; }
  int64_t padded_columns() const { return vectors * lanes; }
  int64_t packed_size() const { return padded_columns() * depth; }
};

}  // namespace rnn_ext
