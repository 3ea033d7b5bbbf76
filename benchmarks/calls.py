"""What a call costs before there is anything to compute:  ``python -m benchmarks.calls``

One step of one sequence of few units, on one thread: ours beside ``torch.nn``'s, and below them what PyTorch itself
asks for the least that a module, an op or a derivative written for it can be. Whoever calls compiled code without
PyTorch around it has none of these to pay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import rnn_ext
from benchmarks.timing import take_turns
from rnn_ext import dispatch

HIDDEN = 64
ROUNDS = 25
Call = Callable[[], object]


class Nothing(torch.autograd.Function):
    """A node between a layer's tensors whose results and gradients are there before it is called."""

    @staticmethod
    def forward(ctx, x, w_ih, w_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w_ih, w_hh, b_ih)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w_ih, w_hh, b_ih = ctx.saved_tensors
        return x, w_ih, w_hh, b_ih, b_ih


def inference(call: Call) -> Call:
    def without_gradients() -> object:
        with torch.inference_mode():
            return call()

    return without_gradients


def training(call: Callable[[], Any], weights: Sequence[Tensor], g: Tensor) -> Call:
    return lambda: torch.autograd.grad(call(), weights, g)


def calls(hidden: int) -> dict[str, dict[str, Call]]:
    """For each kind of call what is to be compared, by its name."""
    ours, theirs = rnn_ext.RNN(hidden, hidden), nn.RNN(hidden, hidden)
    our_cell, cell = rnn_ext.RNNCell(hidden, hidden), nn.RNNCell(hidden, hidden)
    x, h = torch.randn(1, 1, hidden), torch.randn(1, 1, hidden)
    row, state, few, module = x[0], h[0], torch.zeros(1, 1), nn.Identity()
    weights, their_weights = list(ours.parameters()), list(theirs.parameters())
    op = torch.ops.rnn_ext.sum_of_rows.default
    return {
        "inference": {
            "rnn_ext.RNN": inference(lambda: ours(x)),
            "torch.nn.RNN": inference(lambda: theirs(x)),
            "rnn_ext.RNN, h0 given": inference(lambda: ours(x, h)),
            "torch.nn.RNN, h0 given": inference(lambda: theirs(x, h)),
            "rnn_ext.RNNCell": inference(lambda: our_cell(row, state)),
            "torch.nn.RNNCell": inference(lambda: cell(row, state)),
            "a module that returns its input": inference(lambda: module(x)),
            "an op of an extension that adds up one number": inference(lambda: op(few)),
        },
        "training": {
            "rnn_ext.RNN": training(lambda: ours(x)[0], weights, h),
            "torch.nn.RNN": training(lambda: theirs(x)[0], their_weights, h),
            "an autograd.Function that does nothing": training(
                lambda: dispatch.apply(Nothing, (x, *weights)), weights, h
            ),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints microseconds a call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="units, and input features")
    parser.add_argument("--seconds", type=float, default=2, help="about how long each of the two tables takes")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for kind, contestants in calls(args.hidden).items():
        for call in contestants.values():
            call()  # PyTorch imports 484 modules for its first gradient
        samples = take_turns(contestants, rounds=ROUNDS, seconds=args.seconds)
        body = [[name, f"{1e6 * s.median:.1f}", f"{s.spread:.0%}"] for name, s in samples.items()]
        print(tabulate(body, (kind, "us a call", "±"), tablefmt="github", disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
