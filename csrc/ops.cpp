// The op schemas: the one list of what Python may call. Shapes, with T steps, B sequences, G groups of H:
//
//   u, v, factor, output   (T, B, G*H) padded, or (N, G*H) packed with batch_sizes; so is
//   leak                   z, what part of each unit's state stays from the step before, or bool; absent: none
//   h0, seed, last         (G, B, H)
//   w                      (G*H, H), the G square matrices one above the other
//   batch_sizes            (T,) int64 on the CPU, as in a PackedSequence; or
//   lengths                (B,) int64 on the CPU, for padded input: outputs past a sequence's end are 0
//   reset                  (T, B) bool, for padded input: no state passes between t - 1 and t where true
//   mask                   (G, B, H), of W's columns, for each sequence: W diag(mask) stands in place of W
//   direction              G values, +1 forward in time, -1 reversed
//
// recurrence:         h_t = z_t * h_{t-1} + (1 - z_t) * phi(u_t + W h_{t-1});  nonlinearity: "tanh", "relu"
// linear_recurrence:  y_t = d_t * (v_t + M y_{t-1}),  M = W, or its transpose;  derivative, that is d:
//                     "tanh" 1 - factor^2, "relu" factor > 0, "given" factor.
//                     seed_kind: "state", y_0 is the seed; "product", M y_0 is.
// leaky_linear_recurrence:  y_t = v_t + A_t y_{t-1},  A_t = diag(z_t) + diag(factor_t) W, or with transpose
//                     y_t = v_t + A_{t-1}ᵀ y_{t-1}.
//                     seed_kind: "state", y_0 is the seed, if not transposed; "product", A y_0 is.
// All return every state and, as a tensor of its own, each sequence's last one.
//
// plain_layer, on the CPU alone: recurrence of u = x W_ihᵀ + b_ih + b_hh, without a leak. Its
// backward returns the gradients of x, h0, w_ih, w_hh and of either bias, each if needed. The groups' directions
// alternate; reversed: the first one's is. Two bools, since a str and an int[] take the dispatcher 2 us.
// sum_of_rows is the sum that it makes of a matrix for the biases, so that other paths get the same bits.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  m.def(
      "recurrence(Tensor u, Tensor? h0, Tensor w, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "Tensor? mask, Tensor? leak, str nonlinearity, int[] direction) -> (Tensor, Tensor)");
  m.def(
      "linear_recurrence(Tensor? v, Tensor? seed, Tensor w, Tensor factor, Tensor? batch_sizes, "
      "Tensor? lengths, Tensor? reset, Tensor? mask, str derivative, str seed_kind, bool transpose, int[] direction) "
      "-> (Tensor, Tensor)");
  m.def(
      "leaky_linear_recurrence(Tensor? v, Tensor? seed, Tensor w, Tensor factor, Tensor leak, Tensor? batch_sizes, "
      "Tensor? lengths, Tensor? reset, Tensor? mask, str seed_kind, bool transpose, int[] direction) "
      "-> (Tensor, Tensor)");
  m.def("sum_of_rows(Tensor m) -> Tensor");
  m.def(
      "plain_layer(Tensor x, Tensor? h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor? mask, bool relu, bool reversed) -> (Tensor, "
      "Tensor)");
  m.def(
      "plain_layer_backward(Tensor? g, Tensor? g_n, Tensor x, Tensor? h0, Tensor w_ih, Tensor w_hh, Tensor h, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor? mask, bool relu, bool reversed, bool need_x, "
      "bool need_h0, bool need_w_ih, bool need_w_hh, bool need_b) -> (Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)");
}
