"""Timing of runs, for reports and for choices between two forms of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

_TIMED_SECONDS = 0.3
_REPORTED_RUNS = 200
_TURNS = 3


def reported_seconds(run: Callable[[], object], *, threads: int = 1) -> float:
    """The median time of a run, for a report: `run_seconds` of 0.3 s or 200 runs, whichever ends first."""
    return run_seconds(run, threads=threads, most=_REPORTED_RUNS)


def run_seconds(
    run: Callable[[], object], *, threads: int = 1, budget: float = _TIMED_SECONDS, most: int | None = None
) -> float:
    """The median time of a run; runs for `budget` seconds, three times at least and `most` times at most.

    On one thread it is processor time, of which other programs take nothing; on several it is time by the clock.
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


def seconds_in_turns(runs: Sequence[Callable[[], object]], *, threads: int = 1, budget: float = 0.05) -> list[float]:
    """Seconds of each run, measured one after the other three times: what slows the machine down for a while slows
    all."""
    times = [[run_seconds(run, threads=threads, budget=budget) for run in runs] for _ in range(_TURNS)]
    return [float(np.median(each)) for each in zip(*times, strict=True)]
