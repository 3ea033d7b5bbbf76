"""Throughput on a machine whose every core has something else to do:  ``python -m benchmarks.busy``

Beside one busy process a core, a call gets half of each core, and so half of its throughput: that is its fair share.
Threads that wait for one another lose more, a time slice where one of them has lost its core. What is left should be at
least a third of the fair share. Quiet and busy phases alternate; a phase counts calls, since a slice that is lost now
and then is no median's business.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

import rnn_ext
from benchmarks.cores import allowed
from benchmarks.grid import FORWARD, MODES, Shape
from benchmarks.peers import OURS, TORCH

# Split by columns of W with a barrier a step, by rows, and too small to be split.
SHAPES = (Shape(100, 1, 1024, 1024), Shape(100, 1, 256, 256), Shape(100, 32, 256, 256), Shape(100, 1, 64, 64))
FAIR = 2.0
# So many times less than the fair share is too little.
LIMIT = 3.0

Call = Callable[[], object]


class Row(NamedTuple):
    """How many times less throughput a call has beside busy processes, by who makes it."""

    shape: Shape
    mode: str
    slowdown: dict[str, float]


def _spin() -> None:
    # Not longer than who asked for it, even where that one was killed.
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        for _ in range(10**6):
            pass


@contextmanager
def busy(cpus: Sequence[int]) -> Iterator[None]:
    """A process a core that does nothing but keep it busy."""
    spinners = []
    context = multiprocessing.get_context("spawn")
    for cpu in cpus:
        spinners.append(context.Process(target=_spin, daemon=True))
        spinners[-1].start()
        if spinners[-1].pid is not None:
            os.sched_setaffinity(spinners[-1].pid, {cpu})
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.join()


def calls(shape: Shape, mode: str) -> dict[str, Call]:
    """A call of each module."""
    x = torch.randn(shape.time, shape.batch, shape.input_size)
    g = torch.randn(shape.time, shape.batch, shape.hidden_size)
    found: dict[str, Call] = {}
    for name, kind in ((OURS, rnn_ext.RNN), (TORCH, nn.RNN)):
        module = kind(shape.input_size, shape.hidden_size)
        found[name] = partial(torch.inference_mode()(module), x) if mode == FORWARD else partial(_train, module, x, g)
    return found


def _train(module: nn.Module, x: Tensor, g: Tensor) -> object:
    return torch.autograd.grad(module(x)[0], list(module.parameters()), g)


def rate(call: Call, seconds: float) -> float:
    """Calls a second."""
    call()
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or count == 0:
        call()
        count += 1
    return count / passed


def measure(seconds: float, rounds: int) -> list[Row]:
    """All shapes and modes: phases of so many seconds, so many of each kind."""
    everything = {(shape, mode): calls(shape, mode) for shape in SHAPES for mode in MODES}
    rates: dict[tuple[Shape, str, str, bool], list[float]] = {}

    def phase(others: bool) -> None:
        for (shape, mode), own in everything.items():
            for name, call in own.items():
                rates.setdefault((shape, mode, name, others), []).append(rate(call, seconds))

    cpus = allowed()
    for _ in range(rounds):
        phase(False)
        with busy(cpus):
            time.sleep(1.0)  # until they all spin
            phase(True)
    mean = {key: statistics.fmean(values) for key, values in rates.items()}
    return [
        Row(shape, mode, {name: mean[shape, mode, name, False] / mean[shape, mode, name, True] for name in own})
        for (shape, mode), own in everything.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if ours lost more than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--threads", type=int, default=len(allowed()), help="default: one a core")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each phase of a row")
    parser.add_argument("--rounds", type=int, default=3, help="phases of each kind")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rows = measure(args.seconds, args.rounds)
    body = [[str(r.shape), r.mode, *(f"{r.slowdown[name]:.1f}" for name in (OURS, TORCH))] for r in rows]
    print(
        f"times less throughput beside {len(allowed())} busy processes, on {args.threads} thread(s); fair: {FAIR:g}\n"
    )
    print(tabulate(body, ["T x B x I x H", "mode", OURS, TORCH], tablefmt="github", disable_numparse=True))
    lost = [row for row in rows if row.slowdown[OURS] > LIMIT * FAIR]
    print(f"\nless than 1/{LIMIT:g} of the fair share: {len(lost)} of {len(rows)}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
