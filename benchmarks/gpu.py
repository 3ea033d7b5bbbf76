"""``rnn_ext`` on a GPU, beside cuDNN and beside the same mathematics a step at a time:  ``python -m benchmarks.gpu``

Both get the same arrays, in the same precision, and their results are compared before anything is timed. Times are of
CUDA events. The floor is what a row's multiply-adds (limits.py counts them) take on all float32 lanes at the clock that
the device names; where tensor cores may multiply, in the 16-bit formats and with TF32, there is none.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import rnn_ext
from benchmarks import report
from benchmarks.cuda_cost import lanes
from benchmarks.grid import MODES, Shape
from benchmarks.limits import Level, Limits
from benchmarks.peers import OURS, TORCH, contestants, make_problem
from benchmarks.peers.torch_peer import ModulePeer
from benchmarks.timing import Timer, take_turns

RESULTS = Path(__file__).with_name("results")
LOOP = "loop of torch ops"

SHAPES = tuple(
    dict.fromkeys(
        (
            # One shape at each size of W, from one tile to beyond what the device holds; for one row and for many.
            *(
                Shape(100, batch, hidden, hidden)
                for batch in (1, 32)
                for hidden in (32, 64, 128, 256, 512, 1024, 2048, 4096)
            ),
            # From a fraction of the multiprocessors to several rows for each.
            *(Shape(100, batch, 256, 256) for batch in (8, 128, 512)),
            Shape(1000, 1, 128, 128),
            Shape(1000, 64, 64, 64),
            # A size that fits no tile.
            Shape(100, 17, 101, 101),
            # Layers, directions, ragged batches.
            Shape(100, 32, 128, 128, num_layers=2),
            Shape(100, 32, 128, 128, bidirectional=True),
            Shape(100, 32, 128, 128, packed=True),
            Shape(100, 32, 128, 128, num_layers=2, bidirectional=True, packed=True),
        )
    )
)


@dataclass(frozen=True)
class Precision:
    """In what both sides compute.

    Attributes:
        dtype: of all tensors.
        tf32: whether float32 may be multiplied in TF32.
        tolerance: how far results may lie apart, relative to the largest element: some tens of the format's roundings,
            since a gradient sums over all steps, and the loop of torch ops rounds that sum at each.
    """

    dtype: torch.dtype
    tf32: bool
    tolerance: float

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (" TF32" if self.tf32 else "")


PRECISIONS = {
    str(p): p
    for p in (
        Precision(torch.float32, False, 1e-3),
        Precision(torch.float32, True, 2e-2),
        Precision(torch.bfloat16, False, 2e-1),
        Precision(torch.float16, False, 2e-2),
    )
}


class Loop(nn.RNN):
    """torch.nn.RNN a step at a time, by torch's own operations; without packed sequences."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outputs = [self._direction(x, self.all_weights[layer * directions + d], d == 1) for d in range(directions)]
            x = torch.cat(outputs, -1)
        return x, None

    @staticmethod
    def _direction(x: Tensor, weights: Sequence[Tensor], reverse: bool) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = weights
        u = F.linear(x, w_ih, b_ih + b_hh)
        h, states = u.new_zeros(u.shape[1:]), [u] * len(u)
        for t in range(len(u))[:: -1 if reverse else 1]:
            h = torch.addmm(u[t], h, w_hh.t()).tanh()
            states[t] = h
        return torch.stack(states)


class LoopPeer(ModulePeer):
    """Of Loop."""

    def supports(self, shape: Shape, mode: str) -> bool:
        return not shape.packed


class Event(Protocol):
    """What is used of torch.cuda.Event."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float:
        """Milliseconds."""
        ...


def by_events(make: Callable[[], Event]) -> Timer:
    """A timer of what calls have put on the device's stream, whenever they return."""

    def timer(call: Callable[[], object], repeats: int) -> float:
        start, end = make(), make()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats

    return timer


@dataclass(frozen=True)
class Machine:
    """The device to measure on.

    Attributes:
        device: where tensors go.
        name: of the device.
        explained_as: what rnn_ext.explain calls it.
        multiply_adds: in float32, a second, of all its lanes.
        settle: called before each turn, to have the device finish what was there before.
        timer: of calls.
    """

    device: torch.device
    name: str
    explained_as: str
    multiply_adds: float
    settle: Callable[[], None]
    timer: Timer

    def floor(self, shape: Shape, mode: str) -> float:
        """Seconds of a row's multiply-adds in float32."""
        everything = Level("everything", math.inf, math.inf)
        return Limits(1, 2 * self.multiply_adds, (everything,)).seconds(shape, mode)


