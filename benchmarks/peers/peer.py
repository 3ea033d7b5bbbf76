"""What every peer is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.grid import FORWARD, Shape

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """One row of the table: the same arrays for all, float32 and contiguous.

    Attributes:
        shape: of the workload.
        mode: FORWARD, or TRAINING: the gradients of all weights, and not of x, given that of the output.
        threads: how many a peer may use.
        weights: torch.nn.RNN's, under the names of its state_dict.
        x: ``(T, B, I)``, with zeros after a sequence's end.
        g: ``(T, B, directions * H)``, the gradient that arrives at the output, zero after a sequence's end.
        lengths: ``(B,)`` int64, longest first; None unless the shape is packed.
    """

    shape: Shape
    mode: str
    threads: int
    weights: dict[str, Array]
    x: Array
    g: Array
    lengths: NDArray[np.int64] | None = None

    @property
    def training(self) -> bool:
        return self.mode != FORWARD

    def layer(self, index: int) -> list[tuple[Array, Array, Array, Array]]:
        """``w_ih, w_hh, b_ih, b_hh`` of each direction of a layer."""
        suffixes = ("", "_reverse")[: self.shape.directions]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [tuple(self.weights[f"{n}_l{index}{s}"] for n in names) for s in suffixes]  # type: ignore[misc]


class Contestant(NamedTuple):
    """``run`` is what is timed; ``read`` turns what it returned into arrays, for the comparison.

    These are the output, padded with zeros, or the gradients in the order of ``Problem.weights``.
    """

    run: Callable[[], Any]
    read: Callable[[Any], list[Array]]
    # What the peer says it runs, e.g. the name of its kernel.
    note: str = ""


class Peer(Protocol):
    """One implementation of an RNN."""

    name: str

    def version(self) -> str:
        """Of the library, for the report."""
        ...

    def supports(self, shape: Shape, mode: str) -> bool:
        """Whether it can do that at all; if not, the table has a dash."""
        ...

    def prepare(self, problem: Problem) -> Contestant:
        """All that is paid once: compiling, making sessions, laying out inputs; docs/benchmarks.md lists what."""
        ...


class Unavailable(Exception):
    """The peer cannot run here; the message is one line, and says what would help."""
