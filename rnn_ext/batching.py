"""vmap of the primitives: a mapped dimension becomes more rows, or, where the weights are mapped, more groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Fold:
    """Folds one mapped dimension of size ``size`` into the batch (weights shared) or the groups (weights mapped).

    In the batch it stands behind B: row ``b * size + i``, so that a packed batch stays sorted by length. In the
    groups it stands before G: group ``i * G + g``.
    """

    def __init__(self, size: int, into_groups: bool, ragged_dims: Sequence[int | None]) -> None:
        if any(d is not None for d in ragged_dims):
            raise ValueError("vmap over batch_sizes or lengths is not supported; they must be the same for all")
        self.size = size
        self.into_groups = into_groups

    def _mapped(self, t: Tensor, dim: int | None, to: int) -> Tensor:
        """The tensor with the mapped dimension at ``to``, expanded if it had none."""
        if dim is not None:
            return t.movedim(dim, to)
        to = to if to >= 0 else t.dim() + 1 + to
        return t.unsqueeze(to).expand(*t.shape[:to], self.size, *t.shape[to:])

    def rows(self, t: Tensor | None, dim: int | None) -> Tensor | None:
        """``(T, B, G*H)`` or ``(N, G*H)``."""
        # Either way the mapped dimension goes between B (or N) and G*H; what it is flattened with differs.
        if t is None:
            return None
        mapped = self._mapped(t, dim, -2)
        return mapped.flatten(-2) if self.into_groups else mapped.flatten(-3, -2)

    def states(self, t: Tensor | None, dim: int | None) -> Tensor | None:
        """``(G, B, H)``."""
        if t is None:
            return None
        return self._mapped(t, dim, 0).flatten(0, 1) if self.into_groups else self._mapped(t, dim, 2).flatten(1, 2)

    def weight(self, t: Tensor, dim: int | None) -> Tensor:
        """``(G*H, H)``."""
        return self._mapped(t, dim, 0).flatten(0, 1) if self.into_groups else t

    def ragged(self, batch_sizes: Tensor | None, lengths: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.into_groups:
            return batch_sizes, lengths
        return (
            None if batch_sizes is None else batch_sizes * self.size,
            None if lengths is None else torch.repeat_interleave(lengths, self.size),
        )

    def reset(self, t: Tensor | None, dim: int | None) -> Tensor | None:
        """``(T, B)``."""
        if t is None or self.into_groups:
            if dim is not None:
                raise ValueError("vmap over both reset and the weights is not supported; all groups share one reset")
            return t
        return self._mapped(t, dim, 2).flatten(1, 2)

    def direction(self, direction: Sequence[int]) -> tuple[int, ...]:
        return tuple(direction) * (self.size if self.into_groups else 1)

    def outputs(self, out: tuple[Tensor, Tensor], groups: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The two results with the mapped dimension back, and where it is."""
        h, h_n = out
        if self.into_groups:
            return (h.unflatten(-1, (self.size, -1)), h_n.unflatten(0, (self.size, groups))), (h.dim() - 1, 0)
        return (h.unflatten(-2, (-1, self.size)), h_n.unflatten(1, (-1, self.size))), (h.dim() - 1, 2)
