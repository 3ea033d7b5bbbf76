"""One layer: the projection of the whole sequence, and the recurrence over it.

Composed of two differentiable pieces, ``F.linear`` and ``ops.recurrence``. In plain reverse mode, which is all that
training asks for, both are one autograd node: a short sequence is then not outweighed by five nodes' bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_ext import leaky, ops


def layer(
    x: Tensor,
    groups: Sequence[Sequence[Tensor]],
    h0: Tensor | None,
    nonlinearity: str,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    leak: Tensor | None,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """All directions of one layer, as the groups of one recurrence.

    Args:
        x: ``(T, B, features)``, or packed ``(N, features)``.
        groups: for each direction ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)``.
        h0: ``(directions, B, H)``; None for zeros.
        nonlinearity: "tanh" or "relu".
        batch_sizes: as in :func:`rnn_ext.ops.recurrence`.
        lengths: as in :func:`rnn_ext.ops.recurrence`.
        reset: as in :func:`rnn_ext.ops.recurrence`.
        mask: as in :func:`rnn_ext.ops.recurrence`.
        leak: as in :func:`rnn_ext.ops.recurrence`.
        direction: as in :func:`rnn_ext.ops.recurrence`, one for each of the groups.

    Returns:
        ``(h, h_n)``: ``(T, B, directions * H)``, or packed, and ``(directions, B, H)``.
    """
    if len(groups) == 1:
        w_ih, w_hh, *biases = groups[0]
    else:
        w_ih, w_hh, *biases = (torch.cat(parts) for parts in zip(*groups, strict=True))
    b_ih, b_hh = biases or (None, None)
    rest = (batch_sizes, lengths, reset, mask, leak, nonlinearity, tuple(direction))
    if torch.compiler.is_exporting():
        return torch.ops.rnn_ext.layer(x, h0, w_ih, w_hh, b_ih, b_hh, *rest)
    if ops.has_kernel(x.device, x.dtype) and ops.plain_reverse_mode(x, h0, w_ih, w_hh, b_ih, b_hh):
        return Layer.apply(x, h0, w_ih, w_hh, b_ih, b_hh, *rest)
    return _composed(x, h0, w_ih, w_hh, b_ih, b_hh, *rest)


def _composed(
    x: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    leak: Tensor | None,
    nonlinearity: str,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    if b_hh is not None and b_hh.requires_grad and len(direction) > 1:
        # So that its gradient is a tensor of its own: see Layer.backward.
        b_hh = 1.0 * b_hh
    u = _project(x, w_ih, b_ih, b_hh)
    return ops.recurrence(u, h0, w_hh, batch_sizes, lengths, reset, mask, leak, nonlinearity, direction)


# The layer as a name in exported programs, for whoever translates them to a format that has recurrent layers
# (rnn_ext.onnx). To PyTorch it is an abbreviation: run_decompositions and every compiler write it out.
_library = torch.library.Library("rnn_ext", "FRAGMENT")
_library.define(
    "layer(Tensor x, Tensor? h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes, "
    "Tensor? lengths, Tensor? reset, Tensor? mask, Tensor? leak, str nonlinearity, int[] direction) -> (Tensor, Tensor)"
)
_library.impl("layer", _composed, "CompositeImplicitAutograd")


def _project(x: Tensor, w_ih: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    """``u_t = W_ih x_t + b_ih + b_hh`` for all t, as one GEMM."""
    return F.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh)


class Layer(torch.autograd.Function):
    """The layer as one node. Its backward is made of differentiable pieces, so it has one of its own."""

    @staticmethod
    def forward(ctx, x, h0, w_ih, w_hh, b_ih, b_hh, *rest):  # type: ignore[no-untyped-def]
        batch_sizes, lengths, reset, mask, leak, nonlinearity, direction = rest
        u = _project(x, w_ih, b_ih, b_hh)
        h, h_n = ops.recurrence(u, h0, w_hh, batch_sizes, lengths, reset, mask, leak, nonlinearity, direction)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, b_ih, b_hh, h, h0, w_hh, batch_sizes, lengths, reset, mask, leak)
        ctx.nonlinearity, ctx.direction = nonlinearity, direction
        return h, h_n

    @staticmethod
    def backward(ctx, g, g_n):  # type: ignore[no-untyped-def]
        if g is None and g_n is None:
            return (None,) * 13
        x, w_ih, b_ih, b_hh, h, h0, w_hh, batch_sizes, lengths, reset, mask, leak = ctx.saved_tensors
        u = _project(x, w_ih, b_ih, b_hh) if leaky.needs_sums(leak) else None
        need_x, need_h0, need_w_ih, need_w_hh, need_b_ih, need_b_hh = ctx.needs_input_grad[:6]
        s, h0_bar, w_hh_bar = ops.recurrence_backward(
            *(g, g_n, h, h0, w_hh, batch_sizes, lengths, reset, mask, leak),
            *(ctx.nonlinearity, ctx.direction, need_h0, need_w_hh, u),
        )
        s_rows = s.reshape(-1, s.shape[-1])
        w_ih_bar = s_rows.t() @ x.reshape(-1, x.shape[-1]) if need_w_ih else None
        b_bar = s_rows.sum(0) if need_b_ih or need_b_hh else None
        b_hh_bar = b_bar
        if need_b_hh and b_bar is not None and len(ctx.direction) > 1:
            # A tensor of its own. Where these are two directions' biases in one, autograd keeps views of what it gets
            # here as the parameters' gradients, and one that is added to or clipped must not change the other.
            b_hh_bar = b_bar.clone()
        return (
            s @ w_ih if need_x else None,
            h0_bar,
            w_ih_bar,
            w_hh_bar,
            b_bar if need_b_ih else None,
            b_hh_bar if need_b_hh else None,
            *(None,) * 7,
        )
