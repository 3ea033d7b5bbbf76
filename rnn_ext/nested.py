"""Jagged nested tensors as packed sequences: one row index on the way in, its inverse on the way out, no padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Jagged:
    """How the sequences of a jagged nested tensor lie in packed order.

    Args:
        nested: ``(B, j, features)`` with ``layout=torch.jagged``, each of the B sequences of at least one step.

    Raises:
        ValueError: another layout or number of dimensions, a ragged dimension that is not the second or has holes,
            values that belong to no sequence, or a sequence without a step.
    """

    def __init__(self, nested: Any) -> None:
        if (
            nested.layout != torch.jagged
            or nested.dim() != 3
            or nested._ragged_idx != 1
            or nested.lengths() is not None
        ):
            raise ValueError(
                "a nested input must be (batch, ragged time, features) with layout=torch.jagged and without holes, got "
                f"{nested.dim()} dimensions, layout {nested.layout}"
            )
        self.offsets = nested.offsets()
        offsets = self.offsets.cpu()
        lengths = offsets.diff()
        values = nested.values().shape[0]
        if int(offsets[0]) != 0 or int(offsets[-1]) != values:
            raise ValueError(
                f"the offsets of a nested input must begin at 0 and end at its {values} rows of values, got "
                f"{offsets.tolist()}"
            )
        if lengths.numel() == 0 or lengths.min() < 1:
            raise ValueError(f"each sequence of a nested input must have at least one step, got {lengths.tolist()}")
        lengths, self.order = lengths.sort(descending=True, stable=True)
        steps = torch.arange(int(lengths[0])).unsqueeze(1)
        alive = steps < lengths
        self.batch_sizes = alive.sum(1)
        rows = (offsets[:-1][self.order] + steps)[alive]
        self.rows = rows.to(nested.device)
        self.inverse = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows))).to(nested.device)

    def pack(self, nested: Any) -> PackedSequence:
        order = self.order.to(nested.device)
        return PackedSequence(nested.values().index_select(0, self.rows), self.batch_sizes, order, torch.argsort(order))

    def unpack(self, packed: PackedSequence) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(packed.data.index_select(0, self.inverse), self.offsets)
