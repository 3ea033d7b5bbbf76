"""Is a result slower than an older one, beyond what noise explains?  ``python -m benchmarks.compare OLD NEW``

A row's slowdown is how much longer ours takes than in the old result, over how much longer the peers take: a machine
that is slower today slows all. It is a regression if it exceeds a margin that is made of what was measured: the
spreads of ours in both results, and how little the peers agree on the machine's part. Rows that other processes
disturbed are not judged: threads that wait for one another suffer more from a busy core than any margin allows for.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cores
from benchmarks.peers import OURS

Result = dict[str, Any]
Key = tuple[str, str, int]

# Nothing smaller is called a regression: where the arrays of a process happen to lie makes a difference of that size.
FLOOR = 0.04
# How many noises wide the margin is.
WIDTH = 2.0


@dataclass(frozen=True)
class Change:
    """A row in two results."""

    key: Key
    slowdown: float  # 1.1: takes 10 % longer than the peers' times make one expect
    noise: float
    disturbed: bool = False  # by other processes, in one of the two: no judgement

    @property
    def regression(self) -> bool:
        return not self.disturbed and self.slowdown > 1.0 + FLOOR + WIDTH * self.noise

    def __str__(self) -> str:
        label, mode, threads = self.key
        return f"{label} {mode}, {threads} thread(s): {self.slowdown - 1:+.1%} (noise {self.noise:.1%})"


def key(row: dict[str, Any]) -> Key:
    return row["label"], row["mode"], row["threads"]


def _change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    def grown(name: str) -> float:
        return new["peers"][name]["seconds"] / old["peers"][name]["seconds"]

    def spread(name: str) -> float:
        return math.hypot(old["peers"][name]["spread"], new["peers"][name]["spread"])

    peers = [name for name in old["peers"] if name in new["peers"] and name != OURS]
    machine, doubt = 1.0, 0.0
    if peers:
        machine = statistics.median(map(grown, peers))
        disagreement = statistics.median(abs(grown(name) / machine - 1) for name in peers)
        doubt = max(disagreement, statistics.median(map(spread, peers)) / math.sqrt(len(peers)))
    disturbed = max(old["others"], new["others"]) > cores.DISTURBED
    return Change(key(new), grown(OURS) / machine, math.hypot(spread(OURS), doubt), disturbed)


def changes(old: Result, new: Result) -> list[Change]:
    """For each row that both have."""
    before = {key(row): row for row in old["rows"] if OURS in row["peers"]}
    return [_change(before[key(row)], row) for row in new["rows"] if key(row) in before and OURS in row["peers"]]


def regressions(old: Result, new: Result) -> list[Change]:
    """The rows that got slower, the worst first."""
    return sorted((c for c in changes(old, new) if c.regression), key=lambda c: -c.slowdown)


def differences(old: Result, new: Result) -> list[str]:
    """What else is not the same, and may explain a change: lines."""
    lines = [
        f"{name}: {old['versions'].get(name, 'absent')} then, {new['versions'].get(name, 'absent')} now"
        for name in sorted({*old["versions"], *new["versions"]} - {OURS})
        if old["versions"].get(name) != new["versions"].get(name)
    ]
    if old["machine"] != new["machine"]:
        lines.append(f"machine: {old['machine']} then, {new['machine']} now")
    return lines


def verdict(old: Result, new: Result) -> str:
    """The comparison as text."""
    every, found = changes(old, new), regressions(old, new)
    lines = differences(old, new)
    if not every:
        return "\n".join([*lines, "the two results have no row in common"])
    judged = [change for change in every if not change.disturbed]
    if len(judged) < len(every):
        lines.append(f"{len(every) - len(judged)} rows not judged: other processes disturbed them; try --retries")
    if judged:
        mean = math.exp(statistics.fmean(math.log(change.slowdown) for change in judged))
        lines.append(f"{len(judged)} rows compared, {mean - 1:+.1%} in the geometric mean, {len(found)} regression(s)")
    return "\n".join([*lines, *(f"  {change}" for change in found)])


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if there is a regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args(arguments)
    old, new = (json.loads(path.read_text()) for path in (args.old, args.new))
    print(verdict(old, new))
    return 1 if regressions(old, new) else 0


if __name__ == "__main__":
    sys.exit(main())
