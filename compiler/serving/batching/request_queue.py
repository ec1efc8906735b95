"""The queue of a batcher: requests in order of arrival, grouped by what can run together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from compiler.serving.request import Array, Timing

Result = tuple[dict[str, Array], Timing]


@dataclass(eq=False)
class Waiting:
    """A request that waits.

    Attributes:
        key: what must be equal for requests to run together.
        deadline, arrived, admitted: seconds of `time.monotonic()`.
        expected: seconds from `admitted` to its answer; 0: not known.
        future: of its outputs; cancelled where the client has disconnected.
        turn: its place among all requests.
    """

    inputs: Mapping[str, Array]
    rows: int
    key: Hashable
    deadline: float | None
    arrived: float
    admitted: float
    expected: float
    future: asyncio.Future[Result]
    turn: int = 0


class RequestQueue:
    """Requests by key; the group whose first request came first is the next."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[Waiting]] = {}
        self._rows: dict[Hashable, int] = {}
        self._turn = 0
        self.rows = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def add(self, waiting: Waiting) -> None:
        """Put a request at the end."""
        self._turn += 1
        waiting.turn = self._turn
        self._groups.setdefault(waiting.key, deque()).append(waiting)
        self._rows[waiting.key] = self._rows.get(waiting.key, 0) + waiting.rows
        self.rows += waiting.rows

    def head(self) -> Waiting:
        """The request that came first."""
        return min((group[0] for group in self._groups.values()), key=lambda each: each.turn)

    def waiting(self, key: Hashable) -> Waiting | None:
        """The first request of a group, None where there is none."""
        group = self._groups.get(key)
        return group[0] if group else None

    def take(self, key: Hashable) -> Waiting:
        """Remove the first request of a group."""
        group = self._groups[key]
        first = group.popleft()
        self.rows -= first.rows
        self._rows[key] -= first.rows
        if not group:
            del self._groups[key], self._rows[key]
        return first

    def rows_of(self, key: Hashable) -> int:
        """The number of queued rows of a group."""
        return self._rows.get(key, 0)

    def groups(self) -> Iterator[tuple[Hashable, int]]:
        """Each group and its rows."""
        return iter(self._rows.items())
