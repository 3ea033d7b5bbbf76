"""What the machine can do at most, measured in the same run, and what a row of the table could therefore take.

The model is that of the kernels' design. The projection is a GEMM. A step of the recurrence multiplies B rows with W
and reads W once: it takes no less than its arithmetic at the FMA peak, and no less than reading each core's share of W
from the caches that hold it. Latency (a step waits for the one before), barriers, calls and the traffic of u and h are
not in it, which is why small shapes stay far from it.
"""

from __future__ import annotations

import ctypes
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rnn_ext
from benchmarks import native
from benchmarks.grid import FORWARD, Shape

_SOURCE = Path(__file__).with_name("limits.cpp")
# Beyond the last cache; capped, so that a small machine is not driven into swapping.
_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True)
class Level:
    """A cache, or memory: what fits, and bytes a second that each core reads while all of them do."""

    name: str
    size: float
    bandwidth: float


@dataclass(frozen=True)
class Limits:
    """Of ``threads`` cores: floating-point operations a second of all together, and the levels from L1 outwards."""

    threads: int
    flops: float
    levels: tuple[Level, ...]

    def read_seconds(self, size: float) -> float:
        """To read ``size`` bytes once on one core, when each level keeps what fits (the best order of reading)."""
        seconds, inner = 0.0, 0.0
        for level in self.levels:
            part = min(size, level.size) - inner
            if part <= 0:
                break
            seconds += part / level.bandwidth
            inner += part
        return seconds

    def recurrence_seconds(self, batch_sizes: list[int], groups: int, hidden: int) -> float:
        """All steps of a recurrence whose matrices are shared out among the cores."""
        per_row = 2.0 * groups * hidden**2 / self.flops
        read = self.read_seconds(4.0 * groups * hidden**2 / self.threads)
        return sum(max(rows * per_row, read) for rows in batch_sizes)

    def seconds(self, shape: Shape, mode: str) -> float:
        """The least that a row may take."""
        batch_sizes = shape.batch_sizes
        rows, hidden, groups = sum(batch_sizes), shape.hidden_size, shape.directions
        recurrence = self.recurrence_seconds(batch_sizes, groups, hidden)
        total = 0.0
        for layer, features in enumerate(shape.layer_inputs):
            projection = 2.0 * rows * groups * hidden * features / self.flops
            total += projection + recurrence
            if mode != FORWARD:
                # Backward: the recurrence of s, the gradients of both weights, and of what the layer below put in.
                weight_hh = 2.0 * rows * groups * hidden**2 / self.flops
                total += recurrence + projection + weight_hh + (projection if layer > 0 else 0.0)
        return total

    def best(self, other: Limits) -> Limits:
        """The better of two measurements: others' load can only lower one."""
        levels = tuple(
            Level(a.name, a.size, max(a.bandwidth, b.bandwidth)) for a, b in zip(self.levels, other.levels, strict=True)
        )
        return Limits(self.threads, max(self.flops, other.flops), levels)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Limits:
        return Limits(data["threads"], data["flops"], tuple(Level(**level) for level in data["levels"]))

    def __str__(self) -> str:
        caches = ", ".join(f"{x.name} {x.bandwidth / 1e9:.0f}" for x in self.levels)
        return f"{self.threads} thread(s): {self.flops / 1e9:.0f} GFLOP/s in GEMM; GB/s a core from {caches}"


def _gemm_rate(seconds: float) -> float:
    """The best of GEMMs large enough to be at the FMA peak; which size is fastest depends on the library."""
    import torch

    best = 0.0
    for size in (512, 1024, 2048):
        a, b, out = (torch.ones(size, size) for _ in range(3))
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _buffers(memory: bool) -> list[tuple[str, float, int]]:
    """Name, capacity, and bytes of a buffer that is read from there, of each level; the last one has room for all."""
    info = rnn_ext.build_info()
    l1, l2, l3 = info["l1_bytes"], info["l2_bytes"], info["l3_bytes"]
    levels = [("L1", float(l1), l1 * 2 // 3), ("L2", float(l2), l2 // 2)]
    # Not much larger than L2: a buffer per core, and on a virtual machine the L3 has other users.
    if l3 > 4 * l2:
        levels.append(("L3", float(l3), 4 * l2))
    if memory:
        return [*levels, ("memory", math.inf, min(max(4 * l3, 64 << 20), _MEMORY_BYTES))]
    return [*levels[:-1], (levels[-1][0], math.inf, levels[-1][2])]


def measure(threads: int, seconds: float = 2.0) -> Limits:
    """Measures both, the best of several tries each, in about that many seconds.

    Raises:
        native.CannotBuild: there is no C++ compiler for the bandwidths.
    """
    library = native.load(_SOURCE)
    read_rate = library.read_rate
    read_rate.restype = ctypes.c_double
    read_rate.argtypes = (ctypes.c_int64, ctypes.c_int, ctypes.c_double)
    # Touching so much memory takes a second by itself.
    buffers = _buffers(memory=seconds >= 1)
    levels = []
    for name, size, buffer in buffers:
        # Memory takes longer to touch than to read; once is enough for a level that no W reaches.
        tries, share = (1, buffer // threads) if name == "memory" else (5, buffer)
        each = seconds / 2 / (len(buffers) * tries)
        rate = max(read_rate(share, threads, each) for _ in range(tries))
        levels.append(Level(name, size, rate / threads))
    return Limits(threads, _gemm_rate(seconds / 2), tuple(levels))