def this_machine() -> Machine:
    """The current CUDA device, or the sentence that says why there is nothing to measure."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a GPU, and PyTorch finds no CUDA device")
    if rnn_ext.build_info()["cuda"] is not True:
        sys.exit("benchmarks.gpu needs rnn_ext built with CUDA kernels; `make bench-gpu` builds it so")
    found = torch.cuda.get_device_properties()
    return Machine(
        torch.device("cuda", torch.cuda.current_device()),
        found.name,
        "cuda",
        # The clock is in kHz.
        lanes(10 * found.major + found.minor) * found.multi_processor_count * found.clock_rate * 1e3,
        torch.cuda.synchronize,
        by_events(lambda: torch.cuda.Event(enable_timing=True)),
    )


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows TF32, or not, to PyTorch's GEMMs, to rnn_ext, which goes by the same switch, and to cuDNN."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was


def measure(machine: Machine, shape: Shape, mode: str, precision: Precision, seconds: float) -> dict[str, Any]:
    """One row."""
    where = (torch.__version__, machine.device, precision.dtype)
    peers = [
        ModulePeer(OURS, rnn_ext.RNN, *where),
        ModulePeer(TORCH, nn.RNN, *where),
        LoopPeer(LOOP, Loop, *where),
    ]
    with tf32(precision.tf32):
        problem = make_problem(shape, mode, torch.get_num_threads())
        able, failed = contestants(problem, peers, precision.tolerance)
        calls = {name: contestant.run for name, contestant in able.items()}
        samples = take_turns(calls, seconds=seconds, settle=machine.settle, timer=machine.timer)
        plan = rnn_ext.explain(
            shape.time,
            shape.batch,
            shape.hidden_size,
            groups=shape.directions,
            dtype=precision.dtype,
            device=machine.explained_as,
        )
    row = {**report.row(shape, mode, samples, failed), "precision": str(precision), "plan": plan}
    if precision.dtype == torch.float32 and not precision.tf32:
        row["limit"] = machine.floor(shape, mode)
    return row | {"notes": list(failed.values())}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Microseconds a step."""
    body = []
    for row in rows:
        times, limit = [report.cell(row, name) for name in (OURS, TORCH, LOOP)], row.get("limit")
        seconds = row["peers"][OURS]["seconds"]
        body.append(
            [
                *(row["label"], row["mode"], row["precision"], *times),
                *(f"{row['ratio']:.2f} ±{row['ratio_spread']:.0%}", row["best_peer"]),
                *(
                    (report.number(limit / row["shape"]["time"] * 1e6), f"{limit / seconds:.0%}")
                    if limit
                    else ("–", "–")
                ),
                re.search(r": (\w+) kernel", row["plan"])[1],  # type: ignore[index]
            ]
        )
    headers = ["T x B x I x H", "mode", "precision", OURS, TORCH, LOOP, "times faster", "than"]
    align = (*("left",) * 3, *("right",) * 4, "left", "right", "right", "left")
    return tabulate(
        body, [*headers, "floor", "of floor", "plan"], tablefmt="github", disable_numparse=True, colalign=align
    )


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> None:
    """Measures on `machine`, which is the current CUDA device if none is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="only shapes whose label contains this")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each row takes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures, one file a device")
    args = parser.parse_args(arguments)
    machine = machine or this_machine()
    rows = [
        measure(machine, shape, mode, PRECISIONS[precision], args.seconds)
        for shape in tqdm([shape for shape in SHAPES if args.only in str(shape)], disable=None)
        for mode in args.modes
        for precision in args.precisions
    ]
    print(f"{machine.name}: µs a step, median over rounds ± half the distance of the quartiles\n\n{table(rows)}")
    for note in (note for row in rows for note in row["notes"]):
        print(note)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.name,
        "multiply_adds_per_second": machine.multiply_adds,
        "build": rnn_ext.build_info(),
        "rows": rows,
    }
    path = args.out / (re.sub(r"[^\w.]+", "-", machine.name).strip("-") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
