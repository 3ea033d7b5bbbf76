"""Timing that a shared, noisy machine cannot bend: contestants take turns, in a new order each round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Seconds a call: the median over rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> Sample:
        low, median, high = statistics.quantiles(seconds, n=4)
        return Sample(median, low, high)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        return (self.high - self.low) / (2 * self.median)


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def take_turns(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = 9, seconds: float = 1.0, seed: int = 0
) -> dict[str, Sample]:
    """Times each contestant ``rounds`` times, in a shuffled order each round.

    Args:
        contestants: what to call, by name.
        rounds: samples of each.
        seconds: about how long all of it may take; sets how often a call is repeated within a sample.
        seed: of the order.

    Returns:
        A sample for each name.
    """
    order = random.Random(seed)
    repeats = {}
    for name, call in contestants.items():
        call()
        # Two calls more warm caches and thread pools, and tell how long one takes.
        once = _time(call, 2)
        repeats[name] = max(1, int(seconds / (rounds * len(contestants)) / once))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        names = list(contestants)
        order.shuffle(names)
        for name in names:
            # The turn's first call pays for what the one before left in the caches; it is not counted.
            contestants[name]()
            samples[name].append(_time(contestants[name], repeats[name]))
    return {name: Sample.of(times) for name, times in samples.items()}
