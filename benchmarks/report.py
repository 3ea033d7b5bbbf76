"""The result as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from benchmarks import cores, memory
from benchmarks.grid import Shape
from benchmarks.limits import Limits
from benchmarks.peers import MODULES, OURS
from benchmarks.timing import Sample

Result = dict[str, Any]


def number(microseconds: float) -> str:
    """Three digits."""
    return f"{microseconds:.{max(0, 2 - math.floor(math.log10(max(microseconds, 0.01))))}f}"


def row(shape: Shape, mode: str, samples: Mapping[str, Sample], failed: Iterable[str]) -> dict[str, Any]:
    """What was measured of one shape, as the results keep it."""
    found: dict[str, Any] = {
        "shape": asdict(shape),
        "label": str(shape),
        "mode": mode,
        "peers": {
            name: {"seconds": s.median, "spread": s.spread, "cores": s.cores, "times": s.times}
            for name, s in samples.items()
        },
        "failed": list(failed),
    }
    rivals = {name: sample for name, sample in samples.items() if name != OURS}
    if OURS in samples and rivals:
        best = min(rivals, key=lambda name: rivals[name].median)
        ratio = rivals[best].over(samples[OURS])
        found |= {"best_peer": best, "ratio": ratio.median, "ratio_spread": ratio.spread}
    return found


def peer_names(result: Result) -> list[str]:
    """Those with a column."""
    present = {name for row in result["rows"] for name in (*row["peers"], *row["failed"])}
    return [name for name in MODULES if name in present]


def cell(row: dict[str, Any], name: str) -> str:
    """Microseconds a step of one contestant, and their spread."""
    if name in row["failed"]:
        return "wrong"
    peer = row["peers"].get(name)
    if peer is None:
        return "–"
    return f"{number(peer['seconds'] / row['shape']['time'] * 1e6)} ±{peer['spread']:.0%}"


def table(result: Result) -> str:
    """A row for each shape, mode and number of threads."""
    names = peer_names(result)
    body = []
    for row in result["rows"]:
        cells = [row["label"] + (" *" if row["others"] > cores.DISTURBED else ""), row["mode"], row["threads"]]
        cells += [cell(row, name) for name in names]
        if "ratio" in row:
            cells += [f"{row['ratio']:.2f} ±{row['ratio_spread']:.0%}", row["best_peer"]]
        else:
            cells += ["–", "–"]
        if "limit" in row and OURS in row["peers"]:
            cells.append(number(row["limit"] / row["shape"]["time"] * 1e6))
            cells.append(f"{row['limit'] / row['peers'][OURS]['seconds']:.0%}")
        else:
            cells += ["–", "–"]
        body.append(cells)
    headers = ["T x B x I x H", "mode", "threads", *names, "times faster", "than", "limit", "of limit"]
    align = ("left", "left", *("right",) * (len(names) + 2), "left", "right", "right")
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def kernel_table(rows: list[dict[str, Any]]) -> str:
    """The primitives alone."""
    body = [
        [
            row["primitive"],
            row["isa"],
            row["threads"],
            f"{row['time']}x{row['batch']}x{row['hidden']}",
            f"{number(row['seconds'] / row['time'] * 1e6)} ±{row['spread']:.0%}",
            f"{row['flops_per_second'] / 1e9:.1f}",
            f"{row['limit'] / row['seconds']:.0%}" if "limit" in row else "–",
        ]
        for row in rows
    ]
    headers = ["primitive", "ISA", "threads", "T x B x H", "µs/step", "GFLOP/s", "of limit"]
    align = ("left", "left", "right", "left", "right", "right", "right")
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def behind(result: Result) -> list[dict[str, Any]]:
    """Rows in which a peer is faster than ours, the worst first."""
    return sorted((row for row in result["rows"] if row.get("ratio", 1.0) < 1.0), key=lambda row: row["ratio"])


def _geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _summary(result: Result) -> Iterator[str]:
    rows = [row for row in result["rows"] if "ratio" in row]
    if not rows:
        return
    yield "times faster, geometric mean over the rows that a peer can do:"
    for name in peer_names(result):
        shared = [row["peers"] for row in rows if name in row["peers"] and OURS in row["peers"]]
        if name != OURS and shared:
            mean = _geometric_mean([peers[name]["seconds"] / peers[OURS]["seconds"] for peers in shared])
            yield f"  than {name}: {mean:.2f} ({len(shared)} rows)"
    slower = behind(result)
    yield f"a peer is faster in {len(slower)} of {len(rows)} rows" + (":" if slower else "")
    for row in slower:
        certain = "" if row["ratio"] < 1 - row["ratio_spread"] else ", within the spread"
        yield (
            f"  {row['label']} {row['mode']}, {row['threads']} thread(s): {row['best_peer']} takes "
            f"{row['ratio']:.2f} of our time{certain}"
        )


def _machine(result: Result) -> Iterator[str]:
    for limits in result["limits"].values():
        yield str(Limits.from_json(limits))
    for threads, others in result["others"].items():
        if others > cores.DISTURBED:
            yield f"{threads} thread(s): other processes kept {others:.1f} of these cores busy"
    if any(row["others"] > cores.DISTURBED for row in result["rows"]):
        yield f"* other processes took more than {cores.DISTURBED} of a core during the row: believe it less"
    for threads in result["others"]:
        busiest = {
            name: max((row["peers"][name]["cores"] for row in result["rows"] if _has(row, name, threads)), default=0)
            for name in peer_names(result)
        }
        if busiest:
            shown = ", ".join(f"{name} {busy:.2f}" for name, busy in busiest.items())
            yield f"{threads} thread(s): cores busy at most (CPU time over wall time): {shown}"


def _has(row: dict[str, Any], name: str, threads: str) -> bool:
    return str(row["threads"]) == threads and name in row["peers"]


def _memory(result: Result) -> Iterator[str]:
    figures = result.get("memory_mib")
    if figures:
        yield f"peak extra memory of a training step at {memory.SHAPE}: " + ", ".join(
            f"{name} {mib:.0f} MiB" for name, mib in figures.items()
        )


def text(result: Result) -> str:
    """The whole report."""
    blocks = []
    if result["rows"]:
        blocks.append("µs a step, median over rounds ± half the distance of the quartiles\n\n" + table(result))
        blocks.append("\n".join(_summary(result)))
    if result["kernels"]:
        blocks.append("the primitives alone\n\n" + kernel_table(result["kernels"]))
    blocks.append("\n".join([*_machine(result), *_memory(result), *result["notes"]]))
    return "\n\n".join(block for block in blocks if block) + "\n"
