"""Measures on a given number of threads, in a process that may use as many cores and no more."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import cores, native
from benchmarks.grid import Shape


@dataclass(frozen=True)
class Request:
    """What a worker is to measure.

    Attributes:
        threads: how many.
        rows: ``(shape, mode)`` of each row.
        peers: names, ``benchmarks.peers.MODULES``.
        seconds: about how long each row takes, all peers together.
        kernels: (B, H) of the kernel level.
        retries: how often rows that other processes disturbed are measured once more, in the end.
    """

    threads: int
    rows: Sequence[tuple[Shape, str]]
    peers: Sequence[str]
    seconds: float
    kernels: Sequence[tuple[int, int]] = ()
    retries: int = 0


def start(request: Request, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a worker, and returns what :func:`measure` did there.

    Raises:
        subprocess.CalledProcessError: it failed; what it had to say is on the terminal.
    """
    threads = str(request.threads)
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **(environment or {})}
    with tempfile.TemporaryDirectory() as folder, cores.restricted(request.threads):
        question, answer = Path(folder, "request.json"), Path(folder, "result.json")
        question.write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", "benchmarks.worker", str(question), str(answer)]
        subprocess.run(command, check=True, env=variables, cwd=native.ROOT)
        return json.loads(answer.read_text())


def measure(request: Request) -> dict[str, Any]:
    """Everything the request asks for, and the machine's limits before and after it."""
    import torch

    from benchmarks import kernels, limits, peers

    torch.set_num_threads(request.threads)
    contestants, notes = peers.load(request.peers) if request.rows else ([], [])
    others = cores.Others()
    limit_seconds = min(2.0, 2 * request.seconds)
    try:
        machine = limits.measure(request.threads, limit_seconds)
    except native.CannotBuild as error:
        machine = None
        notes.append(f"no limits of the machine: {error}")
    with tqdm(total=len(request.rows) + len(request.kernels), desc=f"{request.threads} thread(s)", disable=None) as bar:
        rows, failures = _measure_rows(request, contestants, bar)
        kernel_rows = []
        for size in request.kernels:
            bar.set_postfix_str("kernels, B={} H={}".format(*size))
            kernel_rows += kernels.measure([size], request.threads, min(0.3, request.seconds / 2))
            bar.update()
    if machine is not None:
        machine = machine.best(limits.measure(request.threads, limit_seconds))
        for row in rows:
            if row["shape"]["dtype"] != "float32":
                continue  # its arithmetic has no limit here: what was measured is float32's
            row["limit"] = machine.seconds(Shape(**row["shape"]), row["mode"])
        for row in kernel_rows:
            batch_sizes = [row["batch"]] * row["time"]
            row["limit"] = machine.recurrence_seconds(batch_sizes, 1, row["hidden"])
    return {
        "threads": request.threads,
        "rows": rows,
        "kernels": kernel_rows,
        "limits": machine and machine.to_json(),
        "others": others.cores(),
        "versions": {peer.name: peer.version() for peer in contestants},
        "notes": notes + failures,
    }


def _measure_rows(
    request: Request, contestants: Sequence[Any], bar: tqdm[Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    rows, notes = [], []
    for shape, mode in request.rows:
        bar.set_postfix_str(f"{shape} {mode}")
        row, failures = _row(request, shape, mode, contestants)
        rows.append(row)
        notes += failures
        bar.update()
    for _ in range(request.retries):
        disturbed = [i for i, row in enumerate(rows) if row["others"] > cores.DISTURBED]
        bar.total += len(disturbed)
        for i in disturbed:
            bar.set_postfix_str(f"again: {rows[i]['label']} {rows[i]['mode']}")
            row, _ = _row(request, *request.rows[i], contestants)
            rows[i] = min(rows[i], row, key=lambda r: r["others"])
            bar.update()
    return rows, notes


def _row(request: Request, shape: Shape, mode: str, contestants: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    from benchmarks import peers, report
    from benchmarks.timing import take_turns

    able, failed = peers.contestants(peers.make_problem(shape, mode, request.threads), contestants)
    # From the last row: sessions, and the threads of their pools.
    gc.collect()
    others = cores.Others()
    samples = take_turns({name: contestant.run for name, contestant in able.items()}, seconds=request.seconds)
    row = {**report.row(shape, mode, samples, failed), "threads": request.threads, "others": others.cores()}
    for name, contestant in able.items():
        row["peers"][name]["note"] = contestant.note
    return row, list(failed.values())


def _main(question: str, answer: str) -> None:
    data = json.loads(Path(question).read_text())
    data["rows"] = [(Shape(**shape), mode) for shape, mode in data["rows"]]
    data["kernels"] = [tuple(size) for size in data["kernels"]]
    Path(answer).write_text(json.dumps(measure(Request(**data))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
