"""What a ragged batch costs, in what one without padding does:  ``python -m benchmarks.ragged``

Lengths fall evenly from T to 1, half of T on average, as in the packed rows of the grid. A token should cost at most
1.1 times what it costs in a batch of as many tokens in which all rows have the same length, packed or padded with
``lengths``, in order or shuffled; and all of them at most 0.6 times what a batch does in which all rows have T steps,
where the same call of PyTorch is for twice as many. The kernel level is the primitives alone: what is above it are the
projection, autograd and the GEMMs of the gradients. A padded output has as many rows of zeros to write as tokens.

Likewise a full batch of episodes: with resets at some of its steps it should cost at most 1.1 times what it does
without.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext
from benchmarks.derivatives import keep_memory
from benchmarks.grid import FORWARD, TRAINING, Shape
from benchmarks.timing import take_turns

TIME = 100
BATCHES, HIDDEN = (16, 32, 64), (64, 128, 256)
# All rows with T steps, and with as many as a ragged batch's have on average.
DENSE, SHORT = "dense", "short"
PACKED, LENGTHS, SHUFFLED = RAGGED = "packed", "lengths", "shuffled"
EPISODES = "episodes"
LAYOUTS = (DENSE, SHORT, *RAGGED, EPISODES)
# Of the steps, how many begin an episode.
BEGIN = 0.02
# A token may cost so many of a short dense batch's, and a call take so much of a full one's time.
LIMIT, LIMIT_OF_FULL = 1.1, 0.6

Call = Callable[[], object]


class Row(NamedTuple):
    """Times of each layout but the dense one, in that one's."""

    shape: Shape
    level: str
    times: dict[str, float]

    def of_short(self) -> list[float]:
        """What a token costs in the ragged layouts, in those of a dense batch of as many tokens."""
        short_tokens = short(self.shape) * self.shape.batch
        return [self.times[name] / self.times[SHORT] * short_tokens / sum(self.shape.lengths) for name in RAGGED]

    def of_full(self) -> list[float]:
        """The ragged layouts' times, in that of a batch in which all rows have T steps."""
        return [self.times[name] for name in RAGGED]

    def of_episodes(self) -> list[float]:
        """A batch with resets, in the time of one without."""
        return [self.times[EPISODES]]


def short(shape: Shape) -> int:
    """Steps of a dense batch with as many tokens."""
    return round(sum(shape.lengths) / shape.batch)


def shuffled(lengths: torch.Tensor) -> torch.Tensor:
    return lengths[torch.randperm(len(lengths))]


def resets(shape: Shape) -> torch.Tensor:
    return torch.rand(shape.time, shape.batch) < BEGIN


def modules(shape: Shape) -> dict[str, dict[str, Call]]:
    """Calls of ``rnn_ext.RNN``, by mode and layout."""
    module = rnn_ext.RNN(shape.input_size, shape.hidden_size)
    x = torch.randn(shape.time, shape.batch, shape.input_size)
    lengths = torch.tensor(shape.lengths)
    other = shuffled(lengths)
    packed = pack_padded_sequence(x, lengths)
    reset = resets(shape)
    outputs: dict[str, Callable[[], torch.Tensor]] = {
        DENSE: lambda: module(x)[0],
        SHORT: lambda: module(x[: short(shape)])[0],
        PACKED: lambda: module(packed)[0].data,
        LENGTHS: lambda: module(x, lengths=lengths)[0],
        SHUFFLED: lambda: module(x, lengths=other)[0],
        EPISODES: lambda: module(x, reset=reset)[0],
    }
    gradients = {name: torch.randn_like(output()) for name, output in outputs.items()}
    parameters = list(module.parameters())
    return {
        FORWARD: {name: torch.inference_mode()(output) for name, output in outputs.items()},
        TRAINING: {
            name: partial(lambda output, g: torch.autograd.grad(output(), parameters, g), output, gradients[name])
            for name, output in outputs.items()
        },
    }


def primitives(shape: Shape) -> dict[str, dict[str, Call]]:
    """Calls of the two primitives, as one layer's forward and backward make them, by primitive and layout."""
    u = torch.randn(shape.time, shape.batch, shape.hidden_size)
    w = torch.randn(shape.hidden_size, shape.hidden_size) / shape.hidden_size**0.5
    lengths = torch.tensor(shape.lengths)
    data, batch_sizes, _, _ = pack_padded_sequence(u, lengths)
    layouts = {
        DENSE: (u, None, None, None),
        SHORT: (u[: short(shape)], None, None, None),
        PACKED: (data, batch_sizes, None, None),
        LENGTHS: (u, None, lengths, None),
        SHUFFLED: (u, None, shuffled(lengths), None),
        EPISODES: (u, None, None, resets(shape)),
    }
    recurrence = torch.ops.rnn_ext.recurrence.default
    linear = torch.ops.rnn_ext.linear_recurrence.default
    calls: dict[str, dict[str, Call]] = {"recurrence": {}, "linear_recurrence": {}}
    for name, (values, *rows) in layouts.items():
        h = recurrence(values, None, w, *rows, None, None, "tanh", [1])[0]
        calls["recurrence"][name] = partial(recurrence, values, None, w, *rows, None, None, "tanh", [1])
        backward = (values, None, w, h, *rows, None, "tanh", "product", True, [-1])
        calls["linear_recurrence"][name] = partial(linear, *backward)
    return calls


def measure(shape: Shape, seconds: float) -> list[Row]:
    """A row for each primitive and each mode of the module."""
    torch.manual_seed(0)
    rows = []
    for level, calls in {**primitives(shape), **modules(shape)}.items():
        # The least of the rounds: what other processes do can only add to it.
        samples = take_turns(calls, rounds=15, seconds=seconds)
        least = {name: min(sample.times) for name, sample in samples.items()}
        rows.append(Row(shape, level, {name: least[name] / least[DENSE] for name in LAYOUTS[1:]}))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if something costs more than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ragged", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each row takes")
    parser.add_argument("--only", metavar="TEXT", default="", help="only shapes whose label contains this")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    keep_memory()  # a dense batch's arrays are larger, and pass the thresholds where a ragged one's do not
    shapes = [Shape(TIME, b, h, h, packed=True) for b, h in itertools.product(BATCHES, HIDDEN)]
    rows = [row for shape in shapes if args.only in str(shape) for row in measure(shape, args.seconds)]
    body = [
        [str(row.shape), row.level, *(f"{r:.2f}" for r in (*row.of_short(), *row.of_full(), *row.of_episodes()))]
        for row in rows
    ]
    timed = [f"time, {name}" for name in (*RAGGED, EPISODES)]
    header = ["T x B x I x H", "", *(f"token, {name}" for name in RAGGED), *timed]
    print(tabulate(body, header, tablefmt="github", disable_numparse=True))
    print()
    lost = 0
    for what, limit, ratios_of in (
        ("a token, of those of a dense batch with as many", LIMIT, Row.of_short),
        ("a batch, of the time of one in which all rows have T steps", LIMIT_OF_FULL, Row.of_full),
        ("a batch of episodes, of the time of one without resets", LIMIT, Row.of_episodes),
    ):
        ratios = [ratio for row in rows for ratio in ratios_of(row)]
        dear = sum(ratio > limit for ratio in ratios)
        print(f"costs more than {limit:g}: {what}: {dear} of {len(ratios)}")
        lost += dear
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
