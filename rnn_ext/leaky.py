"""States that leak: the linear recurrence of their derivatives, and its own derivatives.

Where part of a state stays, as in zoneout, ``h_t = z_t * h_{t-1} + (1 - z_t) * phi(a_t)``, a small change of one state
becomes that of the next by ``A_t = diag(z_t) + diag(d_t) M`` with ``d_t = (1 - z_t) * phi'(a_t)``. So (A) of
docs/mathematics.md, section 11, with the transpose of A stands where (L) does without a leak. Like (L) it is closed
under differentiation. Letters are those of docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_ext import dispatch, reference
from rnn_ext.batching import vmap_of
from rnn_ext.layout import Layout, last, previous, without_padding
from rnn_ext.transition import Transition, sums

_op = torch.ops.rnn_ext.leaky_linear_recurrence.default


def leaky_linear_recurrence(
    v: Tensor | None,
    seed: Tensor | None,
    w: Tensor,
    factor: Tensor,
    leak: Tensor,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    seed_kind: str = "state",
    transpose: bool = False,
    direction: Sequence[int] = (1,),
) -> tuple[Tensor, Tensor]:
    """The recurrence ``y_t = v_t + A_t y_{t-1}``, ``A_t = diag(z_t) + diag(d_t) W diag(mask)``, for G groups at once.

    Or, with ``transpose``, ``y_t = v_t + A_{t-1}ᵀ y_{t-1}`` (docs/mathematics.md, A).

    Args:
        v: ``(T, B, G*H)`` or packed ``(N, G*H)``; None for zeros.
        seed: ``(G, B, H)``; None for zeros. What it is, ``seed_kind`` says.
        w: ``(G*H, H)``.
        factor: like ``v``: d.
        leak: like ``v``, or bool: z, a constant without a gradient.
        batch_sizes: as in :func:`rnn_ext.ops.recurrence`.
        lengths: as in :func:`rnn_ext.ops.recurrence`.
        reset: as in :func:`rnn_ext.ops.recurrence`.
        mask: as in :func:`rnn_ext.ops.recurrence`.
        seed_kind: "state", the seed is ``y_0``, not with ``transpose``; "product", it stands for ``A y_0``.
        transpose: multiply with A transposed, that of the step before.
        direction: as in :func:`rnn_ext.ops.recurrence`.

    Returns:
        ``(y, y_n)``: every state, shaped like ``factor``, and ``(G, B, H)``, each sequence's last one.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.
    """
    dispatch.check_constant(leak=leak, mask=mask)
    args = (v, seed, w, factor, leak, batch_sizes, lengths, reset, mask, seed_kind, transpose, tuple(direction))
    if dispatch.use_reference(factor):
        return reference.leaky_linear_recurrence(*args)
    return dispatch.call(_op, LeakyLinearRecurrence, args)


@torch.library.register_fake("rnn_ext::leaky_linear_recurrence")
def _(v, seed, w, factor, leak, batch_sizes, lengths, reset, mask, seed_kind, transpose, direction):  # type: ignore[no-untyped-def]
    return factor.new_empty(factor.shape), factor.new_empty(
        dispatch.states_shape(factor, seed, w, batch_sizes, direction)
    )


def _scan(
    v: Tensor | None,
    seed: Tensor | None,
    m: Transition,
    factor: Tensor,
    leak: Tensor,
    seed_kind: str,
) -> tuple[Tensor, Tensor]:
    rows = m.layout[:3]
    return leaky_linear_recurrence(
        v, seed, m.w, factor, leak, *rows, m.mask, seed_kind, m.transpose, m.layout.direction
    )


def needs_sums(leak: Tensor | None) -> bool:
    """Whether the states alone do not tell phi'(a_t): where part of a state stays, it hides the new one's value."""
    return leak is not None and leak.dtype != torch.bool


def factor(u: Tensor | None, h: Tensor, h0: Tensor | None, m: Transition, leak: Tensor, nonlinearity: str) -> Tensor:
    """``d_t = (1 - z_t) * phi'(a_t)``. ``u`` only if the sums are needed; they are a GEMM, as ``a_t`` of (13)."""
    lengths = m.layout.lengths
    if not needs_sums(leak):
        # A state that did not stay is phi(a_t).
        return reference.DERIVATIVES[nonlinearity](h).masked_fill(without_padding(leak, lengths), 0)
    phi = reference.ACTIVATIONS[nonlinearity](sums(without_padding(u, lengths), h, h0, "state", m))
    return (1 - without_padding(leak, lengths)) * reference.DERIVATIVES[nonlinearity](phi)


