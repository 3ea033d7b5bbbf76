"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import rnn_ext
from benchmarks import compare, kernels, report, worker
from benchmarks.grid import FULL, MODES, QUICK, Shape
from benchmarks.memory import peak_memory
from benchmarks.peers import MODULES

Result = dict[str, Any]
Rows = list[tuple[Shape, str]]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="rnn_ext beside its peers; docs/benchmarks.md explains the table."
    )
    parser.add_argument("--quick", action="store_true", help="a few shapes, under a minute")
    parser.add_argument("--only", metavar="TEXT", default="", help="only shapes whose label contains this, e.g. bidir")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--peers", nargs="+", choices=list(MODULES), default=list(MODULES), metavar="PEER")
    parser.add_argument("--seconds", type=float, help="about how long each row takes (default: 1.5; quick: 0.3)")
    parser.add_argument("--retries", type=int, default=0, help="more tries at rows that other processes disturbed")
    parser.add_argument("--kernels", action="store_true", help="only the kernel level")
    parser.add_argument("--isa", nargs="+", metavar="ISA", help="kernel level on these instruction sets, or 'all'")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the kernel level")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of a training step")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where report and pictures go")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="an older result; exit 1 if ours got slower")
    return parser.parse_args(arguments)


def merge(parts: list[Result]) -> Result:
    """The workers' results as one."""
    return {
        "rows": [row for part in parts for row in part["rows"]],
        "kernels": [row for part in parts for row in part["kernels"]],
        "limits": {str(part["threads"]): part["limits"] for part in parts if part["limits"]},
        "others": {str(part["threads"]): part["others"] for part in parts},
        "versions": {name: version for part in parts for name, version in part["versions"].items()},
        "notes": list(dict.fromkeys(note for part in parts for note in part["notes"])),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(args: argparse.Namespace) -> Result:
    """Everything that the command line asks for."""
    seconds = args.seconds or (0.3 if args.quick else 1.5)
    shapes = [shape for shape in (QUICK if args.quick else FULL) if args.only in str(shape)]
    rows: Rows = [] if args.kernels else [(shape, mode) for shape in shapes for mode in args.modes]
    sizes = () if args.no_kernels else kernels.QUICK if args.quick else kernels.FULL
    info = rnn_ext.build_info()
    isas = info["cpu_isas_runnable"] if args.isa == ["all"] else args.isa or [info["isa"]]
    parts = []
    for threads in args.threads:
        own = sizes if info["isa"] in isas else ()
        parts.append(worker.start(worker.Request(threads, rows, args.peers, seconds, own, args.retries)))
        for isa in isas if sizes else ():
            if isa != info["isa"]:
                request = worker.Request(threads, [], [], seconds, sizes)
                part = worker.start(request, {"RNN_EXT_CPU_ISA": isa})
                parts[-1]["kernels"] += part["kernels"]
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": processor(),
        "build": info,
        **merge(parts),
    }
    if not (args.no_memory or args.kernels):
        result["memory_mib"] = peak_memory()
    return result


def again(args: argparse.Namespace, found: list[compare.Change], old: Result) -> list[compare.Change]:
    """Those of the regressions that a second, longer look confirms: of many rows, noise alone takes some."""
    shapes = {str(shape): shape for shape in FULL + QUICK}
    parts = []
    for threads in args.threads:
        rows = [(shapes[label], mode) for label, mode, n in (change.key for change in found) if n == threads]
        if rows:
            seconds = 2 * (args.seconds or 1.5)
            parts.append(worker.start(worker.Request(threads, rows, args.peers, seconds, retries=args.retries)))
    return compare.regressions(old, merge(parts))


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if a comparison found a regression."""
    args = parse(arguments)
    old = json.loads(args.compare.read_text()) if args.compare else None
    result = measure(args)
    text = report.text(result)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.md").write_text(text)
    for path in {args.out / "result.json", args.json} - {None}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result) + "\n")
    if importlib.util.find_spec("matplotlib"):
        from benchmarks import pictures

        drawn = pictures.draw(result, args.out)
        print(f"written to {args.out}: report.md, result.json" + "".join(f", {path.name}" for path in drawn))
    else:
        print("no pictures: no module matplotlib; pip install '.[bench]' brings it")
    if old is None:
        return 0
    print(f"\ncompared with {args.compare}:\n{compare.verdict(old, result)}")
    found = compare.regressions(old, result)
    if found:
        found = again(args, found, old)
        print(f"measured again: {len(found)} confirmed" + "".join(f"\n  {change}" for change in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
