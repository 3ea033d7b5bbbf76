"""One layer: the projection of the whole sequence, and the recurrence over it.

Composed of two differentiable pieces, ``gemm.linear`` and ``ops.recurrence``. In plain reverse mode, which is all that
training asks for, both are one autograd node: a short sequence is then not outweighed by five nodes' bookkeeping. And
what is called most, no leak, on the CPU, is one op there and one in backward (``csrc/cpu/layer.cpp``,
``gradient.cpp``), as long as nothing else wants to see or to differentiate the pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_ext import dispatch, gemm, leaky, ops
from rnn_ext.layout import without_padding

# As the dispatcher has them, without a Python function around each.
_plain_layer = torch.ops.rnn_ext.plain_layer.default._op
_plain_layer_backward = torch.ops.rnn_ext.plain_layer_backward.default._op
_op_sum_of_rows = torch.ops.rnn_ext.sum_of_rows.default._op
# What they are given: x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, lengths, reset and mask, of :func:`layer`.
_Some = Tensor | None
Tensors = tuple[Tensor, _Some, Tensor, Tensor, _Some, _Some, _Some, _Some, _Some, _Some]
# The directions that these ops know, of which they are told whether the first is reversed.
_ALTERNATING = {(1,), (-1,), (1, -1)}


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
    editable: bool = False,
) -> tuple[Tensor, Tensor]:
    """All directions of one layer, as the groups of one recurrence.

    Args:
        x: ``(T, B, features)``, or packed ``(N, features)``. Where :func:`takes_padding` does not hold, zeros where
            a sequence has ended.
        groups: for each direction ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)``.
        h0: ``(directions, B, H)``; None for zeros.
        nonlinearity: "tanh" or "relu".
        batch_sizes: as in :func:`rnn_ext.ops.recurrence`.
        lengths: as in :func:`rnn_ext.ops.recurrence`.
        reset: as in :func:`rnn_ext.ops.recurrence`.
        mask: as in :func:`rnn_ext.ops.recurrence`.
        leak: as in :func:`rnn_ext.ops.recurrence`.
        direction: as in :func:`rnn_ext.ops.recurrence`, one for each of the groups.
        editable: whether the output is :func:`detachable`.

    Returns:
        ``(h, h_n)``: ``(T, B, directions * H)``, or packed, and ``(directions, B, H)``.
    """
    if len(groups) == 1:
        w_ih, w_hh, *biases = groups[0]
    else:
        w_ih, w_hh, *biases = (torch.cat(parts) for parts in zip(*groups, strict=True))
    b_ih, b_hh = biases or (None, None)
    direction = tuple(direction)
    rest: tuple[Any, ...] = (batch_sizes, lengths, reset, mask, leak, nonlinearity, direction)
    if torch.compiler.is_exporting():
        return torch.ops.rnn_ext.layer(x, h0, w_ih, w_hh, b_ih, b_hh, *rest)
    tensors = (x, h0, w_ih, w_hh, b_ih, b_hh)
    if mask is not None:
        dispatch.check_constant(mask=mask)
    if leak is None and direction in _ALTERNATING and w_hh.numel():
        done = plain((*tensors, batch_sizes, lengths, reset, mask), nonlinearity, direction, editable)
        if done is not None:
            return done
    if ops.has_kernel(x.device, x.dtype) and ops.plain_reverse_mode(*tensors):
        h, h_n = dispatch.apply(Layer, (*tensors, *rest))
    else:
        h, h_n = _composed(*tensors, *rest)
    return detachable(h) if editable else h, h_n


def takes_padding(
    x: Tensor, hx: Tensor | None, lengths: Tensor, reset: Tensor | None, weights: Sequence[Sequence[Tensor]]
) -> bool:
    """Whether padded batches with lengths may go through a stack of these layers as they are, whatever is in their
    padding: each of them is then a plain op, if there is no leak."""
    tensors = (x, hx, lengths, reset, *(w for group in weights for w in group))
    return dispatch.is_ordinary(tensors, x, weights[0][1]) and weights[0][1].numel() > 0


def plain(
    tensors: Tensors,
    nonlinearity: str,
    direction: tuple[int, ...],
    editable: bool,
) -> tuple[Tensor, Tensor] | None:
    """A layer without a leak, in one op; None where its pieces are wanted.

    Args:
        tensors: what the op is given.
        nonlinearity: as in :func:`layer`.
        direction: as in :func:`layer`, where directions alternate.
        editable: as in :func:`layer`.
    """
    if not dispatch.is_ordinary(tensors, tensors[0], tensors[3]):
        return None
    if not dispatch.wants_gradient(tensors):
        return _plain(*tensors, nonlinearity, direction)
    h, h_n, *_ = dispatch.apply(PlainLayer, (*tensors, nonlinearity, direction, editable))
    return h, h_n


def detachable(h: Tensor) -> Tensor:
    """h, such that ``output.relu_()`` before backward is as harmless as with ``nn.RNN``.

    h is saved for backward. The user gets a copy-on-write clone: it shares h's memory until someone writes to it.

    Under a functorch transform, the compiler or the tracer there is none; an in-place edit is then autograd's clear
    error, or functionalised.
    """
    if not (h.requires_grad and torch.is_grad_enabled()):
        return h
    if ops.recorded() or torch._C._are_functorch_transforms_active():
        return h
    # Copy on write is there for the CPU, and differentiable for real dtypes.
    return torch._lazy_clone(h) if h.device.type == "cpu" and not h.is_complex() else h.clone()


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
    return gemm.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh)


def _backward(
    g: Tensor | None,
    g_n: Tensor | None,
    x: Tensor,
    u: Tensor | None,
    h: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    rest: Any,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h0, w_ih, w_hh, b_ih and b_hh, of differentiable pieces, so that they have gradients too."""
    need_x, need_h0, need_w_ih, need_w_hh, need_b_ih, need_b_hh, *_ = needed
    batch_sizes, lengths, reset, mask, leak, nonlinearity, direction = rest
    s, h0_bar, w_hh_bar = ops.recurrence_backward(
        *(g, g_n, h, h0, w_hh, batch_sizes, lengths, reset, mask, leak),
        *(nonlinearity, direction, need_h0, need_w_hh, u),
    )
    s_rows = s.flatten(0, -2)
    w_ih_bar = gemm.product_of_columns(s_rows, x.flatten(0, -2)) if need_w_ih else None
    b_bar = _sum_of_rows(s_rows) if need_b_ih or need_b_hh else None
    x_bar = _input_gradient(s, w_ih, len(direction)) if need_x else None
    return x_bar, h0_bar, w_ih_bar, w_hh_bar, *_biases(b_bar, needed, len(direction))


