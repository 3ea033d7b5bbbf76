// The op schemas: the one list of what Python may call. Shapes, with T steps, B sequences, G groups of H:
//
//   u, v, factor, output   (T, B, G*H) padded, or (N, G*H) packed with batch_sizes
//   h0, seed, last         (G, B, H)
//   w                      (G*H, H), the G square matrices one above the other
//   batch_sizes            (T,) int64 on the CPU, as in a PackedSequence; or
//   lengths                (B,) int64 on the CPU, for padded input: outputs past a sequence's end are 0
//   reset                  (T, B) bool, for padded input: no state passes between t - 1 and t where true
//   mask                   (G, B, H), of W's columns, for each sequence: W diag(mask) stands in place of W
//   direction              G values, +1 forward in time, -1 reversed
//
// recurrence:         h_t = phi(u_t + W h_{t-1});  nonlinearity: "tanh", "relu"
// linear_recurrence:  y_t = d_t * (v_t + M y_{t-1}),  M = W, or its transpose;  derivative, that is d:
//                     "tanh" 1 - factor^2, "relu" factor > 0, "given" factor.
//                     seed_kind: "state", y_0 is the seed; "product", M y_0 is.
// Both return every state and, as a tensor of its own, each sequence's last one.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  m.def(
      "recurrence(Tensor u, Tensor? h0, Tensor w, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "Tensor? mask, str nonlinearity, int[] direction) -> (Tensor, Tensor)");
  m.def(
      "linear_recurrence(Tensor? v, Tensor? seed, Tensor w, Tensor factor, Tensor? batch_sizes, "
      "Tensor? lengths, Tensor? reset, Tensor? mask, str derivative, str seed_kind, bool transpose, int[] direction) "
      "-> (Tensor, Tensor)");
}
