"""Timing that a shared, noisy machine cannot bend: contestants take turns, in a new order each round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Shorter calls are repeated before the first one that counts, so that caches and pools are the contestant's own.
WARM_SECONDS = 2e-3
# Calls something a number of times, and says how many seconds each took.
Timer = Callable[[Callable[[], object], int], float]

# A call this long does not notice who was there before.
LONG_SECONDS = 0.1


@dataclass(frozen=True)
class Sample:
    """Seconds a call, one value a round, and how many cores were busy meanwhile."""

    times: tuple[float, ...]
    cores: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.times) < 2:
            return self.times[0], self.times[0]
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, high = self.quartiles
        return (high - low) / (2 * self.median)

    def over(self, other: Sample) -> Sample:
        """This one's time over the other's, round by round: what slows a whole round down cancels."""
        return Sample(tuple(a / b for a, b in zip(self.times, other.times, strict=True)))


def quiet(limit: float = 0.2) -> None:
    """Waits until the threads of this process sleep: pools spin for a while after their last task."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(1e-3)
        if time.process_time() - cpu < 0.25 * (time.perf_counter() - wall):
            return


def by_clock(call: Callable[[], object], repeats: int) -> float:
    """The timer of calls that have finished when they return."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _estimate(call: Callable[[], object], timer: Timer, seconds: float = 0.02) -> float:
    """Seconds of a call, roughly: the shortest of some, so that a disturbance does not pass for a long call."""
    once = timer(call, 1)
    end = time.perf_counter() + seconds
    while once < LONG_SECONDS and time.perf_counter() < end:
        once = min(once, timer(call, 1))
    return once


def _warm(call: Callable[[], object], timer: Timer, once: float) -> None:
    if once < LONG_SECONDS:
        timer(call, 1 + int(WARM_SECONDS / once))


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    fewest: int = 5,
    seconds: float = 1.0,
    seed: int = 0,
    settle: Callable[[], None] = quiet,
    timer: Timer = by_clock,
) -> dict[str, Sample]:
    """Times each contestant once a round, in a shuffled order each round.

    Args:
        contestants: what to call, by name.
        rounds: samples of each, where calls are short enough for that.
        fewest: samples of each, however long a call takes.
        seconds: about how long all of it may take; sets how often a call is repeated within a sample, and the
            number of rounds where single calls are long.
        seed: of the order.
        settle: called before each turn.
        timer: what takes the time of calls.

    Returns:
        A sample for each name.
    """
    once = {name: max(_estimate(call, timer), 1e-9) for name, call in contestants.items()}
    rounds = min(rounds, max(fewest, int(seconds / sum(once.values()))))
    repeats = {name: max(1, int(seconds / (rounds * len(contestants)) / t)) for name, t in once.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    busy = dict.fromkeys(contestants, 0.0)
    order = random.Random(seed)
    for _ in range(rounds):
        names = list(contestants)
        order.shuffle(names)
        for name in names:
            call = contestants[name]
            settle()
            _warm(call, timer, once[name])
            cpu = time.process_time()
            times[name].append(timer(call, repeats[name]))
            busy[name] += time.process_time() - cpu
    return {name: Sample(tuple(values), busy[name] / (sum(values) * repeats[name])) for name, values in times.items()}
