"""The two primitives as differentiable functions, and all of their derivative formulas.

``recurrence`` (R) and ``linear_recurrence`` (L) are closed under differentiation (docs/mathematics.md): the
backward of R is L reversed in time with W transposed, the backward and the tangent of L are L again, and the rest
is GEMMs over all time steps at once. So gradients of every order, reverse and forward mode, and their vmaps run
on the same two kernels. Letters are those of docs/mathematics.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_ext import _C, reference
from rnn_ext.batching import Fold
from rnn_ext.layout import Layout, last, previous, zero_where_ended
from rnn_ext.transition import Transition

_ops = torch.ops.rnn_ext
_DTYPES = frozenset(getattr(torch, name) for name in _C.build_info()["dtypes"])
_DEVICES = frozenset(("cpu", "meta", "cuda") if _C.build_info()["cuda"] is True else ("cpu", "meta"))
_warned: set[tuple[str, torch.dtype]] = set()


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build has a kernel for tensors of ``dtype`` on ``device``; meta tensors count as having."""
    return dtype in _DTYPES and device.type in _DEVICES


def _use_reference(t: Tensor) -> bool:
    """True where no kernel is built for ``t``; the first time for a device and dtype, warns."""
    device, dtype = t.device, t.dtype
    if has_kernel(device, dtype):
        return False
    if (device.type, dtype) not in _warned:
        _warned.add((device.type, dtype))
        remedy = (
            f"use a dtype that has one ({', '.join(sorted(str(d) for d in _DTYPES))})"
            if device.type in _DEVICES
            else "this build of rnn_ext is CPU-only, so move the module and its input to the CPU for full speed"
        )
        warnings.warn(
            f"rnn_ext has no kernel for {dtype} on {device.type}; it runs the plain PyTorch reference, which is "
            f"right but slow. To avoid it, {remedy}.",
            stacklevel=4,
        )
    return True


def recorded() -> bool:
    """Whether the compiler, the exporter or the tracer is recording what runs now."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def plain_reverse_mode(*args: Any) -> bool:
    """Whether gradients are wanted, and nothing but gradients: no recording, no transform, no tangent."""
    return (
        torch.is_grad_enabled()
        and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not recorded()
    )


def _call(op: Any, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The way of a call to its kernel."""
    if recorded():
        # As one op, with the derivative that is registered for it below.
        return op(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    # Duals of forward mode do not require grad.
    if plain_reverse_mode(*args) or torch.autograd.forward_ad._current_level >= 0:
        # function.apply, without the 30 us that it spends on inspecting forward's signature.
        return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]
    return _below_autograd(op, args)


def _below_autograd(op: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The kernel itself. The op's registered autograd, in Python, would take 10 us to find nothing to do."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def recurrence(
    u: Tensor,
    h0: Tensor | None,
    w: Tensor,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    mask: Tensor | None = None,
    nonlinearity: str = "tanh",
    direction: Sequence[int] = (1,),
) -> tuple[Tensor, Tensor]:
    """The recurrence ``h_t = phi(u_t + W h_{t-1})`` for G groups at once (docs/mathematics.md, R).

    Args:
        u: ``(T, B, G*H)``, or packed ``(N, G*H)``: what is added to the recurrent term, that is
            ``W_ih x_t + b``. float32, float64, float16 or bfloat16; other dtypes run the reference.
        h0: ``(G, B, H)``, the states before the first step; None for zeros.
        w: ``(G*H, H)``, the groups' recurrent matrices one above the other.
        batch_sizes: int64 ``(T,)`` on the CPU if ``u`` is packed, as in a ``PackedSequence``.
        lengths: int64 ``(B,)`` on the CPU, from 1 to T, if ``u`` is padded and ragged. Outputs after a
            sequence's end are zero.
        reset: bool ``(T, B)`` on u's device, if ``u`` is padded: where True, no state passes between the steps t - 1
            and t of a sequence, in either direction. Its first step's row says nothing: h0 is what it is.
        mask: ``(G, B, H)``, of the states that W multiplies: ``W (mask * h_{t-1})`` stands in place of
            ``W h_{t-1}``. A constant, without a gradient. None for ones.
        nonlinearity: phi, "tanh" or "relu".
        direction: for each group 1 (forward in time) or -1 (reversed; a ragged row begins at its own end).

    Returns:
        ``(h, h_n)``: every state, shaped like ``u``, and ``(G, B, H)``, each sequence's last state.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.
    """
    _check_constant(mask)
    args = (u, h0, w, batch_sizes, lengths, reset, mask, nonlinearity, tuple(direction))
    if _use_reference(u):
        return reference.recurrence(*args)
    return _call(_ops.recurrence.default, Recurrence, args)


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
        v: ``(T, B, G*H)`` or packed ``(N, G*H)``; None for zeros.
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
    _check_constant(mask)
    args = (v, seed, w, factor, batch_sizes, lengths, reset, mask, derivative, seed_kind, transpose, tuple(direction))
    if _use_reference(factor):
        return reference.linear_recurrence(*args)
    return _call(_ops.linear_recurrence.default, LinearRecurrence, args)


