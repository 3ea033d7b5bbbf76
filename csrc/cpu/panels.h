// How the columns of a state are cut into panels: column panels of whole vectors, the unit of packing,
// of the microkernel and of the split over cores.
#pragma once

#include <cstdint>

namespace rnn_ext {

struct Panels {
  int64_t hidden;   // H: rows of a packed panel, and columns in all before padding
  int lanes;        // elements a vector
  int64_t vectors;  // ceil(H / lanes)
  int64_t count;    // panels; their widths differ by at most one vector

  Panels(int64_t hidden_, int lanes_, int64_t count_)
      : hidden(hidden_), lanes(lanes_), vectors((hidden_ + lanes_ - 1) / lanes_), count(count_) {}

  // Panel j is the vectors [first(j), first(j + 1)).
  int64_t first(int64_t j) const { return j * vectors / count; }
  int width(int64_t j) const { return static_cast<int>(first(j + 1) - first(j)); }
  // Where it lies among the packed weights of one group, in elements: panels follow one another, [H][width].
  int64_t offset(int64_t j) const { return first(j) * lanes * hidden; }
  int64_t padded_columns() const { return vectors * lanes; }
  int64_t packed_size() const { return padded_columns() * hidden; }
};

}  // namespace rnn_ext
