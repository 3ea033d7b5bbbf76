"""The two primitives as differentiable functions, and all of their derivative formulas (``leaky.py``: with a leak).

``recurrence`` (R) and ``linear_recurrence`` (L) are closed under differentiation (docs/mathematics.md): the
backward of R is L reversed in time with W transposed, the backward and the tangent of L are L again, and the rest
is GEMMs over all time steps at once. So gradients of every order, reverse and forward mode, and their vmaps run
on the same two kernels. Letters are those of docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_ext import dispatch, leaky, reference
from rnn_ext.batching import vmap_of
from rnn_ext.dispatch import has_kernel, plain_reverse_mode, recorded
from rnn_ext.layout import Layout, last, without_padding
from rnn_ext.leaky import leaky_linear_recurrence
from rnn_ext.transition import Transition, sums

__all__ = [
    "has_kernel",
    "leaky_linear_recurrence",
    "linear_recurrence",
    "plain_reverse_mode",
    "recorded",
    "recurrence",
    "recurrence_backward",
]

_ops = torch.ops.rnn_ext


def recurrence(
    u: Tensor,
    h0: Tensor | None,
    w: Tensor,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    leak: Tensor | None = None,
    nonlinearity: str = "tanh",
    direction: Sequence[int] = (1,),
) -> tuple[Tensor, Tensor]:
    """The recurrence ``h_t = phi(u_t + W h_{t-1})`` for G groups at once (docs/mathematics.md, R).

    Args:
        u: ``(T, B, G*H)``, or packed ``(N, G*H)``: what is added to the recurrent term, that is
            ``W_ih x_t + b``. T is 1 at the least. float32, float64, float16 or bfloat16; other dtypes run the
            reference.
        h0: ``(G, B, H)``, the states before the first step; None for zeros.
        w: ``(G*H, H)``, the groups' recurrent matrices one above the other.
        batch_sizes: int64 ``(T,)`` on the CPU if ``u`` is packed, as in a ``PackedSequence``.
        lengths: int64 ``(B,)`` on the CPU, from 1 to T, if ``u`` is padded and ragged. Outputs after a
            sequence's end are zero.
        reset: bool ``(T, B)`` on u's device, if ``u`` is padded: where True, no state passes between the steps t - 1
            and t of a sequence, in either direction. Its first step's row says nothing: h0 is what it is.
        mask: ``(G, B, H)``, of the states that W multiplies: ``W (mask * h_{t-1})`` stands in place of
            ``W h_{t-1}``. A constant, without a gradient. None for ones.
        leak: like ``u``, from 0 to 1, or bool: z of ``h_t = z_t * h_{t-1} + (1 - z_t) * phi(u_t + W h_{t-1})``, what
            part of a unit's state stays, the mask or not. A constant, without a gradient. None for zeros. If bool,
            backward needs nothing but the states; else it keeps u, and computes the sums again.
        nonlinearity: phi, "tanh" or "relu".
        direction: for each group 1 (forward in time) or -1 (reversed; a ragged row begins at its own end).

    Returns:
        ``(h, h_n)``: every state, shaped like ``u``, and ``(G, B, H)``, each sequence's last state.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.
    """
    if mask is not None or leak is not None:
        dispatch.check_constant(mask=mask, leak=leak)
    args = (u, h0, w, batch_sizes, lengths, reset, mask, leak, nonlinearity, tuple(direction))
    if dispatch.use_reference(u):
        return reference.recurrence(*args)
    return dispatch.call(_ops.recurrence.default, Recurrence, args)


def linear_recurrence(
    v: Tensor | None,
    seed: Tensor | None,
    w: Tensor,
    factor: Tensor,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    derivative: str = "given",
    seed_kind: str = "state",
    transpose: bool = False,
    direction: Sequence[int] = (1,),
) -> tuple[Tensor, Tensor]:
    """The recurrence ``y_t = d_t * (v_t + M y_{t-1})`` for G groups at once (docs/mathematics.md, L).

    Args:
        v: ``(T, B, G*H)`` or packed ``(N, G*H)``; None for zeros. T is 1 at the least.
        seed: ``(G, B, H)``; None for zeros. What it is, ``seed_kind`` says.
        w: ``(G*H, H)``; M is ``W diag(mask)``, or that transposed with ``transpose``.
        factor: like ``v``: ``d`` itself, or the output ``h`` whose derivative ``d`` is.
        batch_sizes: as in :func:`recurrence`.
        lengths: as in :func:`recurrence`.
        reset: as in :func:`recurrence`.
        mask: as in :func:`recurrence`.
        derivative: "given", ``d = factor``; "tanh", ``d = 1 - factor**2``; "relu", ``d = factor > 0``.
        seed_kind: "state", the seed is ``y_0``; "product", it stands for ``M y_0``.
        transpose: multiply with M transposed, ``diag(mask) Wᵀ``.
        direction: as in :func:`recurrence`.

    Returns:
        ``(y, y_n)``: every state, shaped like ``factor``, and ``(G, B, H)``, each sequence's last one.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.
    """
    if mask is not None:
        dispatch.check_constant(mask=mask)
    args = (v, seed, w, factor, batch_sizes, lengths, reset, mask, derivative, seed_kind, transpose, tuple(direction))
    if dispatch.use_reference(factor):
        return reference.linear_recurrence(*args)
    return dispatch.call(_ops.linear_recurrence.default, LinearRecurrence, args)


@torch.library.register_fake("rnn_ext::recurrence")
def _(u, h0, w, batch_sizes, lengths, reset, mask, leak, nonlinearity, direction):  # type: ignore[no-untyped-def]
    return u.new_empty(u.shape), u.new_empty(dispatch.states_shape(u, h0, w, batch_sizes, direction))


@torch.library.register_fake("rnn_ext::linear_recurrence")
def _(v, seed, w, factor, batch_sizes, lengths, reset, mask, derivative, seed_kind, transpose, direction):  # type: ignore[no-untyped-def]
    return factor.new_empty(factor.shape), factor.new_empty(
        dispatch.states_shape(factor, seed, w, batch_sizes, direction)
    )


def recurrence_backward(
    g: Tensor | None,
    g_n: Tensor | None,
    h: Tensor,
    h0: Tensor | None,
    w: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    leak: Tensor | None,
    nonlinearity: str,
    direction: tuple[int, ...],
    need_h0: bool,
    need_w: bool,
    u: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """BPTT: ``s_t = phi'(h_t) * (g_t + Wᵀ s_{t+1})``, where ``g_n`` joins at each sequence's last step.

    ``u`` is needed with a leak that is not bool.

    Returns:
        ``(s, h̄_0, W̄)``: s is also the gradient of u; the others only if needed.
    """
    if leak is not None:
        m = Transition(w, mask, False, Layout(batch_sizes, lengths, reset, direction))
        d = leaky.factor(u, h, h0, m, leak, nonlinearity)
        return leaky.backward(g, g_n, h, h0, m, d, leak, need_h0, need_w)
    backwards = tuple(-d for d in direction)
    s, s_first = linear_recurrence(
        g, g_n, w, h, batch_sizes, lengths, reset, mask, nonlinearity, "product", True, backwards
    )
    m = Transition(w, mask, False, Layout(batch_sizes, lengths, reset, direction))
    h0_bar = m.adjoint.of_states(s_first) if need_h0 else None
    w_bar = m.weight_gradient(s, h, s_first.shape[1], s_first, h0) if need_w else None
    return s, h0_bar, w_bar


class Recurrence(torch.autograd.Function):
    """(R) and its derivatives."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return dispatch.below_autograd(_ops.recurrence.default, args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        u, h0, w, batch_sizes, lengths, reset, mask, leak, ctx.nonlinearity, ctx.direction = inputs
        ctx.set_materialize_grads(False)
        saved = (output[0], h0, w, batch_sizes, lengths, reset, mask, leak, u if leaky.needs_sums(leak) else None)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, g, g_n):  # type: ignore[no-untyped-def]
        if g is None and g_n is None:
            return (None,) * 10
        _, need_h0, need_w = ctx.needs_input_grad[:3]
        h, h0, w, batch_sizes, lengths, reset, mask, leak, u = ctx.saved_tensors
        s, h0_bar, w_bar = recurrence_backward(
            *(g, g_n, h, h0, w, batch_sizes, lengths, reset, mask, leak),
            *(ctx.nonlinearity, ctx.direction, need_h0, need_w, u),
        )
        return s, h0_bar, w_bar, *(None,) * 7

    vmap = vmap_of(recurrence)

    @staticmethod
    def jvp(ctx, u_dot, h0_dot, w_dot, *_):  # type: ignore[no-untyped-def]
        # ḣ_t = phi'(h_t) * (u̇_t + Ẇ h_{t-1} + W ḣ_{t-1})
        h, h0, w, batch_sizes, lengths, reset, mask, leak, u = ctx.saved_tensors
        rows = (batch_sizes, lengths, reset)
        layout = Layout(*rows, ctx.direction)
        v = u_dot if w_dot is None else sums(u_dot, h, h0, "state", Transition(w_dot, mask, False, layout))
        if leak is not None:
            # ḣ_t = z_t * ḣ_{t-1} + d_t * (the same sum)
            d = leaky.factor(u, h, h0, Transition(w, mask, False, layout), leak, ctx.nonlinearity)
            v = None if v is None else d * without_padding(v, lengths)
            return leaky_linear_recurrence(v, h0_dot, w, d, leak, *rows, mask, "state", False, ctx.direction)
        return linear_recurrence(v, h0_dot, w, h, *rows, mask, ctx.nonlinearity, "state", False, ctx.direction)


