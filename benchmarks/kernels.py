"""The two primitives alone, without projection, autograd or module: what the kernels themselves reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

import rnn_ext
from benchmarks.timing import take_turns

# (B, H)
FULL = tuple((batch, hidden) for batch in (1, 2, 8, 32, 128) for hidden in (64, 128, 256, 512, 1024))
QUICK = ((1, 64), (1, 256), (32, 64), (32, 256))

RECURRENCE, LINEAR = "recurrence", "linear_recurrence"


def steps(batch: int, hidden: int) -> int:
    """T of a measurement: enough that packing W and the call are not what is measured, but no more than 10⁹ flops."""
    return int(min(1000, max(20, 1e9 / (2.0 * batch * hidden**2))))


def calls(batch: int, hidden: int) -> dict[str, Callable[[], object]]:
    """Both primitives, as the forward and the backward of one layer call them."""
    torch.manual_seed(0)
    time = steps(batch, hidden)
    u, g = torch.randn(time, batch, hidden), torch.randn(time, batch, hidden)
    w = torch.randn(hidden, hidden) / hidden**0.5
    recurrence = torch.ops.rnn_ext.recurrence.default
    linear = torch.ops.rnn_ext.linear_recurrence.default
    h = recurrence(u, None, w, None, None, None, None, None, "tanh", [1])[0]

    @torch.inference_mode()
    def forward() -> object:
        return recurrence(u, None, w, None, None, None, None, None, "tanh", [1])

    @torch.inference_mode()
    def backward() -> object:
        return linear(g, None, w, h, None, None, None, None, "tanh", "product", True, [-1])

    return {RECURRENCE: forward, LINEAR: backward}


def measure(sizes: Iterable[tuple[int, int]], threads: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each size and primitive, on the instruction set that RNN_EXT_CPU_ISA asks for.

    Args:
        sizes: (B, H) of each.
        threads: how many.
        seconds: about how long each size takes.
    """
    torch.set_num_threads(threads)
    isa = rnn_ext.build_info()["isa"]
    rows = []
    for batch, hidden in sizes:
        time = steps(batch, hidden)
        for name, sample in take_turns(calls(batch, hidden), seconds=seconds).items():
            rows.append(
                {
                    "primitive": name,
                    "isa": isa,
                    "threads": threads,
                    "time": time,
                    "batch": batch,
                    "hidden": hidden,
                    "seconds": sample.median,
                    "spread": sample.spread,
                    "cores": sample.cores,
                    "flops_per_second": 2.0 * time * batch * hidden**2 / sample.median,
                }
            )
    return rows
