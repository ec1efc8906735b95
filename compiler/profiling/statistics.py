"""Statistics of repeated measurements: percentiles, mean, spread and throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile of values sorted ascending, interpolated linearly between neighbours.

    The definition is numpy's default ("linear", Hyndman and Fan 1996, type 7).

    Raises:
        ValueError: no values, or `percent` outside 0..100.
    """
    if not ordered:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}, not in 0..100")
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    value = ordered[below] + (ordered[above] - ordered[below]) * (position - below)
    return min(value, ordered[above])  # rounding must not carry it past its neighbour


def median(values: Sequence[float]) -> float:
    """The median of values in any order."""
    return percentile(sorted(values), 50)


@dataclass(frozen=True)
class Latency:
    """Statistics of the times of single runs, all in seconds.

    Attributes:
        runs: how many runs were timed.
        deviation: standard deviation of one run (of the sample, n - 1); 0 for a single run.
    """

    runs: int
    minimum: float
    p50: float
    p90: float
    p99: float
    maximum: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Summarize times in seconds.

        Raises:
            ValueError: no times.
        """
        ordered = sorted(seconds)
        p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
        mean = math.fsum(ordered) / len(ordered)
        squares = math.fsum((value - mean) ** 2 for value in ordered)
        deviation = math.sqrt(squares / (len(ordered) - 1)) if len(ordered) > 1 else 0.0
        return cls(len(ordered), ordered[0], p50, p90, p99, ordered[-1], mean, deviation)

    @property
    def throughput(self) -> float:
        """Runs in a second, one after the other: the reciprocal of the mean."""
        return 1 / self.mean if self.mean > 0 else math.inf

    def to_dict(self) -> dict[str, float | int]:
        """For JSON; times in seconds, `throughput` in runs a second."""
        return {**asdict(self), "throughput": self.throughput}