def _input_gradient(s: Tensor, w_ih: Tensor, directions: int) -> Tensor:
    """``s @ w_ih``, one direction's product added to the other's, as the plain op does and for its reason."""
    first, *others = zip(s.chunk(directions, -1), w_ih.chunk(directions), strict=True)
    return sum((gemm.matmul(*other) for other in others), gemm.matmul(*first))


def _sum_of_rows(rows: Tensor) -> Tensor:
    """As the plain op sums, where that will do."""
    if torch.is_grad_enabled() or not dispatch.is_ordinary((rows,), rows, rows):
        return rows.sum(0)
    return _op_sum_of_rows(rows)


def _biases(b_bar: Tensor | None, needed: Sequence[bool], directions: int) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of both biases, for each."""
    need_b_ih, need_b_hh = needed[4:6]
    b_hh_bar = b_bar if need_b_hh else None
    if b_hh_bar is not None and directions > 1:
        # A tensor of its own. Where these are two directions' biases in one, autograd keeps views of what it gets
        # here as the parameters' gradients, and one that is added to or clipped must not change the other.
        b_hh_bar = b_hh_bar.clone()
    return b_bar if need_b_ih else None, b_hh_bar


class Layer(torch.autograd.Function):
    """The layer as one node. Its backward is made of differentiable pieces, so it has one of its own."""

    @staticmethod
    def forward(ctx, x, h0, w_ih, w_hh, b_ih, b_hh, *rest):  # type: ignore[no-untyped-def]
        *rows, ctx.nonlinearity, ctx.direction = rest
        u = _project(x, w_ih, b_ih, b_hh)
        h, h_n = ops.recurrence(u, h0, w_hh, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, b_ih, b_hh, h, h0, w_hh, *rows)
        return h, h_n

    @staticmethod
    def backward(ctx, g, g_n):  # type: ignore[no-untyped-def]
        if g is None and g_n is None:
            return (None,) * 13
        x, w_ih, b_ih, b_hh, h, h0, w_hh, *rows = ctx.saved_tensors
        u = _project(x, w_ih, b_ih, b_hh) if leaky.needs_sums(rows[-1]) else None
        rest = (*rows, ctx.nonlinearity, ctx.direction)
        return *_backward(g, g_n, x, u, h, h0, w_ih, w_hh, rest, ctx.needs_input_grad), *(None,) * 7


def _flags(nonlinearity: str, direction: tuple[int, ...]) -> tuple[bool, bool]:
    """What the plain ops are told: relu, and whether the first group is reversed."""
    return nonlinearity == "relu", direction[0] == -1


def _plain(
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
    nonlinearity: str,
    direction: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    rows = (batch_sizes, lengths, reset, mask)
    if dispatch.watched():
        rest = (*rows, None, nonlinearity, direction)
        return _composed(without_padding(x, lengths), h0, w_ih, w_hh, b_ih, b_hh, *rest)
    return _plain_layer(x, h0, w_ih, w_hh, b_ih, b_hh, *rows, *_flags(nonlinearity, direction))


class PlainLayer(torch.autograd.Function):
    """Likewise, without a leak, and by one op each way; a gradient of the gradient needs the pieces.

    If editable, the first result is a copy-on-write clone of the third, which backward keeps: so that is part of the
    graph, at less cost than that of a node for the clone.
    """

    @staticmethod
    def forward(ctx, x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, lengths, reset, mask, *options):  # type: ignore[no-untyped-def]
        nonlinearity, direction, editable = options
        # Of their own: a loader may use the same buffer for the next batch, before backward.
        lengths, reset = (None if t is None else t.clone() for t in (lengths, reset))
        rows = (batch_sizes, lengths, reset, mask)
        h, h_n = _plain(x, h0, w_ih, w_hh, b_ih, b_hh, *rows, nonlinearity, direction)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, w_ih, w_hh, h, *rows)
        ctx.options = nonlinearity, direction
        return (torch._lazy_clone(h), h_n, h) if editable else (h, h_n)

    @staticmethod
    def backward(ctx, g, g_n, g_kept=None):  # type: ignore[no-untyped-def]
        if g_kept is not None:
            g = g_kept if g is None else g + g_kept
        if g is None and g_n is None:
            return (None,) * 13
        x, h0, w_ih, w_hh, h, *rows = ctx.saved_tensors
        needed = ctx.needs_input_grad
        tensors = (g, g_n, x, h0, w_ih, w_hh, h, *rows)
        if torch.is_grad_enabled() or dispatch.watched() or not dispatch.is_ordinary(tensors, x, w_hh):
            rest = (*rows, None, *ctx.options)
            x = without_padding(x, rows[1])
            return *_backward(g, g_n, x, None, h, h0, w_ih, w_hh, rest, needed), *(None,) * 7
        need_x, need_h0, need_w_ih, need_w_hh, need_b_ih, need_b_hh, *_ = needed
        args = (*tensors, *_flags(*ctx.options), need_x, need_h0, need_w_ih, need_w_hh)
        *bars, b_bar = _plain_layer_backward(*args, need_b_ih or need_b_hh)
        return *bars, *_biases(b_bar, needed, len(ctx.options[1])), *(None,) * 7
