// What the lanes of a warp do together: each brings an Exchange, and the last one does the work for all.
#include <cstring>

#include "cuda_emulator/formats.h"
#include "cuda_emulator/state.h"

namespace cuda_emulator {

namespace {

using Lanes = Exchange* [32];
using Work = void (*)(Lanes& lanes, unsigned mask);

struct Warp {
  explicit Warp(Block& block, const Fiber& fiber)
      : block(block), first(fiber.index / 32 * 32), size(std::min<unsigned>(32, block.fibers.size() - first)) {}
  Fiber& lane(unsigned i) const { return block.fibers[first + i]; }
  Block& block;
  unsigned first, size;
};

bool names(unsigned mask, int lane) { return mask >> lane & 1; }

std::string hexadecimal(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string describe(const Fiber& fiber, const Exchange& exchange) {
  return describe(fiber) + " is in " + exchange.operation + " at " + describe(exchange.place) + ", mask " +
         hexadecimal(exchange.mask);
}

// Returns when all lanes that the mask names have come, and `work` is done.
void meet(Exchange& mine, Work work) {
  Fiber& self = *current;
  const Warp warp(*self.block, self);
  if (!names(mine.mask, self.lane()))
    fail(Fault::Kind::divergence, describe(self, mine) + ", which does not name its own lane");
  bool complete = true;
  for (unsigned i = 0; i < 32; ++i) {
    const bool named = names(mine.mask, static_cast<int>(i));
    if (i >= warp.size) {
      if (named)
        fail(Fault::Kind::divergence,
             describe(self, mine) + ", which names lane " + std::to_string(i) + " that the block does not have");
      continue;
    }
    const Fiber& other = warp.lane(i);
    if (&other == &self) continue;
    if (named && other.state == Fiber::State::exited)
      fail(Fault::Kind::divergence,
           "divergent warp: " + describe(self, mine) + ", which names " + describe(other) + ", but that has ended");
    const Exchange* theirs = other.exchange;
    if (!theirs) {
      complete &= !named;
    } else if (named || names(theirs->mask, self.lane())) {
      if (theirs->mask != mine.mask || !(theirs->place == mine.place) ||
          std::strcmp(theirs->operation, mine.operation) != 0)
        fail(Fault::Kind::divergence,
             "divergent warp: " + describe(self, mine) + ", while " + describe(other, *theirs));
      mine.sync = theirs->sync;
    }
  }
  if (!mine.sync) {
    const unsigned w = warp.first / 32;
    mine.sync = &warp.block.warp_sync[w * kWarpSyncs + warp.block.warp_meetings[w]++ % kWarpSyncs];
  }
  if (mine.synchronises) tsan_release(mine.sync);
  if (complete) {
    Lanes lanes = {};
    for (unsigned i = 0; i < warp.size; ++i)
      if (names(mine.mask, static_cast<int>(i))) lanes[i] = &warp.lane(i) == &self ? &mine : warp.lane(i).exchange;
    work(lanes, mine.mask);
    for (unsigned i = 0; i < warp.size; ++i) {
      if (!lanes[i] || lanes[i] == &mine) continue;
      warp.lane(i).exchange = nullptr;
      warp.block.wake(warp.lane(i));
    }
    // Whoever comes last is not always the first to go on.
    yield_point();
  } else {
    self.exchange = &mine;
    wait_in(mine.operation, mine.place, Fiber::State::waiting);
  }
  if (mine.synchronises) tsan_acquire(mine.sync);
}

void shuffle_lanes(Lanes& lanes, unsigned mask) {
  uint64_t values[32] = {};
  for (int i = 0; i < 32; ++i)
    if (lanes[i]) values[i] = lanes[i]->value;
  for (int i = 0; i < 32; ++i) {
    if (!lanes[i]) continue;
    Exchange& lane = *lanes[i];
    // Segments of `width` lanes exchange among themselves; from beyond its segment a lane gets its own value.
    const int begin = i & ~(lane.width - 1), end = begin + lane.width;
    int source = i;
    switch (lane.how) {
      case Shuffle::index: source = begin | (lane.operand & (lane.width - 1)); break;
      case Shuffle::up: source = i - lane.operand < begin ? i : i - lane.operand; break;
      case Shuffle::down: source = i + lane.operand >= end ? i : i + lane.operand; break;
      case Shuffle::exclusive_or: source = (i ^ lane.operand) >= end ? i : i ^ lane.operand; break;
    }
    if (!names(mask, source))
      fail(Fault::Kind::divergence, "lane " + std::to_string(i) + " reads lane " + std::to_string(source) +
                                        ", which takes no part, in " + lane.operation + " at " + describe(lane.place) +
                                        ", mask " + hexadecimal(mask));
    lane.value = values[source];
  }
}

void vote(Lanes& lanes, unsigned) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if (lanes[i] && lanes[i]->value) votes |= 1u << i;
  for (Exchange* lane : lanes)
    if (lane) lane->value = votes;
}

// ---- matrices; g = lane / 4, t = lane % 4, as device.cuh has it ----

float element(Format format, uint32_t word, int which) {
  const uint16_t bits = static_cast<uint16_t>(word >> 16 * which);
  switch (format) {
    case Format::half: return from_half(bits);
    case Format::bfloat16: return from_bfloat16(bits);
    case Format::tf32: return bits_to_float(word & ~0x1fffu);
  }
  return 0;
}

void multiply(Lanes& lanes, unsigned) {
  const Format format = lanes[0]->format;
  // Elements in a register, and so the depth of half a fragment.
  const int in_word = format == Format::tf32 ? 1 : 2, half_depth = 4 * in_word;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < in_word; ++e)
        a[g + 8 * (r % 2)][in_word * t + e + half_depth * (r / 2)] = element(format, lanes[lane]->a[r], e);
    for (int r = 0; r < 2; ++r)
      for (int e = 0; e < in_word; ++e) b[in_word * t + e + half_depth * r][g] = element(format, lanes[lane]->b[r], e);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      // Rounded once. Tensor cores cut in places that are nowhere documented.
      double sum = lanes[lane]->d[r];
      for (int k = 0; k < 2 * half_depth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      lanes[lane]->d[r] = static_cast<float>(sum);
    }
  }
}

