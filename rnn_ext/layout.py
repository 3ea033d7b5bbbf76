"""How sequences lie in tensors: padded, padded with lengths, or packed; forward or reversed.

The C++ kernels know this from ``csrc/recurrence.h``; here is the same knowledge for the derivative formulas of
``ops.py``, in differentiable PyTorch. Shapes, with T steps, B sequences and G groups of H:
sequences are ``(T, B, G*H)``, or packed ``(N, G*H)``; states are ``(G, B, H)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Which rows live when, and the direction of each group's time.

    Attributes:
        batch_sizes: int64 ``(T,)`` on the CPU if the sequences are packed, as in a ``PackedSequence``.
        lengths: int64 ``(B,)`` on the CPU if they are padded and of different lengths.
        reset: bool ``(T, B)``, for padded sequences, True where no state passes between the steps t - 1 and t.
        direction: G values, 1 forward in time, -1 reversed.
    """

    batch_sizes: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None
    direction: tuple[int, ...]

    @property
    def reversed(self) -> Layout:
        """The same rows with every group's time the other way round, as the adjoint runs."""
        return self._replace(direction=tuple(-d for d in self.direction))

    def runs(self) -> list[tuple[int, int, int]]:
        """``(first group, end group, direction)`` for each run of groups of one direction."""
        found: list[tuple[int, int, int]] = []
        for g, d in enumerate(self.direction):
            if found and found[-1][2] == d:
                found[-1] = (found[-1][0], g + 1, d)
            else:
                found.append((g, g + 1, d))
        return found


def by_run(sequence: Tensor, layout: Layout) -> Sequence[Tensor]:
    """The columns of each run of groups. A split, since its gradient is one concatenation; slices' are a tensor of
    zeros each, partly filled, and their sum."""
    runs = layout.runs()
    if len(runs) == 1:
        return [sequence]
    hidden = sequence.shape[-1] // max(1, len(layout.direction))
    return sequence.split([(end - start) * hidden for start, end, _ in runs], -1)


def states_to_rows(states: Tensor) -> Tensor:
    """``(G, B, H)`` to ``(B, G*H)``."""
    # B is left to reshape: the compiler may not know it, if the rows are packed.
    return states.transpose(0, 1).reshape(-1, states.shape[0] * states.shape[2])


