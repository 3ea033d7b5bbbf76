"""Ragged sequences, wherever their steps lie, as packed ones: one row index on the way in, its inverse on the way out.

A padded batch and a jagged nested tensor both are rows of features, of which each sequence has every ``stride``-th from
its first on. Packed, nothing is computed of what belongs to no sequence, the projections included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnn_ext import dispatch


class Packing:
    """Where the rows of ragged sequences go in packed order, longest sequence first.

    Args:
        lengths: int64 ``(B,)`` on the CPU, each from 1 on.
        first: int64 ``(B,)``, the row of each sequence's first step.
        stride: rows from one step of a sequence to its next.
        rows: how many there are, padding included.
        device: of the rows.

    Attributes:
        batch_sizes: sequences alive at each step, as in a ``PackedSequence``.
        order: which sequence stands where among the sorted ones.
        unsorted: where each sequence stands.
    """

    def __init__(self, lengths: Tensor, first: Tensor, stride: int, rows: int, device: torch.device) -> None:
        lengths, order = lengths.sort(descending=True, stable=True)
        steps = torch.arange(int(lengths[0]) if len(lengths) else 0).unsqueeze(1)
        alive = steps < lengths
        self.batch_sizes = alive.sum(1)
        taken = (steps * stride + first[order]).masked_select(alive)
        # Padding is taken from behind the packed rows, where there are zeros.
        places = torch.full((rows,), len(taken)).scatter_(0, taken, torch.arange(len(taken)))
        self._taken, self._places = taken.to(device), places.to(device)
        self.order, self.unsorted = order.to(device), torch.argsort(order).to(device)

    def pack(self, rows: Tensor) -> Tensor:
        """``(rows, features)`` to packed ``(N, features)``."""
        return dispatch.call(_move, _Move, (rows, self._taken, self._places))

    def unpack(self, packed: Tensor) -> Tensor:
        """Back; zero where the padding is."""
        return dispatch.call(_move, _Move, (packed, self._places, self._taken))


def wrong_with(lengths: Any, time: int, batch: int) -> str | None:
    """What is, in a sentence, or None if they are a padded batch's: int64 ``(B,)`` on the CPU, from 1 to T."""
    if not isinstance(lengths, Tensor):
        got = type(lengths).__name__
    elif lengths.dtype != torch.int64 or not lengths.is_cpu or lengths.shape != (batch,):
        got = f"{lengths.dtype} {tuple(lengths.shape)} on {lengths.device}"
    else:
        got = None
    if got:
        return f"lengths must be an int64 tensor of shape ({batch},) on the CPU, one entry a sequence, got {got}"
    # The compiler has no values to look at; the kernel checks them again.
    if dispatch.recorded():
        return None
    values = lengths.tolist()
    if batch and not 1 <= min(values) <= max(values) <= time:
        return f"lengths must be from 1 to the padded length {time}, got {values}"
    return None


class Padding(Packing):
    """The packing of a padded batch.

    Args:
        x: ``(T, B, features)``, in memory by step or by sequence.
        lengths: int64 ``(B,)`` on the CPU, from 1 to T.
    """

    def __init__(self, x: Tensor, lengths: Tensor) -> None:
        time, batch = x.shape[:2]
        # A batch that is laid out by sequence keeps that layout; transposing it would copy the padding, too.
        self._transposed = not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
        self._sizes = (batch, time) if self._transposed else (time, batch)
        across, stride = (time, 1) if self._transposed else (1, batch)
        super().__init__(lengths, torch.arange(batch) * across, stride, time * batch, x.device)

    def pack(self, x: Tensor) -> Tensor:
        return super().pack((x.transpose(0, 1) if self._transposed else x).flatten(0, 1))

    def unpack(self, packed: Tensor) -> Tensor:
        x = super().unpack(packed).unflatten(0, self._sizes)
        return x.transpose(0, 1) if self._transposed else x


def _move(values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    # A longer result has rows that are none of the values': zeros, which stand behind them.
    if len(index) > values.shape[0]:
        values = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return values.index_select(0, index)


class _Move(torch.autograd.Function):
    """Rows to other places, none to two. So the transpose moves them back; index_select's own, which cannot know
    that, adds row by row and takes ten times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values, index, inverse):  # type: ignore[no-untyped-def]
        return dispatch.below_autograd(_move, (values, index, inverse))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, index, inverse = inputs
        ctx.save_for_backward(index, inverse)
        ctx.save_for_forward(index, inverse)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        index, inverse = ctx.saved_tensors
        return dispatch.call(_move, _Move, (g, inverse, index)), None, None

    @staticmethod
    def jvp(ctx, values_dot, *_):  # type: ignore[no-untyped-def]
        index, inverse = ctx.saved_tensors
        return dispatch.call(_move, _Move, (values_dot, index, inverse))
