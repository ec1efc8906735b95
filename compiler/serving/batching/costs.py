"""Cost model of runs: fitted online, by shape and number of rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_SHAPES = 256  # shapes whose costs are kept, those used last
_FORGET = 0.95  # weight of what was known before, at each run
_MARGIN = 1.15  # least factor from a mean time to one that is seldom exceeded
_DEVIATIONS = 3.0


class _Line:
    """Linear model of seconds over rows: least squares with exponentially decaying weights."""

    __slots__ = ("_n", "_t", "_tx", "_x", "_xx", "deviation")

    def __init__(self) -> None:
        self._n = self._x = self._xx = self._t = self._tx = 0.0
        self.deviation = 0.0  # of runs from what was predicted, as a share

    def add(self, rows: int, seconds: float) -> None:
        if self._n:
            predicted = self.at(rows)
            share = abs(seconds - predicted) / predicted if predicted > 0 else 0.0
            self.deviation += 0.1 * (min(share, 1.0) - self.deviation)
        self._n = _FORGET * self._n + 1
        self._x = _FORGET * self._x + rows
        self._xx = _FORGET * self._xx + rows * rows
        self._t = _FORGET * self._t + seconds
        self._tx = _FORGET * self._tx + seconds * rows

    def at(self, rows: int) -> float:
        """Predicted seconds; in proportion to the rows as long as runs of one size alone are known."""
        spread = self._n * self._xx - self._x * self._x
        mean_rows, mean = self._x / self._n, self._t / self._n
        if spread <= 1e-6 * self._n * self._xx:
            return mean * rows / mean_rows
        slope = min(max((self._n * self._tx - self._x * self._t) / spread, 0.0), mean / mean_rows)
        return mean + slope * (rows - mean_rows)


class Costs:
    """Seconds of runs by shape and rows; not for several threads at once."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, _Line] = OrderedDict()

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

    def seconds(self, shape: Hashable, rows: int) -> float | None:
        """What a run takes in the mean; None for a shape that never ran."""
        line = self._lines.get(shape)
        return None if line is None else line.at(rows)

    def careful(self, shape: Hashable, rows: int) -> float:
        """What a run seldom exceeds; 0 for a shape that never ran, so that it is tried."""
        line = self._lines.get(shape)
        return 0.0 if line is None else line.at(rows) * max(_MARGIN, 1 + _DEVIATIONS * line.deviation)


class Accuracy:
    """How far latencies go beyond what was expected: a factor that few of them exceed, followed step by step.

    Attributes:
        factor: from an expected latency to one that is seldom exceeded.
    """

    _SHARE = 0.01  # of latencies that may exceed it
    _STEP = 0.05
    _LEAST, _MOST = 1.05, 4.0

    def __init__(self) -> None:
        self.factor = 1.25

    def add(self, expected: float, actual: float) -> None:
        """A request was answered."""
        if actual > self.factor * expected:
            self.missed()
        else:
            self.factor = max(self._LEAST, self.factor - self._STEP * self._SHARE)

    def missed(self) -> None:
        """A request was later than the factor foresaw."""
        self.factor = min(self._MOST, self.factor + self._STEP * (1 - self._SHARE))
