"""Counts of one process since they were last added to Prometheus' metrics.

Each number counted there takes a lock, and in a server of several processes a write to a mapped file: together a fifth
of a small net's request. Not for several threads at once.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any


class CounterTally:
    """For a counter of prometheus_client, with its labels."""

    __slots__ = ("_counter", "amount")

    def __init__(self, counter: Any) -> None:
        self._counter = counter
        self.amount = 0.0

    def flush(self) -> None:
        """Add what was counted."""
        if self.amount:
            self._counter.inc(self.amount)
            self.amount = 0.0


class HistogramTally:
    """For a histogram of prometheus_client, with its labels."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_total")

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._bounds: list[float] = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> None:
        """Add what was counted: the library has no public way to add more than one value."""
        histogram = self._histogram
        for index, count in enumerate(self._counts):
            if count:
                histogram._buckets[index].inc(count)
                self._counts[index] = 0
        if self._total:
            histogram._sum.inc(self._total)
            self._total = 0.0