def rows_to_states(rows: Tensor, groups: int) -> Tensor:
    """``(B, G*H)`` to ``(G, B, H)``."""
    batch, columns = rows.shape
    return rows.reshape(batch, groups, columns // groups).transpose(0, 1)


def _by_packed_row(of_step: Tensor, batch_sizes: Tensor, rows: int) -> Tensor:
    """What each packed row has by its step. ``rows`` is given, not summed up from ``batch_sizes``, so that the compiler
    can do without its values."""
    return torch.repeat_interleave(of_step, batch_sizes, output_size=rows)


def packed_sequences(batch_sizes: Tensor, rows: int) -> Tensor:
    """Which sequence each packed row belongs to."""
    return torch.arange(rows) - _by_packed_row(batch_sizes.cumsum(0) - batch_sizes, batch_sizes, rows)


def packed_predecessors(batch_sizes: Tensor, rows: int, batch: int) -> Tensor:
    """For each packed row of a step but the first, the row of the same sequence one step before."""
    before = _by_packed_row(batch - batch_sizes[:-1], batch_sizes[1:], rows - batch)
    return before + torch.arange(rows - batch)


def _packed_previous(batch_sizes: Tensor, rows: int, direction: int) -> Tensor:
    """For each packed row, the row of the same sequence one step earlier in the group's time.

    Where there is none, ``rows + i`` for the i-th sequence: what stands before it is expected behind the rows.
    """
    row = torch.arange(rows)
    sequence = packed_sequences(batch_sizes, rows)
    if direction == 1:
        other = row - _by_packed_row(torch.cat([batch_sizes[:1], batch_sizes[:-1]]), batch_sizes, rows)
        exists = other >= 0
    else:
        other = row + _by_packed_row(batch_sizes, batch_sizes, rows)
        next_size = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
        exists = sequence < _by_packed_row(next_size, batch_sizes, rows)
    return torch.where(exists, other, rows + sequence)


def _packed_ends(batch_sizes: Tensor, batch: int) -> Tensor:
    """The packed row of each sequence's last step."""
    sequences = torch.arange(batch)
    lengths = (batch_sizes.unsqueeze(1) > sequences).sum(0)
    starts = batch_sizes.cumsum(0) - batch_sizes
    return starts[lengths - 1] + sequences


def zero_where_ended(sequence: Tensor, lengths: Tensor) -> Tensor:
    """A padded ``(T, B, features)`` sequence with zeros, whatever was there, after each row's end."""
    ended = torch.arange(sequence.shape[0]).unsqueeze(1) >= lengths
    return sequence.masked_fill(ended.unsqueeze(2).to(sequence.device), 0)


def without_padding(sequence: Tensor | None, lengths: Tensor | None) -> Any:
    """What stands after a row's end may be anything, NaN too; a formula that multiplies it, or whose derivative does,
    takes zeros there instead."""
    return sequence if sequence is None or lengths is None else zero_where_ended(sequence, lengths)


def previous(sequence: Tensor, first: Tensor | None, layout: Layout) -> Tensor:
    """The sequence one step earlier in each group's own time: what step t multiplies.

    Args:
        sequence: ``(T, B, G*H)`` or packed ``(N, G*H)``; zero where a padded row has ended.
        first: ``(G, B, H)``, what stands before each sequence's first step; None for zeros.
        layout: the rows and directions.

    Returns:
        A tensor like ``sequence``; zero where a padded row has ended, or is reset.
    """
    shifted = []
    for (start, end, direction), part in zip(layout.runs(), by_run(sequence, layout), strict=True):
        head = part.new_zeros(part.shape[-1]) if first is None else states_to_rows(first[start:end])
        if layout.batch_sizes is not None:
            index = _packed_previous(layout.batch_sizes, part.shape[0], direction)
            if first is None:
                head, index = head.unsqueeze(0), index.clamp(max=part.shape[0])
            shifted.append(torch.cat([part, head]).index_select(0, index.to(part.device)))
            continue
        head = head.expand(part.shape[1:])
        others = part[:-1] if direction == 1 else part[1:]
        if layout.reset is not None:
            others = others.masked_fill(layout.reset[1:].unsqueeze(2), 0)
        if direction == 1:
            shifted.append(torch.cat([head.unsqueeze(0), others]))
        elif layout.lengths is None:
            shifted.append(torch.cat([others, head.unsqueeze(0)]))
        else:
            at_end = torch.arange(part.shape[0]).unsqueeze(1) == layout.lengths - 1
            after = torch.cat([others, torch.zeros_like(part[:1])])
            shifted.append(after + at_end.unsqueeze(2).to(part.device, part.dtype) * head)
    result = shifted[0] if len(shifted) == 1 else torch.cat(shifted, -1)
    if layout.lengths is not None:
        result = zero_where_ended(result, layout.lengths)
    return result


def last(sequence: Tensor, layout: Layout, batch: int) -> Tensor:
    """``(G, B, H)``: what each sequence holds at the last step of its own time. B is given, not read from
    ``batch_sizes``, so that the compiler can do without its values."""
    parts = []
    for (start, end, direction), part in zip(layout.runs(), by_run(sequence, layout), strict=True):
        if layout.batch_sizes is not None:
            ends = _packed_ends(layout.batch_sizes, batch) if direction == 1 else torch.arange(batch)
            rows = part.index_select(0, ends.to(part.device))
        elif direction == -1:
            rows = part[0]
        elif layout.lengths is None:
            rows = part[-1]
        else:
            index = (layout.lengths - 1).to(part.device).view(1, -1, 1).expand(1, -1, part.shape[2])
            rows = part.gather(0, index).squeeze(0)
        parts.append(rows_to_states(rows, end - start))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