@torch.library.register_fake("rnn_ext::recurrence")
def _(u, h0, w, batch_sizes, lengths, reset, mask, nonlinearity, direction):  # type: ignore[no-untyped-def]
    return u.new_empty(u.shape), u.new_empty(_states_shape(u, h0, w, batch_sizes, direction))


@torch.library.register_fake("rnn_ext::linear_recurrence")
def _(v, seed, w, factor, batch_sizes, lengths, reset, mask, derivative, seed_kind, transpose, direction):  # type: ignore[no-untyped-def]
    return factor.new_empty(factor.shape), factor.new_empty(_states_shape(factor, seed, w, batch_sizes, direction))


def _states_shape(
    rows: Tensor, seed: Tensor | None, w: Tensor, batch_sizes: Tensor | None, direction: Sequence[int]
) -> tuple[Any, ...]:
    batch: Any  # an int, or the compiler's symbol for one
    if batch_sizes is None:
        batch = rows.shape[1]
    elif seed is not None:
        batch = seed.shape[1]
    else:
        # Without a seed the batch of packed data is known only from the values of batch_sizes.
        batch = torch.library.get_ctx().new_dynamic_size()
    return len(direction), batch, w.shape[1]


def _check_constant(mask: Tensor | None) -> None:
    if mask is not None and mask.requires_grad:
        raise RuntimeError("mask must be a constant, got one that requires a gradient; pass mask.detach()")


def _sum(v: Tensor | None, y: Tensor, seed: Tensor | None, seed_kind: str, m: Transition) -> Tensor:
    """``a_t = v_t + M y_{t-1}`` for all t, as one GEMM."""
    first = m.of_states(seed) if seed is not None and seed_kind == "state" else seed
    a = previous(m.of(y), first, m.layout)
    return a if v is None else a + v


def _without_padding(sequence: Tensor | None, lengths: Tensor | None) -> Any:
    """What stands after a row's end may be anything, NaN too; a formula that multiplies it, or whose derivative does,
    takes zeros there instead."""
    return sequence if sequence is None or lengths is None else zero_where_ended(sequence, lengths)


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
    nonlinearity: str,
    direction: tuple[int, ...],
    need_h0: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """BPTT: ``s_t = phi'(h_t) * (g_t + Wᵀ s_{t+1})``, where ``g_n`` joins at each sequence's last step.

    Returns:
        ``(s, h̄_0, W̄)``: s is also the gradient of u; the others only if needed.
    """
    backwards = tuple(-d for d in direction)
    s, s_first = linear_recurrence(
        g, g_n, w, h, batch_sizes, lengths, reset, mask, nonlinearity, "product", True, backwards
    )
    m = Transition(w, mask, False, Layout(batch_sizes, lengths, reset, direction))
    h0_bar = m.adjoint.of_states(s_first) if need_h0 else None
    w_bar = m.weight_gradient(s, h, s_first, h0) if need_w else None
    return s, h0_bar, w_bar


