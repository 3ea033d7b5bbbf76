// The first-order gradient of a plain layer. Its formulas are those of Layer.backward and of what it calls
// (rnn_ext/layer.py, ops.py, transition.py).
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/planner.h"
#include "cpu/ragged.h"
#include "cpu/runs.h"

namespace rnn_ext::cpu {
namespace {

// Steps [begin, end).
struct Window {
  int64_t begin, end;
};

// The time of a dense batch, cut into parts: s, which nobody wants to keep, then stays in L2 until the products have
// read it, and takes no memory that would be paged in anew in each call. Two directions go through the parts the
// other way round. So these are symmetrical, and the number of two directions' parts is odd: either has been in all
// of a part before the other comes, or in nothing of it.
class Parts {
 public:
  Parts(const Tensor& h, int64_t directions, bool ragged) : steps_(h.size(0)), count_(1) {
    // Not in 16 bits, in which each part's sum would be rounded.
    if (ragged || h.element_size() == 2 || directions > 2 || steps_ == 0) return;
    // Rows enough that what a part costs, packing W and calling PyTorch's GEMMs, takes 3 % of the time at H = 64; and
    // as many as leave room in L2 for h and x beside s.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t enough = std::max<int64_t>(2048, 1024 * threads);
    const int64_t in_l2 = threads * (this_machine().l2 / 4) / (h.size(2) * h.element_size());
    count_ = std::clamp<int64_t>(steps_ * h.size(1) / std::max(enough, in_l2), 1, steps_);
    if (directions == 2 && count_ % 2 == 0) count_ += count_ < steps_ ? 1 : -1;
  }

  int64_t count() const { return count_; }
  // The i-th of those that a gradient goes through, against the layer's own direction.
  Window part(int64_t i, int64_t direction) const {
    const int64_t part = direction == 1 ? count_ - 1 - i : i;
    return {begin(part), begin(part + 1)};
  }
  // Whether the other direction's gradient, the second if that is this one, has been in the i-th part.
  bool seen(int64_t i, bool second) const { return 2 * i + second > count_ - 1; }

 private:
  int64_t begin(int64_t part) const {
    return 2 * part < count_ ? part * steps_ / count_ : steps_ - (count_ - part) * steps_ / count_;
  }

  int64_t steps_, count_;
};

Tensor steps_of(const Tensor& sequence, Window w) {
  if (sequence.dim() == 2 || w.end - w.begin == sequence.size(0)) return sequence;
  return view(sequence, {w.end - w.begin, sequence.size(1), sequence.size(2)},
              {sequence.stride(0), sequence.stride(1), sequence.stride(2)}, w.begin * sequence.stride(0));
}

// Between which steps of a sequence no state passes: a bool (T, B), true of the later one.
class Resets {
 public:
  // Of a reset that has been checked.
  Resets(const Tensor& reset, const std::optional<OwnedRows>& ragged)
      : tensor_(torch::stable::contiguous(reset)), batch_(reset.size(1)) {
    if (!ragged) return;
    packed_.reset(new bool[ragged->count()]);
    const Rows rows = ragged->view();
    for (int64_t t = 0; t < reset.size(0); ++t)
      for (int64_t i = 0; i < rows.alive_at[t]; ++i) packed_[rows.packed_at[t] + i] = at(t)[rows.batch_index(i)];
  }

  Tensor steps(Window w) const { return matrix(tensor_, w.end - w.begin, batch_, batch_, 1, w.begin * batch_); }
  // Of each row from step t on; of ragged ones t is 1.
  const bool* rows(int64_t t) const { return packed_ ? packed_.get() + batch_ : at(t); }
  // Zeros in those of (1, B, H) states that do not pass to step t, or from it to the one before.
  void clear(const Tensor& states, int64_t t) const {
    const int64_t bytes = states.stride(1) * states.element_size();
    char* const first = static_cast<char*>(states.mutable_data_ptr());
    for (int64_t b = 0; b < batch_; ++b)
      if (at(t)[b]) std::memset(first + b * bytes, 0, bytes);
  }

