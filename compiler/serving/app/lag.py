"""`Lag`: how long answers wait for this process once they are computed."""

from __future__ import annotations

_PERIOD = 1.0  # seconds after which the longest wait is forgotten, in one to two of these
_MOST = 0.5  # of a request's time: it must leave some for its run, or nothing would be accepted and learned from


class Lag:
    """The longest wait of the last second or two: for the event loop, and until the answer is written.

    A request waits for the same event loop before it is read, which nobody sees; `margin` holds both.
    """

    def __init__(self) -> None:
        self._longest = self._before = self._until = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Record the delay of an answer after the end of its run; `now` is a monotonic clock."""
        self._forget(now)
        self._longest = max(self._longest, seconds)

    def margin(self, seconds: float, now: float) -> float:
        """Share of a request's time limit that its run must leave, in seconds."""
        self._forget(now)
        return min(2 * max(self._longest, self._before), _MOST * seconds)

    def _forget(self, now: float) -> None:
        if now < self._until:
            return
        self._before = self._longest if now < self._until + _PERIOD else 0.0
        self._longest, self._until = 0.0, now + _PERIOD