class Recurrence(torch.autograd.Function):
    """(R) and its derivatives."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return _below_autograd(_ops.recurrence.default, args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, h0, w, batch_sizes, lengths, reset, mask, ctx.nonlinearity, ctx.direction = inputs
        ctx.set_materialize_grads(False)
        saved = (output[0], h0, w, batch_sizes, lengths, reset, mask)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, g, g_n):  # type: ignore[no-untyped-def]
        if g is None and g_n is None:
            return (None,) * 9
        _, need_h0, need_w = ctx.needs_input_grad[:3]
        h, h0, w, batch_sizes, lengths, reset, mask = ctx.saved_tensors
        s, h0_bar, w_bar = recurrence_backward(
            *(g, g_n, h, h0, w, batch_sizes, lengths, reset, mask),
            *(ctx.nonlinearity, ctx.direction, need_h0, need_w),
        )
        return s, h0_bar, w_bar, None, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, u, h0, w, batch_sizes, lengths, reset, mask, nonlinearity, direction):  # type: ignore[no-untyped-def]
        fold = Fold(info.batch_size, in_dims[2] is not None, in_dims[3:5])
        u, h0, w = fold.rows(u, in_dims[0]), fold.states(h0, in_dims[1]), fold.weight(w, in_dims[2])
        batch_sizes, lengths = fold.ragged(batch_sizes, lengths)
        reset, mask = fold.reset(reset, in_dims[5]), fold.states(mask, in_dims[6])
        out = recurrence(u, h0, w, batch_sizes, lengths, reset, mask, nonlinearity, fold.direction(direction))
        return fold.outputs(out, len(direction))

    @staticmethod
    def jvp(ctx, u_dot, h0_dot, w_dot, *_):  # type: ignore[no-untyped-def]
        # ḣ_t = phi'(h_t) * (u̇_t + Ẇ h_{t-1} + W ḣ_{t-1})
        h, h0, w, batch_sizes, lengths, reset, mask = ctx.saved_tensors
        rows = (batch_sizes, lengths, reset)
        layout = Layout(*rows, ctx.direction)
        v = u_dot if w_dot is None else _sum(u_dot, h, h0, "state", Transition(w_dot, mask, False, layout))
        return linear_recurrence(v, h0_dot, w, h, *rows, mask, ctx.nonlinearity, "state", False, ctx.direction)


class LinearRecurrence(torch.autograd.Function):
    """(L) and its derivatives."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return _below_autograd(_ops.linear_recurrence.default, args)

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
            w_bar = m.weight_gradient(a_bar, y, a_first, state)
        if need_factor and ctx.derivative != "relu":
            # d̄_t = (ȳ_t + Mᵀ ā_{t+1}) * a_t, both factors GEMMs; no division by a d that may be zero.
            y_bar, v, factor = (_without_padding(t, m.layout.lengths) for t in (y_bar, v, factor))
            q = _sum(y_bar, a_bar, y_n_bar, "product", back)
            d_bar = q * _sum(v, y, seed, ctx.seed_kind, m)
            factor_bar = d_bar if ctx.derivative == "given" else -2 * factor * d_bar
        return a_bar if need_v else None, seed_bar, w_bar, factor_bar, *(None,) * 8

    @staticmethod
    def vmap(info, in_dims, *args):  # type: ignore[no-untyped-def]
        v, seed, w, factor, batch_sizes, lengths, reset, mask, derivative, seed_kind, transpose, direction = args
        fold = Fold(info.batch_size, in_dims[2] is not None, in_dims[4:6])
        v, factor = fold.rows(v, in_dims[0]), fold.rows(factor, in_dims[3])
        assert factor is not None
        seed, w = fold.states(seed, in_dims[1]), fold.weight(w, in_dims[2])
        batch_sizes, lengths = fold.ragged(batch_sizes, lengths)
        reset, mask = fold.reset(reset, in_dims[6]), fold.states(mask, in_dims[7])
        out = linear_recurrence(
            *(v, seed, w, factor, batch_sizes, lengths, reset, mask),
            *(derivative, seed_kind, transpose, fold.direction(direction)),
        )
        return fold.outputs(out, len(direction))

    @staticmethod
    def jvp(ctx, v_dot, seed_dot, w_dot, factor_dot, *_):  # type: ignore[no-untyped-def]
        # ẏ = z + e with e_t = ḋ_t * a_t and z_t = d_t * (v̇_t + Ṁ y_{t-1} + M e_{t-1} + M z_{t-1}).
        v, seed, w, factor, batch_sizes, lengths, reset, mask, y = ctx.saved_tensors
        rows = (batch_sizes, lengths, reset)
        layout = Layout(*rows, ctx.direction)
        m = Transition(w, mask, ctx.transpose, layout)
        state = seed if ctx.seed_kind == "state" else None
        if w_dot is not None:
            v_dot = _sum(v_dot, y, state, "state", m._replace(w=w_dot))
        e = None
        if factor_dot is not None and ctx.derivative != "relu":
            f, f_dot = (_without_padding(t, layout.lengths) for t in (factor, factor_dot))
            a = _sum(_without_padding(v, layout.lengths), y, seed, ctx.seed_kind, m)
            e = a * (f_dot if ctx.derivative == "given" else -2 * f * f_dot)
            v_dot = _sum(v_dot, e, None, "state", m)
        z, z_n = linear_recurrence(
            *(v_dot, seed_dot, w, factor, *rows, mask),
            *(ctx.derivative, ctx.seed_kind, ctx.transpose, ctx.direction),
        )
        return (z, z_n) if e is None else (z + e, z_n + last(e, layout))


# For the compiler, for traced graphs and for whoever calls torch.ops.rnn_ext directly.
for _name, _function in (("rnn_ext::recurrence", Recurrence), ("rnn_ext::linear_recurrence", LinearRecurrence)):
    torch.library.register_autograd(_name, _function.backward, setup_context=_function.setup_context)
    torch.library.register_vmap(_name, _function.vmap)
