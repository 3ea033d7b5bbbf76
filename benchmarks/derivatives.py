"""What derivatives cost, ours beside ``torch.nn.RNN``'s under the same transform:  ``python -m benchmarks.derivatives``

Each row is one transform of one training loss. Its cost is also given in gradients that the same interface takes,
``torch.autograd.grad`` or ``torch.func.grad``: a Hessian-vector product is about three times a gradient's arithmetic
(docs/derivatives.md), and should take at most four times as long.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import rnn_ext
from benchmarks.grid import Shape
from benchmarks.peers import OURS, TORCH
from benchmarks.timing import Sample, take_turns

SHAPES = (Shape(50, 8, 64, 64), Shape(100, 32, 64, 64), Shape(100, 32, 256, 256), Shape(200, 16, 128, 128, 2, True))
# A Hessian-vector product may cost so many gradients.
LIMIT = 4.0
MEMBERS = 4

PRODUCT = "Hessian-vector product"

Weights = dict[str, Tensor]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One transform at one shape."""

    label: str
    interface: str
    name: str
    samples: dict[str, Sample]
    in_gradients: dict[str, float]


def transforms(module: nn.Module, x: Tensor) -> dict[str, dict[str, Call]]:
    """The calls to time, by interface and transform; the first of each interface is its gradient."""
    weights: Weights = {name: p.detach() for name, p in module.named_parameters()}
    along = {name: torch.randn_like(p) for name, p in weights.items()}
    leaves = list(module.parameters())
    members = {name: torch.stack([p] * MEMBERS) for name, p in weights.items()}

    def loss(weights: Weights, x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].pow(2).mean()

    def of_one(weights: Weights, row: Tensor) -> Tensor:
        return loss(weights, row.unsqueeze(1))

    def eager(create_graph: bool = False) -> Sequence[Tensor]:
        return torch.autograd.grad(module(x)[0].pow(2).mean(), leaves, create_graph=create_graph)

    return {
        "torch.autograd": {
            "gradient": eager,
            PRODUCT: lambda: torch.autograd.grad(eager(True), leaves, list(along.values())),
        },
        "torch.func": {
            "gradient": lambda: grad(loss)(weights, x),
            PRODUCT: lambda: jvp(lambda w: grad(loss)(w, x), (weights,), (along,)),
            "tangent": lambda: jvp(lambda w: loss(w, x), (weights,), (along,)),
            "gradient of each sample": lambda: vmap(grad(of_one), (None, 1))(weights, x),
            f"gradients of {MEMBERS} models": lambda: vmap(grad(loss), (0, None))(members, x),
        },
    }


def _can(call: Call) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


def measure(shape: Shape, seconds: float) -> list[Row]:
    """All transforms at one shape; who cannot do one is absent from its samples."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_layers": shape.num_layers, "bidirectional": shape.bidirectional}
    theirs = nn.RNN(shape.input_size, shape.hidden_size, **arguments)
    ours = rnn_ext.RNN(shape.input_size, shape.hidden_size, **arguments)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape.time, shape.batch, shape.input_size)
    calls = {OURS: transforms(ours, x), TORCH: transforms(theirs, x)}
    rows = []
    for interface, own in calls[OURS].items():
        gradient: dict[str, Sample] = {}
        for name in own:
            able = {who: calls[who][interface][name] for who in calls if _can(calls[who][interface][name])}
            samples = take_turns(able, seconds=seconds)
            gradient = gradient or samples
            in_gradients = {who: sample.median / gradient[who].median for who, sample in samples.items()}
            rows.append(Row(str(shape), interface, name, samples, in_gradients))
    return rows


def table(rows: list[Row]) -> str:
    """Milliseconds, the same in gradients, and how many times faster."""
    body = []
    for row in rows:
        cells = [row.label, row.interface, row.name]
        for who in (OURS, TORCH):
            able = who in row.samples
            cells += [f"{row.samples[who].median * 1e3:.2f}" if able else "fails"]
            cells += [f"{row.in_gradients[who]:.1f}" if able else "–"]
        faster = row.samples[TORCH].over(row.samples[OURS]).median if TORCH in row.samples else None
        body.append([*cells, "–" if faster is None else f"{faster:.1f}"])
    headers = ["T x B x I x H", "interface", "transform", OURS, "in gradients", TORCH, "in gradients", "times faster"]
    align = ("left", "left", "left", *("right",) * 5)
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def too_dear(rows: list[Row]) -> list[str]:
    """The Hessian-vector products beyond the limit."""
    return [
        f"{row.label} {row.interface}: {row.in_gradients[OURS]:.1f}"
        for row in rows
        if row.name == PRODUCT and row.in_gradients[OURS] > LIMIT
    ]


def keep_memory() -> None:
    """Has the C library keep what is freed, as jemalloc would: a fresh array of some megabytes is otherwise paged in
    anew each time, which can take as long as what is computed in it. glibc wants to be told before it starts, so this
    process begins again. Its bins for small blocks are off: before 2.38 they take the gaps around aligned blocks, which
    then never fit again, so that each call climbs to fresh memory (glibc's bug 14581)."""
    tunables = "glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432:glibc.malloc.tcache_count=0"
    if os.environ.get("GLIBC_TUNABLES") != tunables:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": tunables})


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if a Hessian-vector product cost more than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.derivatives", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each row takes")
    parser.add_argument("--only", metavar="TEXT", default="", help="only shapes whose label contains this")
    parser.add_argument("--keep-memory", action="store_true", help="without the page faults of large fresh arrays")
    args = parser.parse_args(arguments)
    if args.keep_memory:
        keep_memory()
    torch.set_num_threads(args.threads)
    rows = [row for shape in SHAPES if args.only in str(shape) for row in measure(shape, args.seconds)]
    print("ms, medians\n\n" + table(rows))
    dear = too_dear(rows)
    print(f"\nHessian-vector products that took more than {LIMIT:g} gradients: " + ("; ".join(dear) or "none"))
    return 1 if dear else 0


if __name__ == "__main__":
    sys.exit(main())
