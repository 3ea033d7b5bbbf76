"""Which cores a measurement may use.

A library's own option for its number of threads is a wish: XLA's CPU client has none at all, and a pool that is sized
for the machine still wakes on every core. So a measurement on n threads is a process of its own that the operating
system lets run on n cores, from before the first library is loaded. Each peer is told n as well, where it listens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A measurement during which other processes took more of a core than this is called disturbed.
DISTURBED = 0.1


def _siblings(cpu: int) -> str:
    """What the CPUs of one physical core have in common."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def allowed() -> list[int]:
    """The CPUs this process may run on; empty where the system cannot tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pick(count: int, cpus: list[int] | None = None) -> set[int]:
    """``count`` of the CPUs, no two on one physical core as long as there are such.

    Raises:
        ValueError: there are fewer.
    """
    cpus = allowed() if cpus is None else cpus
    if not 0 < count <= len(cpus):
        raise ValueError(f"{count} threads asked for, but this process may use {len(cpus)} CPUs")
    first: dict[str, int] = {}
    for cpu in cpus:
        first.setdefault(_siblings(cpu), cpu)
    own_core = list(first.values())
    return set((own_core + [cpu for cpu in cpus if cpu not in own_core])[:count])


@contextmanager
def restricted(count: int) -> Iterator[None]:
    """Processes started inside run on ``count`` CPUs. Without affinity (not Linux) nothing is restricted."""
    before = allowed()
    if not before:
        yield
        return
    os.sched_setaffinity(0, pick(count, before))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Others:
    """How many of this process's CPUs other processes keep busy, from its making on; a measurement's excuse."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds that our CPUs were busy, seconds of that which were ours, and the time."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return None
        names = {f"cpu{cpu}" for cpu in allowed()}
        tick = 1.0 / os.sysconf("SC_CLK_TCK")
        busy = 0.0
        for line in lines:
            name, *fields = line.split()
            if name in names:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                busy += (user + nice + system + irq + softirq + steal) * tick
        return busy, time.process_time(), time.perf_counter()

    def cores(self) -> float:
        """On average so far; 0 where the system does not tell."""
        start, now = self._start, self._now()
        if start is None or now is None:
            return 0.0
        busy, own, wall = (b - a for a, b in zip(start, now, strict=True))
        return max(0.0, (busy - own) / max(wall, 1e-9))
