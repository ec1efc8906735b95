"""`Planner`: decides which queued requests run next, and together; used by the threads of a batcher.

Runners take their next batch from it themselves: none is idle while the event loop sends the last one's answers.
Its queue holds requests in order of arrival, grouped by compatibility.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import OptionError
from compiler.serving.batching.costs import Costs
from compiler.serving.request import Array, Timing

_PATIENCE = 3  # batches into which a runner divides a long queue


@dataclass(eq=False)
class Batch:
    """Next task of a runner.

    Attributes:
        requests: requests that run together; empty: nothing can run now.
        late: requests that can no longer be answered in time, removed from the queue.
        until: seconds of `time.monotonic()` when to ask again; None: when there are more requests.
    """

    requests: list[Waiting] = field(default_factory=list)
    late: list[Waiting] = field(default_factory=list)
    until: float | None = None

    @property
    def rows(self) -> int:
        """The rows of all its requests."""
        return sum(each.rows for each in self.requests)


class Planner:
    """The queue of a batcher, the state of its runners, and the costs of runs. Thread-safe."""

    def __init__(self, options: BatchOptions, runners: int) -> None:
        self.options, self.runners = options, runners
        self.costs = Costs()
        self.cap = 1
        self.fixed_rows: int | None = None
        """Number of rows of each run, if it is fixed."""
        self.closing = False
        self._queue = RequestQueue()
        self._free = runners
        self._running: dict[int, float] = {}  # when each running batch is expected to end
        self._lock = threading.Lock()

    @property
    def queued_rows(self) -> int:
        """The number of queued rows."""
        return self._queue.rows

    @property
    def idle(self) -> bool:
        """True if nothing is queued or running."""
        return not self._queue and not self._running

    @property
    def has_room(self) -> bool:
        """True if nothing is queued and a runner is free."""
        return self._free > 0 and not self._queue

    def computed(self, rows: int) -> int:
        """Return the number of rows that a run for `rows` computes."""
        return rows if self.fixed_rows is None else self.fixed_rows

    def add(self, waiting: Waiting) -> None:
        """Put a request at the end of the queue."""
        with self._lock:
            self._queue.add(waiting)

    def begin(self, now: float) -> Batch:
        """Return the next batch for a free runner, if there is one; it counts as running until `next` or `end`."""
        with self._lock:
            return self._begin(now) if self._free > 0 else Batch()

    def next(self, ended: Batch, seconds: float | None, now: float) -> Batch:
        """Return the next batch for a runner after `ended`; `seconds`: duration of its run, None if it failed."""
        with self._lock:
            self._end(ended, seconds)
            return self._begin(now)

    def end(self, ended: Batch, seconds: float | None) -> None:
        """Record the end of a batch whose runner takes no other."""
        with self._lock:
            self._end(ended, seconds)

    def learn(self, key: Hashable, rows: int, seconds: float) -> None:
        """Record the duration of a run outside the queue."""
        with self._lock:
            self.costs.add(key, self.computed(rows), seconds)

    def expected_wait(self, now: float) -> float:
        """Return the seconds until a request that arrives now would start, as far as costs are known."""
        with self._lock:
            return self._expected_wait(now)

    def expected_latency(self, key: Hashable, rows: int, now: float) -> float:
        """Return the mean seconds until a request that arrives now would be answered.

        Runners end together: they share queued and new requests, but not a run.
        """
        with self._lock:
            own = self._work(key, rows)
            first = 0.0 if self._free > 0 else max(0.0, min(self._running.values(), default=now) - now)
            return max(self._expected_wait(now) + own / self.runners, first + own)

    def _expected_wait(self, now: float) -> float:
        return (
            self._running_work(now) + sum(self._work(key, rows) for key, rows in self._queue.groups())
        ) / self.runners

    def _running_work(self, now: float) -> float:
        return sum(max(0.0, end - now) for end in self._running.values())

    def _work(self, key: Hashable, rows: int) -> float:
        """Return the seconds for a number of rows, in batches; 0 for a shape that never ran, so that it is tried."""
        whole, rest = divmod(rows, self.cap)
        seconds = whole * (self.costs.seconds(key, self.cap) or 0.0) if whole else 0.0
        return seconds + ((self.costs.seconds(key, self.computed(rest)) or 0.0) if rest else 0.0)

    def _begin(self, now: float) -> Batch:
        batch = Batch()
        head = self._first(batch, now)
        if head is None or self._must_wait(batch, head, now):
            return batch
        self._fill(batch, head, now)
        rows = self.computed(batch.rows)
        self._running[id(batch)] = now + (self.costs.seconds(head.key, rows) or 0.0)
        self._free -= 1
        return batch

    def _end(self, ended: Batch, seconds: float | None) -> None:
        del self._running[id(ended)]
        self._free += 1
        if seconds is not None:
            self.costs.add(ended.requests[0].key, self.computed(ended.rows), seconds)

    def _first(self, batch: Batch, now: float) -> Waiting | None:
        """Return the first request that can still be answered; earlier ones are late or cancelled."""
        while self._queue:
            head = self._queue.head()
            seconds = self.costs.seconds(head.key, self.computed(head.rows)) or 0.0
            late = head.deadline is not None and now + seconds > head.deadline
            if not late and not head.future.done():
                return head
            self._queue.take(head.key)
            if not head.future.done():
                batch.late.append(head)
        return None

    def _must_wait(self, batch: Batch, head: Waiting, now: float) -> bool:
        """True if the batch at the head of the queue waits for more rows."""
        options = self.options
        until = head.arrived + options.max_wait_ms / 1000
        if self.closing or now >= until or self._queue.rows_of(head.key) >= min(options.min_batch_size, self.cap):
            return False
        batch.until = until
        return True

    def _fill(self, batch: Batch, head: Waiting, now: float) -> None:
        """Take requests from the head of the queue that can run together."""
        cap = self.cap if self.fixed_rows is not None else max(head.rows, min(self.cap, self._wanted(head.key, now)))
        batch.requests.append(self._queue.take(head.key))
        rows, deadline = head.rows, head.deadline
        while (following := self._queue.waiting(head.key)) is not None and rows + following.rows <= cap:
            if following.future.done():
                self._queue.take(head.key)
                continue
            soonest = _sooner(deadline, following.deadline)
            if soonest is not None and now + self.costs.careful(head.key, rows + following.rows) > soonest:
                break  # the batch would be late for one of its requests
            batch.requests.append(self._queue.take(head.key))
            rows, deadline = rows + following.rows, soonest

    def _wanted(self, key: Hashable, now: float) -> int:
        """Return the number of queued rows for the next batch.

        It stops growing when it saves nothing, since each row of a batch waits for all of them. With a long queue, even
        small savings count.
        """
        share, enough = self._share(key, now), self.costs.enough(key)
        if enough is None:
            return share
        return min(share, max(enough, -(-self._queue.rows_of(key) // (_PATIENCE * self.runners))))

    def _share(self, key: Hashable, now: float) -> int:
        """Return the number of queued rows for one runner, so that all runners end at the same time."""
        rows = self._queue.rows_of(key)
        seconds = self.costs.seconds(key, rows)
        if not seconds:
            return -(-rows // self._free)
        work = seconds + self._running_work(now)
        return math.ceil(rows * min(1.0, work / self.runners / seconds))


def _sooner(one: float | None, other: float | None) -> float | None:
    ends: Sequence[float] = [each for each in (one, other) if each is not None]
    return min(ends) if ends else None


Result = tuple[dict[str, Array], Timing]


@dataclass(eq=False)
class Waiting:
    """A queued request.

    Attributes:
        key: equal for requests that can run together.
        deadline, arrived, admitted: seconds of `time.monotonic()`.
        expected: seconds from `admitted` to its answer; 0 if unknown.
        future: future of its outputs; cancelled if the client has disconnected.
        turn: its position among all requests.
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
    """Requests by key; the group with the earliest request is next."""

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
        """The earliest request."""
        return min((group[0] for group in self._groups.values()), key=lambda each: each.turn)

    def waiting(self, key: Hashable) -> Waiting | None:
        """Return the first request of a group, None if there is none."""
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
        """Return the number of queued rows of a group."""
        return self._rows.get(key, 0)

    def groups(self) -> Iterator[tuple[Hashable, int]]:
        """Return each group and its rows."""
        return iter(self._rows.items())


@dataclass(frozen=True)
class BatchOptions:
    """Options of batching requests.

    Attributes:
        max_batch_size: maximum rows per batch; larger requests run in parts.
        max_wait_ms: time that a batch with fewer than `min_batch_size` rows waits for more.
        min_batch_size: number of rows that a batch waits for.
        max_queue: maximum number of queued rows; more are refused (`OverloadedError`).
        enabled: False runs each request alone.
    """

    max_batch_size: int = 32
    max_wait_ms: float = 0.0
    min_batch_size: int = 1
    max_queue: int = 1024
    enabled: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "min_batch_size", "max_queue"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise OptionError(f"max_wait_ms must be a number of at least 0, not {self.max_wait_ms!r}")
        if self.min_batch_size > self.max_batch_size:
            raise OptionError(f"min_batch_size {self.min_batch_size} is above max_batch_size {self.max_batch_size}")