def backward(
    y_bar: Tensor | None,
    y_n_bar: Tensor | None,
    y: Tensor,
    state: Tensor | None,
    m: Transition,
    factor: Tensor,
    leak: Tensor,
    need_state: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients at the sums ``M y_{t-1}`` that are multiplied by d, at the state before the first, and at W.

    Args:
        y_bar: what arrives at the states.
        y_n_bar: what arrives at each sequence's last state.
        y: the states, a sequence.
        state: before the first step; None for zeros.
        m: M and the layout, not transposed.
        factor: d.
        leak: z.
        need_state: whether the second result is wanted.
        need_w: whether the third is.
    """
    c, c_first = _scan(y_bar, y_n_bar, m.adjoint, factor, leak, "product")
    s = factor * c
    s_first = last(factor, m.layout.reversed, c_first.shape[1]) * c_first if need_state or state is not None else None
    state_bar = _of_first(c_first, s_first, m, leak) if need_state and s_first is not None else None
    return s, state_bar, m.weight_gradient(s, y, c_first.shape[1], s_first, state) if need_w else None


def _of_first(c_first: Tensor, s_first: Tensor, m: Transition, leak: Tensor) -> Tensor:
    """``A_1ᵀ c_1``, the gradient at the state before the first step."""
    return last(leak, m.layout.reversed, c_first.shape[1]) * c_first + m.adjoint.of_states(s_first)


class LeakyLinearRecurrence(torch.autograd.Function):
    """(A) and its derivatives."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return dispatch.below_autograd(_op, args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, seed, w, factor, leak, batch_sizes, lengths, reset, mask, *options = inputs
        ctx.seed_kind, ctx.transpose, ctx.direction = options
        ctx.set_materialize_grads(False)
        saved = (seed, w, factor, leak, batch_sizes, lengths, reset, mask, output[0])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, y_bar, y_n_bar):  # type: ignore[no-untyped-def]
        if y_bar is None and y_n_bar is None:
            return (None,) * 12
        seed, w, factor, leak, batch_sizes, lengths, reset, mask, y = ctx.saved_tensors
        need_v, need_seed, need_w, need_factor = ctx.needs_input_grad[:4]
        layout = Layout(batch_sizes, lengths, reset, ctx.direction)
        factor, leak = without_padding(factor, lengths), without_padding(leak, lengths)
        m = Transition(w, mask, ctx.transpose, layout)
        v_bar, first = _scan(y_bar, y_n_bar, m.adjoint, factor, leak, "product")
        # Each form is the other's adjoint, so one of the two is the transposed one's c, with the layout of the other.
        c, y, m = (y, v_bar, m.adjoint) if ctx.transpose else (v_bar, y, m)
        state = seed if ctx.seed_kind == "state" else None
        seed_bar = first if need_seed else None
        s_first = w_bar = factor_bar = None
        if state is not None and (need_seed or need_w):
            s_first = last(factor, m.layout.reversed, first.shape[1]) * first
            seed_bar = _of_first(first, s_first, m, leak) if need_seed else None
        if need_w:
            w_bar = m.weight_gradient(factor * c, y, first.shape[1], s_first, state)
        if need_factor:
            factor_bar = c * previous(m.of(y), None if state is None else m.of_states(state), m.layout)
        return (v_bar if need_v else None, seed_bar, w_bar, factor_bar, *(None,) * 8)

    vmap = vmap_of(leaky_linear_recurrence)

    @staticmethod
    def jvp(ctx, v_dot, seed_dot, w_dot, factor_dot, *_):  # type: ignore[no-untyped-def]
        # ẏ_t = v̇_t + Ȧ_t y_{t-1} + A_t ẏ_{t-1}, all but the last known for all t beforehand.
        seed, w, factor, leak, batch_sizes, lengths, reset, mask, y = ctx.saved_tensors
        m = Transition(w, mask, ctx.transpose, Layout(batch_sizes, lengths, reset, ctx.direction))
        factor, leak, factor_dot = (without_padding(t, lengths) for t in (factor, leak, factor_dot))
        v_dot = without_padding(v_dot, lengths)
        state = seed if ctx.seed_kind == "state" else None
        changes = [(m, factor_dot), (None if w_dot is None else m._replace(w=w_dot), factor)]
        for of, by in changes:
            if of is None or by is None:
                continue
            if ctx.transpose:
                change = previous(of.of(by * y), None, of.layout)
            else:
                change = by * previous(of.of(y), None if state is None else of.of_states(state), of.layout)
            v_dot = change if v_dot is None else v_dot + change
        return _scan(v_dot, seed_dot, m, factor, leak, ctx.seed_kind)


dispatch.register("rnn_ext::leaky_linear_recurrence", LeakyLinearRecurrence)
