"""Whether sizes that fit no vector are as fast per FLOP as the next that do:  ``python -m benchmarks.odd``

The primitives alone, on one thread. Each row's rate is given relative to that of H rounded up to whole vectors, and of
B rounded up to a multiple of 8, where all tiles of rows are nearly as high as the registers allow. FLOPs are those of
the real size, so a padded column is a loss: H = 65 computes 80 columns and cannot get beyond 65 / 80 of the rate. Nor
can few rows reach the rate of many: W is read once a step for all of them, at most as fast as its cache gives it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tabulate import tabulate

import rnn_ext
from benchmarks import kernels
from benchmarks.derivatives import keep_memory
from benchmarks.timing import take_turns

BATCHES, HIDDEN = (1, 3, 5, 7, 13, 33), (63, 65, 127, 129, 250, 257)
ROWS = 8
# What a rate may differ by.
MARGIN = 0.2


class Row(NamedTuple):
    """Rates relative to the rounded sizes'."""

    batch: int
    hidden: int
    primitive: str
    of_next_hidden: float
    most: float  # what padding leaves of the first
    of_next_batch: float


def up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def measure(batch: int, hidden: int, lanes: int, seconds: float) -> list[Row]:
    """Both primitives at one size, taking turns with the rounded sizes."""
    sizes = {"own": (batch, hidden), "hidden": (batch, up(hidden, lanes)), "batch": (up(batch, ROWS), hidden)}
    calls = {name: kernels.calls(*size) for name, size in sizes.items()}
    rows = []
    for primitive in (kernels.RECURRENCE, kernels.LINEAR):
        own = {name: call[primitive] for name, call in calls.items()}
        samples = take_turns(own, rounds=15, seconds=seconds)
        rate = {
            # By the least of the rounds: what other processes do can only add to it.
            name: kernels.steps(b, h) * b * h**2 / min(samples[name].times)
            for name, (b, h) in sizes.items()
        }
        most = hidden / up(hidden, lanes)
        rows.append(Row(batch, hidden, primitive, rate["own"] / rate["hidden"], most, rate["own"] / rate["batch"]))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if a rate differs by more than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.odd", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long each row takes")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_memory()
    lanes = rnn_ext.build_info()["vector_bytes"] // 4
    sizes = itertools.product(args.batches, args.hidden)
    rows = [row for size in sizes for row in measure(*size, lanes, args.seconds)]
    body = [
        [f"{r.batch}x{r.hidden}", r.primitive, f"{r.of_next_hidden:.2f}", f"{r.most:.2f}", f"{r.of_next_batch:.2f}"]
        for r in rows
    ]
    headers = ["B x H", "primitive", f"of H up to {lanes}", "at most", f"of B up to {ROWS}"]
    print(tabulate(body, headers, tablefmt="github", disable_numparse=True))
    for name, values in (("H", [r.of_next_hidden for r in rows]), ("B", [r.of_next_batch for r in rows])):
        print(f"{name}: more than {MARGIN:.0%} slower in {sum(v < 1 - MARGIN for v in values)} of {len(rows)}")
    return 1 if any(min(r.of_next_hidden, r.of_next_batch) < 1 - MARGIN for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