class LinearRecurrence(torch.autograd.Function):
    """(L) and its derivatives."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return dispatch.below_autograd(_ops.linear_recurrence.default, args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        v, seed, w, factor, batch_sizes, lengths, reset, mask, *options = inputs
        ctx.derivative, ctx.seed_kind, ctx.transpose, ctx.direction = options
        ctx.set_materialize_grads(False)
        saved = (v, seed, w, factor, batch_sizes, lengths, reset, mask, output[0])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, y_bar, y_n_bar):  # type: ignore[no-untyped-def]
        # ā_t = d_t * (ȳ_t + Mᵀ ā_{t+1}): (L) again, reversed, with the other of W and Wᵀ.
        if y_bar is None and y_n_bar is None:
            return (None,) * 12
        v, seed, w, factor, batch_sizes, lengths, reset, mask, y = ctx.saved_tensors
        rows = (batch_sizes, lengths, reset)
        need_v, need_seed, need_w, need_factor = ctx.needs_input_grad[:4]
        m = Transition(w, mask, ctx.transpose, Layout(*rows, ctx.direction))
        back = m.adjoint
        a_bar, a_first = linear_recurrence(
            *(y_bar, y_n_bar, w, factor, *rows, mask),
            *(ctx.derivative, "product", back.transpose, back.layout.direction),
        )
        seed_bar = w_bar = factor_bar = None
        state = seed if ctx.seed_kind == "state" else None
        if need_seed:
            seed_bar = a_first if state is None else back.of_states(a_first)
        if need_w:
            w_bar = m.weight_gradient(a_bar, y, a_first.shape[1], a_first, state)
        if need_factor and ctx.derivative != "relu":
            # d̄_t = (ȳ_t + Mᵀ ā_{t+1}) * a_t, both factors GEMMs; no division by a d that may be zero.
            y_bar, v, factor = (without_padding(t, m.layout.lengths) for t in (y_bar, v, factor))
            q = sums(y_bar, a_bar, y_n_bar, "product", back)
            d_bar = q * sums(v, y, seed, ctx.seed_kind, m)
            factor_bar = d_bar if ctx.derivative == "given" else -2 * factor * d_bar
        return a_bar if need_v else None, seed_bar, w_bar, factor_bar, *(None,) * 8

    vmap = vmap_of(linear_recurrence)

    @staticmethod
    def jvp(ctx, v_dot, seed_dot, w_dot, factor_dot, *_):  # type: ignore[no-untyped-def]
        # ẏ = z + e with e_t = ḋ_t * a_t and z_t = d_t * (v̇_t + Ṁ y_{t-1} + M e_{t-1} + M z_{t-1}).
        v, seed, w, factor, batch_sizes, lengths, reset, mask, y = ctx.saved_tensors
        rows = (batch_sizes, lengths, reset)
        layout = Layout(*rows, ctx.direction)
        m = Transition(w, mask, ctx.transpose, layout)
        state = seed if ctx.seed_kind == "state" else None
        if w_dot is not None:
            v_dot = sums(v_dot, y, state, "state", m._replace(w=w_dot))
        e = None
        if factor_dot is not None and ctx.derivative != "relu":
            f, f_dot = (without_padding(t, layout.lengths) for t in (factor, factor_dot))
            a = sums(without_padding(v, layout.lengths), y, seed, ctx.seed_kind, m)
            e = a * (f_dot if ctx.derivative == "given" else -2 * f * f_dot)
            v_dot = sums(v_dot, e, None, "state", m)
        z, z_n = linear_recurrence(
            *(v_dot, seed_dot, w, factor, *rows, mask),
            *(ctx.derivative, ctx.seed_kind, ctx.transpose, ctx.direction),
        )
        return (z, z_n) if e is None else (z + e, z_n + last(e, layout, z_n.shape[1]))


dispatch.register("rnn_ext::recurrence", Recurrence)
dispatch.register("rnn_ext::linear_recurrence", LinearRecurrence)
