"""Cost model of runs, fitted online by shape and number of rows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

_SHAPES = 256  # number of most recently used shapes that are kept
_FORGET = 0.99  # weight of the earlier estimate, at each run; less at first, when runs are slow and few
_OUTLIER = 4.0  # a run counts at most this many times its prediction: a thread may wait long for a processor
_KNOWN = 4.0  # weight of runs from which on predictions are used to judge others
_SPREAD = 0.02  # least relative variance of rows that separates a run's fixed cost from the cost of its rows
_WORTHWHILE = 0.15  # limit of the fixed cost, shared by the rows of a batch, relative to a row's time
_MARGIN = 1.15  # least factor from a mean time to one that is seldom exceeded
_DEVIATIONS = 3.0


class _Line:
    """Linear model of seconds over rows: least squares with exponentially decaying weights.

    It is fitted to the medians of the last three runs of each number of rows: a run that was interrupted for a while is
    no measure of the cost of rows, and must not change how many of them run together.
    """

    __slots__ = ("_last", "_n", "_runs", "_t", "_tx", "_x", "_xx", "deviation", "fast")

    def __init__(self) -> None:
        self._runs = 0
        self._last: dict[int, tuple[float, float]] = {}  # seconds of the last two runs by rows
        self._n = self._x = self._xx = self._t = self._tx = 0.0
        self.deviation = 0.0  # relative deviation of runs from predictions
        self.fast = 1.0  # ratio of the fastest runs to the prediction

    def add(self, rows: int, seconds: float) -> None:
        if self._n:
            predicted = self.at(rows)
            share = abs(seconds - predicted) / predicted if predicted > 0 else 0.0
            self.deviation += 0.1 * (min(share, 1.0) - self.deviation)
            if self._n > _KNOWN and predicted > 0:
                self.fast = min(seconds / predicted, self.fast + 0.02 * (1 - self.fast))
                seconds = min(seconds, _OUTLIER * predicted)
        self._runs += 1
        decay = min(_FORGET, 1 - 2 / (self._runs + 2))
        seconds = self._median(rows, seconds)
        self._n = decay * self._n + 1
        self._x = decay * self._x + rows
        self._xx = decay * self._xx + rows * rows
        self._t = decay * self._t + seconds
        self._tx = decay * self._tx + seconds * rows

    def _median(self, rows: int, seconds: float) -> float:
        """Return the median of this run and the two before it with the same number of rows; the faster one of two."""
        recent = self._last.get(rows)
        if recent is None:
            self._last[rows] = (seconds, seconds)
            return seconds
        older, last = recent
        self._last[rows] = (last, seconds)
        return min(last, seconds) if older == last else sorted((older, last, seconds))[1]

    def at(self, rows: int) -> float:
        """Return predicted seconds; proportional to rows as long as only one size is known."""
        mean_rows, mean = self._x / self._n, self._t / self._n
        slope = self._slope(1e-6)
        return mean * rows / mean_rows if slope is None else mean + slope * (rows - mean_rows)

    def enough(self) -> int | None:
        """Return the number of rows from which on larger batches are not cheaper per row; None if unknown."""
        slope = self._slope(_SPREAD)
        if not slope:
            return None
        fixed = (self._t - slope * self._x) / self._n
        return max(1, math.ceil(fixed / slope / _WORTHWHILE))

    def _slope(self, min_spread: float) -> float | None:
        """Return the seconds of one more row; None if the numbers of rows do not differ enough."""
        spread = self._n * self._xx - self._x * self._x
        if spread <= min_spread * self._n * self._xx:
            return None
        return min(max((self._n * self._tx - self._x * self._t) / spread, 0.0), self._t / self._x)


class Costs:
    """Seconds of runs by shape and rows; not thread-safe."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, _Line] = OrderedDict()
        self._fast: dict[tuple[Hashable, int], float] = {}  # predictions since the last recorded run

    def add(self, shape: Hashable, rows: int, seconds: float) -> None:
        """Learn from a run."""
        line = self._lines.get(shape)
        if line is None:
            line = self._lines[shape] = _Line()
            if len(self._lines) > _SHAPES:
                self._lines.popitem(last=False)
        else:
            self._lines.move_to_end(shape)
        line.add(rows, seconds)
        self._fast = {}

    def seconds(self, shape: Hashable, rows: int) -> float | None:
        """Return the mean duration of a run; None for a shape that never ran."""
        line = self._lines.get(shape)
        return None if line is None else line.at(rows)

    def fast_seconds(self, shape: Hashable, rows: int) -> float:
        """Return the time of the fastest runs, which waited for no other thread; infinite for an unknown shape."""
        known = self._fast
        seconds = known.get((shape, rows))
        if seconds is None:
            line = self._lines.get(shape)
            if line is None:
                return math.inf
            seconds = known[shape, rows] = line.fast * line.at(rows)
        return seconds

    def careful(self, shape: Hashable, rows: int) -> float:
        """Return a time that a run seldom exceeds; 0 for a shape that never ran, so that it is tried."""
        line = self._lines.get(shape)
        return 0.0 if line is None else line.at(rows) * max(_MARGIN, 1 + _DEVIATIONS * line.deviation)

    def enough(self, shape: Hashable) -> int | None:
        """Return the number of rows from which on larger batches save almost nothing; None if unknown."""
        line = self._lines.get(shape)
        return None if line is None else line.enough()


class Accuracy:
    """Excess of latencies over the expected ones: a factor that few of them exceed, followed step by step. `factor`:
    from an expected latency to one that is seldom exceeded."""

    _SHARE = 0.005  # fraction of latencies that may exceed it
    _STEP = 0.05
    _MIN_FACTOR, _MAX_FACTOR = 1.05, 4.0

    def __init__(self) -> None:
        self.factor = 1.25

    def add(self, expected: float, actual: float) -> None:
        """Record an answered request."""
        if actual > self.factor * expected:
            self.missed(actual / expected)
        else:
            self.factor = max(self._MIN_FACTOR, self.factor - self._STEP * self._SHARE)

    def missed(self, ratio: float) -> None:
        """Record a late request: it took `ratio` times the expected time, or more.

        The factor becomes no larger than that: one stall of the machine makes many requests late at once.
        """
        self.factor = min(self._MAX_FACTOR, max(self.factor, ratio), self.factor + self._STEP * (1 - self._SHARE))