 private:
  const bool* at(int64_t t) const { return static_cast<const bool*>(tensor_.const_data_ptr()) + t * batch_; }

  Tensor tensor_;
  int64_t batch_;
  std::unique_ptr<bool[]> packed_;  // of ragged rows, in their order
};

// Matrices one above the other.
Tensor stacked(const std::vector<Gradient>& blocks) {
  if (blocks.size() == 1) return *blocks[0];
  const int64_t rows = blocks[0]->size(0), columns = blocks[0]->size(1);
  const size_t bytes = blocks[0]->numel() * blocks[0]->element_size();
  const Tensor all = empty(*blocks[0], {static_cast<int64_t>(blocks.size()) * rows, columns});
  char* to = static_cast<char*>(all.mutable_data_ptr());
  for (const Gradient& block : blocks) {
    std::memcpy(to, block->const_data_ptr(), bytes);
    to += bytes;
  }
  return all;
}

}  // namespace

std::tuple<Gradient, Gradient, Gradient, Gradient, Gradient> plain_layer_backward(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_n, const Tensor& x, const std::optional<Tensor>& h0,
    const Tensor& w_ih, const Tensor& w_hh, const Tensor& h, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::optional<Tensor>& mask,
    bool relu, bool reversed, bool need_x, bool need_h0, bool need_w_ih, bool need_w_hh, bool need_b) {
  check_projection(x, batch_sizes ? 2 : 3, w_ih, w_hh, {}, {});
  std::optional<OwnedRows> ragged = ragged_rows(x, batch_sizes, lengths, reset);
  const int64_t rows = ragged ? ragged->count() : x.size(0) * x.size(1), batch = ragged ? ragged->batch() : x.size(1);
  const int64_t hidden = w_hh.size(1), columns = w_hh.size(0);
  const Sizes direction = alternating(w_hh, reversed), backwards = alternating(w_hh, !reversed);
  const int64_t groups = static_cast<int64_t>(direction.size());
  const Epilogue derivative = relu ? Epilogue::relu_derivative : Epilogue::tanh_derivative;
  if (batch_sizes)
    check_shape(h, {rows, columns}, "h");
  else
    check_shape(h, {x.size(0), batch, columns}, "h");
  if (g && !batch_sizes) check_shape(*g, {x.size(0), batch, columns}, "g");
  if (h0) check_shape(*h0, {groups, batch, hidden}, "h0");
  if (mask) check_shape(*mask, {groups, batch, hidden}, "mask");
  const Gradient unit_mask = mask ? with_unit_stride(*mask) : mask;
  std::optional<Resets> resets;
  if (reset) {
    check_reset(*reset, w_hh, x.size(0), batch);
    resets.emplace(*reset, ragged);
  }

  // Before they are cut: a part's copy would have only the first group's steps.
  const Gradient unit_g = g ? with_unit_stride(*g) : g;
  const Tensor unit_h = with_unit_stride(h), h_rows = lengths ? unit_h : rows_of(unit_h);
  const int64_t steps = x.size(0);
  const Parts parts(h, groups, ragged.has_value() || (resets && groups > 1));
  const bool whole = parts.count() == 1;
  Gradient x_bar, h0_bar, b_bar, s_first;
  // Of all groups' columns at once, where these belong to the same steps.
  std::vector<Gradient> w_ih_bars(whole ? 1 : groups), w_hh_bars(groups);
  if (need_x) x_bar = lengths ? empty(x, {rows, w_ih.size(1)}) : empty_sequence(x, w_ih.size(1));
  for (int64_t i = 0; i < parts.count(); ++i) {
    auto window = [&](int64_t group) { return parts.part(i, direction[group]); };
    const Seed kind = i > 0 ? Seed::state : g_n ? Seed::product : Seed::none;
    const Tensor h_part = steps_of(unit_h, window(0));
    Call c{{}, i > 0 ? s_first : g_n, w_hh, h_part, {}, {}, {}, {}, {}, derivative, kind, true, backwards};
    c.mask = unit_mask;
    if (g) c.input = steps_of(*unit_g, window(0));
    if (resets) {
      c.reset = resets->steps(window(0));
      if (i > 0) resets->clear(*s_first, direction[0] == 1 ? window(0).end : window(0).begin);
    }
    c.rows = ragged ? &*ragged : nullptr;
    c.lag = window(groups - 1).begin - window(0).begin;
    // Without the padding of h and g: what the GEMMs then take of x and h has none either, where there may be NaN.
    if (lengths) c.output = empty(h, {rows, columns});
    Tensor s = h;
    std::tie(s, s_first) = run_call(kRuns, std::move(c));

    const Tensor s_rows = rows_of(s);
    if (need_b) b_bar = b_bar ? sum(*b_bar, sum_of_rows(s_rows)) : sum_of_rows(s_rows);
    if (need_x && whole) multiply_by_group(rows_of(*x_bar), s_rows, w_ih, hidden);
    if (need_w_ih && whole) add_product_of_columns(w_ih_bars[0], s_rows, rows_of(x, ragged));
    for (int64_t group = 0; group < groups; ++group) {
      const auto [begin, end] = window(group);
      const int64_t column = group * hidden;
      if (!whole) {
        const Tensor s_group = columns_of(s_rows, column, column + hidden);
        if (need_w_ih) add_product_of_columns(w_ih_bars[group], s_group, rows_of(steps_of(x, {begin, end})));
        if (need_x) {
          const Tensor to = rows_of(steps_of(*x_bar, {begin, end})), w = rows_of(w_ih, column, column + hidden);
          groups > 1 && parts.seen(i, group == 1) ? add_product(to, s_group, w) : multiply(to, s_group, w);
        }
      }
      if (!need_w_hh) continue;
      // s_t against the state before it, in the group's own time: of all steps but the first with those one before.
      const bool forward = direction[group] == 1;
      const int64_t from = forward ? std::max<int64_t>(begin, 1) : begin;
      const int64_t to = forward ? end : std::min(end, steps - 1);
      auto before = [&](const Tensor& t, bool one_before, int64_t first) {
        if (ragged && (one_before || t.dim() == 3)) return packed_rows(t, *ragged, 1, one_before, column, hidden);
        const int64_t count = std::max<int64_t>(0, ragged ? rows - batch : (to - from) * batch);
        const int64_t row = ragged ? (one_before ? 0 : batch) : first * batch;
        return matrix(t, count, hidden, t.stride(0), t.stride(1), row * t.stride(0) + column * t.stride(1));
      };
      Tensor states = before(h_rows, forward, forward ? from - 1 : from + 1);
      if (resets) states = without(resets->rows(forward ? from : from + 1), states);
      if (mask) states = masked(states, *unit_mask, group, ragged);
      add_product_of_columns(w_hh_bars[group], before(s_rows, !forward, from - begin), states);
    }
  }
  if (lengths && need_x) x_bar = padded_rows(*x_bar, *ragged, x);
  if (need_h0) h0_bar = batched_product(*s_first, w_hh);
  if (need_h0 && mask) h0_bar = times(*h0_bar, *mask);
  Gradient seed = need_w_hh ? h0 : std::nullopt;
  if (seed && mask) seed = times(*seed, *mask);
  for (int64_t group = 0; seed && group < groups; ++group) {
    const Tensor first = matrix(*s_first, batch, hidden, hidden, 1, group * batch * hidden);
    const Tensor before = matrix(*seed, batch, hidden, seed->stride(1), seed->stride(2), group * seed->stride(0));
    multiply(*w_hh_bars[group], transposed(first), before, /*add=*/true);
  }
  return {x_bar, h0_bar, need_w_ih ? Gradient(stacked(w_ih_bars)) : std::nullopt,
          need_w_hh ? Gradient(stacked(w_hh_bars)) : std::nullopt, b_bar};
}

}  // namespace rnn_ext::cpu
