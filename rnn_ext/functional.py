"""The functional face: a stack of Elman layers, or one cell, for those who keep their own parameters.

A layer is one projection of the whole sequence (a GEMM), one recurrence over time (``rnn_ext.ops``), and, between
layers, dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_ext import dispatch, ops
from rnn_ext.checkpoint import check_arguments, checkpointed
from rnn_ext.layer import detachable, layer, takes_padding
from rnn_ext.layout import zero_where_ended
from rnn_ext.packing import Padding, wrong_with

__all__ = ["rnn", "rnn_cell"]

# (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh) of one layer and direction.
Weights = Sequence[Tensor]

_RNN_CELLS = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")


def check_probabilities(*, recurrent_dropout: float, zoneout: float) -> None:
    """Raises ValueError for what is not from 0 to 1."""
    for name, p, event in (
        ("recurrent_dropout", recurrent_dropout, "an element being zeroed"),
        ("zoneout", zoneout, "a unit keeping its state"),
    ):
        if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p <= 1:
            raise ValueError(f"{name} must be a number from 0 to 1, the probability of {event}, got {p!r}")


def check_alpha(alpha: float) -> None:
    """Raises ValueError for what is not above 0 and at most 1."""
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be a number above 0 and at most 1, what a step renews of a state, got {alpha!r}")


def rnn(
    input: Tensor,
    weights: Sequence[Weights],
    hx: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    alpha: float = 1.0,
    checkpoint_every: int | None = None,
    return_all_layers: bool = False,
) -> tuple[Any, Tensor]:
    """A stack of Elman layers over a whole sequence.

    Each layer computes ``h_t = phi(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, as ``torch.nn.RNN`` does.

    Args:
        input: ``(T, B, input_size)``, or packed ``(N, input_size)`` with ``batch_sizes``.
        weights: for each layer, and in it for each direction, ``(w_ih, w_hh)`` or
            ``(w_ih, w_hh, b_ih, b_hh)`` of shapes ``(H, features)``, ``(H, H)``, ``(H,)``, ``(H,)``. Layers after
            the first have ``features = H`` times the number of directions.
        hx: ``(layers * directions, B, H)``, the initial states; None for zeros.
        nonlinearity: phi, "tanh" or "relu".
        bidirectional: two directions a layer, the second reversed in time.
        dropout: probability with which an output of a layer but the last is zeroed.
        training: whether dropout is applied, and zoneout drawn.
        batch_sizes: int64 ``(T,)`` on the CPU, of a ``PackedSequence``.
        lengths: int64 ``(B,)`` on the CPU, for padded input of ragged length: outputs after a sequence's end are
            zero, ``h_n`` is each sequence's own last state.
        reset: bool ``(T, B)``, for padded input: True where a step has nothing before it, so that its state is made
            from zeros; of the first step, instead of from ``hx``. For the reversed direction, the step before it has
            nothing after it.
        recurrent_dropout: in training, the probability with which a unit of the state is zeroed, and the others
            scaled by ``1 / (1 - p)``, where W_hh multiplies it: one draw for all steps of a sequence, a layer and
            direction (Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
            Networks", 2016). The outputs are not masked.
        zoneout: in training, the probability with which a unit of the state stays what it was before the step, drawn
            for each step, row and unit; else each new state is that much of the old one, ``zoneout * h_{t-1} +
            (1 - zoneout) * phi(...)`` (Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden
            Activations", 2017).
        alpha: what a step renews of each state: ``h_t = (1 - alpha) * h_{t-1} + alpha * phi(...)``, the Euler step of
            ``tau dh/dt = -h + phi(...)`` with ``alpha = dt / tau`` (leaky integrator units: Jaeger et al.,
            "Optimization and applications of echo state networks with leaky-integrator neurons", 2007). Of units that
            zoneout keeps, nothing. In 16 bits ``1 - alpha`` is rounded, and so are the states' small changes; autocast
            leaves such layers in float32.
        checkpoint_every: in training, keep only the states of every so many steps, and compute those between again
            in backward (:mod:`rnn_ext.checkpoint`); None for keeping all of them.
        return_all_layers: the first result is a list of every layer's output, before dropout, the last one the output.

    Returns:
        ``(output, h_n)``: ``(T, B, directions * H)``, or packed, and ``(layers * directions, B, H)``.

    Raises:
        ValueError: an unknown nonlinearity, a number of weight groups that does not fit, a probability that is none, an
            ``alpha`` that is not above 0 and at most 1 or that 16 bits do not hold, or ``checkpoint_every`` that is not
            positive or comes with ragged sequences or ``return_all_layers``.
        RuntimeError: a shape or dtype that does not fit.
    """
    _check_nonlinearity(nonlinearity)
    if recurrent_dropout or zoneout:
        check_probabilities(recurrent_dropout=recurrent_dropout, zoneout=zoneout)
    check_alpha(alpha)
    directions = 2 if bidirectional else 1
    if not weights or len(weights) % directions:
        raise ValueError(
            f"weights must hold one group for each layer and direction ({directions} directions), got {len(weights)}"
        )
    if batch_sizes is None and input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    masked, leaks = bool(training and recurrent_dropout), bool(zoneout or alpha != 1)
    padding = None
    if lengths is not None:
        wrong = wrong_with(lengths, *input.shape[:2])
        if wrong:
            raise RuntimeError(wrong)
        lengths = lengths.contiguous()
        whole = not leaks and checkpoint_every is None and takes_padding(input, hx, lengths, reset, weights)
        if ops.recorded() or (reset is not None and not whole):
            # What stands in the padding must not reach W_ih's gradient, and zero times NaN is NaN.
            input = zero_where_ended(input, lengths)
        elif hx is not None and hx.shape[1] != len(lengths):
            raise RuntimeError(f"hx must have states of {len(lengths)} sequences, got {tuple(hx.shape)}")
        elif not whole and len(lengths) > 0:  # packed, no sequences are no steps
            padding = Padding(input, lengths)
            input, batch_sizes, lengths = padding.pack(input), padding.batch_sizes, None
            hx = None if hx is None else hx.index_select(1, padding.order)
    if dispatch.autocasts(input.device):
        # nn.RNN's op is on autocast's list of those to run in the lower precision. Leaky units, whose states change by
        # little in a step, are not.
        dtype = torch.get_autocast_dtype(input.device.type) if alpha == 1 else torch.float32
        input = _autocast(input, dtype)
        hx = None if hx is None else _autocast(hx, dtype)
        weights = [[_autocast(w, dtype) for w in group] for group in weights]
    direction = (1, -1) if bidirectional else (1,)
    if (
        batch_sizes is reset is checkpoint_every is None
        and len(weights) == directions
        and not (leaks or return_all_layers or masked)
    ):
        # One layer and nothing special: what follows comes to this, and takes as long as a short sequence.
        return layer(input, weights, hx, nonlinearity, None, lengths, None, None, None, direction, True)
    dropped = dropout if training else 0.0
    masks: list[Tensor | None] = [None] * (len(weights) // directions)
    if masked:
        batch = input.shape[1] if batch_sizes is None else int(batch_sizes[0]) if hx is None else hx.shape[1]
        ones = input.new_ones(directions, batch, weights[0][1].shape[1])
        drawn = [F.dropout(ones, recurrent_dropout, True) for _ in masks]
        # A sequence's draw is its own, whichever row it has become.
        masks = [mask if padding is None else mask.index_select(1, padding.order) for mask in drawn]

    rows = (batch_sizes, lengths, reset)
    options = (nonlinearity, dropped, zoneout, alpha, training)
    if checkpoint_every is not None:
        check_arguments(checkpoint_every, batch_sizes is not None or lengths is not None, return_all_layers)
        if ops.plain_reverse_mode(input, hx, *(w for group in weights for w in group)):
            run = partial(_chunk, options)
            return checkpointed(run, input, weights, hx, reset, masks, direction, checkpoint_every, dropped)
    outputs, h_n = _stack(input, weights, hx, rows, masks, direction, options, padding is None)
    if not return_all_layers:
        outputs = outputs[-1:]
    if padding is None:
        outputs = [*map(detachable, outputs[:-1]), outputs[-1]]
    else:
        outputs, h_n = [padding.unpack(h) for h in outputs], h_n.index_select(1, padding.unsorted)
    return outputs if return_all_layers else outputs[-1], h_n


# nonlinearity, dropout, zoneout, alpha and training.
_Options = tuple[str, float, float, float, bool]


def _chunk(
    options: _Options,
    x: Tensor,
    weights: Sequence[Weights],
    hx: Tensor | None,
    reset: Tensor | None,
    masks: Sequence[Tensor | None],
    direction: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """A stack over a part of the time, whose outputs the user does not see."""
    return _stack(x, weights, hx, (None, None, reset), masks, direction, options, seen=False)


def _stack(
    x: Tensor,
    weights: Sequence[Weights],
    hx: Tensor | None,
    rows: tuple[Tensor | None, Tensor | None, Tensor | None],
    masks: Sequence[Tensor | None],
    direction: Sequence[int],
    options: _Options,
    seen: bool,
) -> tuple[list[Tensor], Tensor]:
    """Every layer's output, and all of their last states. ``rows`` are batch_sizes, lengths and reset; ``seen`` tells
    whether the user sees the last layer's output, and may edit it."""
    nonlinearity, dropout, zoneout, alpha, training = options
    directions = len(direction)
    layers = len(weights) // directions
    outputs, states = [], []
    reset = rows[2]
    if reset is not None and hx is not None:
        forward = torch.tensor(direction, device=hx.device).view(-1, 1, 1).repeat(layers, 1, 1) == 1
        hx = hx.masked_fill(forward & reset[:1].unsqueeze(2), 0)
    for k in range(layers):
        groups = weights[k * directions : (k + 1) * directions]
        h0 = hx
        if hx is not None and layers > 1:
            h0 = hx[k * directions : (k + 1) * directions]
        leak = _leak(x, directions * groups[0][1].shape[1], zoneout, alpha, training)
        x, h_n = layer(x, groups, h0, nonlinearity, *rows, masks[k], leak, direction, seen and k == layers - 1)
        outputs.append(x)
        states.append(h_n)
        if dropout and k < layers - 1:
            x = F.dropout(x, dropout, True)
    return outputs, states[0] if layers == 1 else torch.cat(states)


def _leak(x: Tensor, columns: int, zoneout: float, alpha: float, training: bool) -> Tensor | None:
    """What part of each state stays; None for none. Of what zoneout does not keep, by a draw for each element or its
    expectation, all but alpha."""
    if not zoneout and alpha == 1:
        return None
    # A quarter: below 1 numbers are half as far apart, and half of that is rounded to 1.
    if alpha <= torch.finfo(x.dtype).eps / 4:
        raise ValueError(f"alpha = {alpha} is nothing in {x.dtype}, where 1 - alpha is 1; use float32")
    shape = (*x.shape[:-1], columns)
    if not (zoneout and training):
        return x.new_full((columns,), zoneout + (1 - zoneout) * (1 - alpha)).expand(shape)
    # Half the time of torch.bernoulli. Not like x, which vmap may have mapped: whether draws are is another question
    # (its randomness).
    kept = torch.rand(shape, dtype=torch.float32, device=x.device) < zoneout
    if alpha == 1:
        return kept
    return torch.full(shape, 1 - alpha, dtype=x.dtype, device=x.device).masked_fill(kept, 1)


def _autocast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step, ``phi(W_ih x + b_ih + W_hh h + b_hh)``, as ``torch.nn.RNNCell`` does.

    A single step has nothing to fuse over time, so this is PyTorch's own composite of two GEMMs and phi,
    differentiable to every order.

    Args:
        input: ``(B, input_size)`` or ``(input_size,)``.
        hx: ``(B, H)`` or ``(H,)``, the state before.
        w_ih: ``(H, input_size)``.
        w_hh: ``(H, H)``.
        b_ih: ``(H,)``; None for zero.
        b_hh: ``(H,)``; None for zero.
        nonlinearity: phi, "tanh" or "relu".

    Returns:
        The new state, shaped like ``hx``.

    Raises:
        ValueError: an unknown nonlinearity.
        RuntimeError: a shape or dtype that does not fit.
    """
    _check_nonlinearity(nonlinearity)
    return _RNN_CELLS[nonlinearity](input, hx, w_ih, w_hh, b_ih, b_hh)
