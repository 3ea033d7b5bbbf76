// What the ops of a plain layer, forward (layer.cpp) and backward (gradient.cpp), have in common.
#pragma once

#include "../op.h"

namespace rnn_ext::cpu {

// One direction after the other, of groups that alternate.
Sizes alternating(const Tensor& w_hh, bool reversed);

// What the recurrence itself does not see; the rest is checked there (op.cpp).
void check_projection(const Tensor& x, int64_t dims, const Tensor& w_ih, const Tensor& w_hh,
                      const std::optional<Tensor>& b_ih, const std::optional<Tensor>& b_hh);

// The gradients of x, h0, w_ih, w_hh and of either bias; null where they are not needed.
using Gradient = std::optional<Tensor>;
std::tuple<Gradient, Gradient, Gradient, Gradient, Gradient> plain_layer_backward(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_n, const Tensor& x, const std::optional<Tensor>& h0,
    const Tensor& w_ih, const Tensor& w_hh, const Tensor& h, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::optional<Tensor>& mask,
    bool relu, bool reversed, bool need_x, bool need_h0, bool need_w_ih, bool need_w_hh, bool need_b);

}  // namespace rnn_ext::cpu
