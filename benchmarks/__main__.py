"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import rnn_ext
from benchmarks.grid import FULL, MODES, QUICK, Shape
from benchmarks.memory import SHAPE, peak_memory
from benchmarks.peers import OURS, TORCH, contestants
from benchmarks.timing import take_turns


def measure(shapes: tuple[Shape, ...], threads: list[int], seconds: float) -> list[dict[str, Any]]:
    """One row for each shape, mode and number of threads."""
    rows: list[dict[str, Any]] = []
    work = [(n, mode, shape) for n in threads for mode in MODES for shape in shapes]
    for n, mode, shape in tqdm(work, desc="measuring", disable=not sys.stderr.isatty()):
        torch.set_num_threads(n)
        samples = take_turns(contestants(shape, mode), seconds=seconds)
        row: dict[str, Any] = {"shape": str(shape), "time": shape.time, "mode": mode, "threads": n}
        for name, sample in samples.items():
            row[name] = {"seconds": sample.median, "spread": sample.spread}
        row["ratio"] = samples[TORCH].median / samples[OURS].median
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds a step, and how often faster than torch.nn.RNN; spread is half the quartile distance."""
    body = [
        [
            row["shape"],
            row["mode"],
            row["threads"],
            *(f"{row[name]['seconds'] / row['time'] * 1e6:.2f} ±{row[name]['spread']:.0%}" for name in (TORCH, OURS)),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    headers = ["T x B x I x H", "mode", "threads", f"{TORCH} µs/step", f"{OURS} µs/step", "times faster"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=("left", "left", *["right"] * 4))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes, under a minute")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long each row takes (default: 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of a training step")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()

    rows = measure(QUICK if args.quick else FULL, args.threads, min(args.seconds, 1.0) if args.quick else args.seconds)
    print(table(rows))
    result: dict[str, Any] = {"build": rnn_ext.build_info(), "rows": rows}
    if not args.no_memory:
        memory = peak_memory([TORCH, OURS])
        print(
            f"\npeak extra memory of a training step at {SHAPE}: "
            + ", ".join(f"{k} {v:.0f} MiB" for k, v in memory.items())
        )
        print(f"ratio {memory[OURS] / memory[TORCH]:.2f}")
        result["memory_mib"] = memory
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
