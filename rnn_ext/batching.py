"""vmap of the primitives: a mapped dimension becomes more rows, or, where the weights are mapped, more groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

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

    def w(self, t: Tensor, dim: int | None) -> Tensor:
        """``(G*H, H)``."""
        return self._mapped(t, dim, 0).flatten(0, 1) if self.into_groups else t

    def batch_sizes(self, t: Tensor | None) -> Tensor | None:
        """``(T,)``."""
        return t if t is None or self.into_groups else t * self.size

    def lengths(self, t: Tensor | None) -> Tensor | None:
        """``(B,)``."""
        return t if t is None or self.into_groups else torch.repeat_interleave(t, self.size)

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

    def argument(self, name: str, value: Any, dim: int | None) -> Any:
        """An argument of a primitive, by its name."""
        if name in ("u", "v", "factor", "leak"):
            return self.rows(value, dim)
        if name in ("h0", "seed", "mask"):
            return self.states(value, dim)
        if name in ("w", "reset"):
            return getattr(self, name)(value, dim)
        return getattr(self, name)(value) if name in ("batch_sizes", "lengths", "direction") else value


def vmap_of(primitive: Callable[..., tuple[Tensor, Tensor]]) -> Any:
    """The static method ``vmap`` of a primitive's ``torch.autograd.Function``, whose arguments are the primitive's."""
    names = tuple(inspect.signature(primitive).parameters)

    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        dims = dict(zip(names, in_dims, strict=True))
        given = dict(zip(names, args, strict=True))
        fold = Fold(info.batch_size, dims["w"] is not None, (dims["batch_sizes"], dims["lengths"]))
        out = primitive(**{name: fold.argument(name, value, dims[name]) for name, value in given.items()})
        return fold.outputs(out, len(given["direction"]))

    return staticmethod(vmap)
