"""Times runs, for reports and for choices between two forms of a model, and statistics of repeated measurements:
percentiles, mean, deviation and throughput."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

_TIMED_SECONDS = 0.3
_REPORTED_RUNS = 200
_ROUNDS = 3


def reported_seconds(run: Callable[[], object], *, threads: int = 1) -> float:
    """The median time of a run, for a report: `run_seconds` with 0.3 s or 200 runs, whichever ends first."""
    return run_seconds(run, threads=threads, most=_REPORTED_RUNS)


def run_seconds(
    run: Callable[[], object], *, threads: int = 1, budget: float = _TIMED_SECONDS, most: int | None = None
) -> float:
    """The median time of a run; runs for `budget` seconds, at least three times and at most `most` times.

    On one thread it is processor time, which excludes other programs; on several it is wall-clock time.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    run()
    times: list[float] = []
    deadline = clock() + budget
    while len(times) < 3 or (clock() < deadline and len(times) != most):
        start = clock()
        run()
        times.append(clock() - start)
    return float(np.median(times))


def interleaved_seconds(runs: Sequence[Callable[[], object]], *, threads: int = 1, budget: float = 0.05) -> list[float]:
    """Seconds of each run, with all of them measured in turn three times, so that a temporary slowdown of the machine
    affects all."""
    times = [[run_seconds(run, threads=threads, budget=budget) for run in runs] for _ in range(_ROUNDS)]
    return [float(np.median(each)) for each in zip(*times, strict=True)]


PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile of values sorted ascending, linearly interpolated between neighbors.

    The definition is numpy's default ("linear", Hyndman and Fan 1996, type 7). Raises ValueError for no values, or
    `percent` outside 0..100.
    """
    if not ordered:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}, not in 0..100")
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    value = ordered[below] + (ordered[above] - ordered[below]) * (position - below)
    return min(value, ordered[above])  # rounding must not move it past its neighbor


def median(values: Sequence[float]) -> float:
    """The median of values in any order."""
    return percentile(sorted(values), 50)


@dataclass(frozen=True)
class Latency:
    """Statistics of the times of single runs, all in seconds.

    Attributes:
        runs: number of timed runs.
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
        """Summarize times in seconds. Raises ValueError if there are no times."""
        ordered = sorted(seconds)
        p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
        mean = math.fsum(ordered) / len(ordered)
        squares = math.fsum((value - mean) ** 2 for value in ordered)
        deviation = math.sqrt(squares / (len(ordered) - 1)) if len(ordered) > 1 else 0.0
        return cls(len(ordered), ordered[0], p50, p90, p99, ordered[-1], mean, deviation)

    @property
    def throughput(self) -> float:
        """Sequential runs per second: the reciprocal of the mean."""
        return 1 / self.mean if self.mean > 0 else math.inf

    def to_dict(self) -> dict[str, float | int]:
        """Return plain data for JSON; times in seconds, `throughput` in runs per second."""
        return {**asdict(self), "throughput": self.throughput}
