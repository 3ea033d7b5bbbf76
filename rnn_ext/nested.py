"""Jagged nested tensors as packed sequences, without padding in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnn_ext.packing import Packing


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
        self._packing = Packing(lengths, offsets[:-1], 1, values, nested.device)

    def pack(self, nested: Any) -> PackedSequence:
        packing = self._packing
        return PackedSequence(packing.pack(nested.values()), packing.batch_sizes, packing.order, packing.unsorted)

    def unpack(self, packed: PackedSequence) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(self._packing.unpack(packed.data), self.offsets)