void load_matrices(Lanes& lanes, bool transposed) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) __builtin_memcpy(matrix[row], lanes[8 * m + row]->a, sizeof matrix[row]);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint16_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint16_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      lanes[lane]->registers[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

}  // namespace

void sync_warp(unsigned mask, Place place) {
  Exchange mine = {"__syncwarp", place, mask};
  mine.synchronises = true;
  meet(mine, [](Lanes&, unsigned) {});
}

uint64_t shuffle_bits(Shuffle how, unsigned mask, uint64_t value, int operand, int width, Place place) {
  static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(Fault::Kind::misuse, describe(*current) + " at " + describe(place) + ": a shuffle of " +
                                  std::to_string(width) + " lanes, not a power of 2 up to 32");
  Exchange mine = {names[static_cast<int>(how)], place, mask};
  mine.value = value;
  mine.operand = operand;
  mine.width = width;
  mine.how = how;
  meet(mine, shuffle_lanes);
  return mine.value;
}

unsigned ballot(unsigned mask, bool predicate, Place place) {
  Exchange mine = {"a vote", place, mask};
  mine.value = predicate;
  meet(mine, vote);
  return static_cast<unsigned>(mine.value);
}

void mma(Format format, float* d, const uint32_t* a, const uint32_t* b, Place place) {
  Exchange mine = {"mma", place, ~0u};
  mine.format = format;
  mine.d = d;
  mine.a = a;
  mine.b = b;
  meet(mine, multiply);
}

void ldmatrix(bool transposed, uint32_t* registers, const uint32_t* row, Place place) {
  Exchange mine = {transposed ? "ldmatrix_x4_trans" : "ldmatrix_x4", place, ~0u};
  mine.registers = registers;
  mine.a = row;
  if (transposed)
    meet(mine, [](Lanes& lanes, unsigned) { load_matrices(lanes, true); });
  else
    meet(mine, [](Lanes& lanes, unsigned) { load_matrices(lanes, false); });
}

void leave_warp(Fiber& fiber) {
  const Warp warp(*fiber.block, fiber);
  for (unsigned i = 0; i < warp.size; ++i) {
    const Exchange* theirs = warp.lane(i).exchange;
    if (theirs && names(theirs->mask, fiber.lane()))
      fail(Fault::Kind::divergence, "divergent warp: " + describe(warp.lane(i), *theirs) + ", which names " +
                                        describe(fiber) + ", but that has ended");
  }
}

}  // namespace cuda_emulator
