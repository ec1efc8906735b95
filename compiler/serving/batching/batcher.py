"""`Batcher`: runs requests that wait at the same time together.

Greedy: it never waits while a runner is idle, and takes what is queued, up to a cap. Options can make it wait for more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from compiler.artifact import TensorDescription
from compiler.errors import OverloadedError, ServiceUnavailableError, TensorwrightError
from compiler.serving.batching.costs import Accuracy, Costs
from compiler.serving.batching.input_checker import InputChecker
from compiler.serving.batching.module_service import ModuleService, check_outputs, chosen
from compiler.serving.batching.options import BatchOptions
from compiler.serving.batching.request_queue import RequestQueue, Result, Waiting
from compiler.serving.request import Array, Request, Response, Timing
from compiler.serving.tracing import kernel_events

_INLINE_SECONDS = 200e-6  # a run that takes less is made in the event loop: handing it to a thread takes a third of it
_INLINE_ROWS = 64
_Run = tuple[dict[str, Array], float, float]


class Batcher:
    """A service that runs requests of one module together where their rows are independent (`find_layout`)."""

    def __init__(self, service: ModuleService, options: BatchOptions | None = None) -> None:
        self.service = service
        self.options = options or BatchOptions()
        self._inputs, self._outputs = service.inputs, service.outputs
        self.costs = Costs()
        self._accuracy = Accuracy()
        self._queue = RequestQueue()
        self._free = service.runners
        self._running: dict[int, float] = {}  # when each running batch is expected to end
        self._checker: InputChecker | None = None
        self._cap = 1
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = self._closing = self._started = False

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def version(self) -> str:
        return self.service.version

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        return self._outputs

    @property
    def identity(self) -> str:
        """A digest of the module: caches key on it."""
        return self.service.identity

    @property
    def queued_rows(self) -> int:
        """How many rows wait."""
        return self._queue.rows

    async def start(self) -> None:
        if self._started:
            return
        await self.service.start()
        self._loop = asyncio.get_running_loop()
        self._drained = asyncio.Event()
        layout = self.service.layout
        if layout is not None:
            self._checker = InputChecker(self.service.inputs, layout)
            self._inputs = layout.described(self.service.inputs, layout.inputs)
            self._outputs = layout.described(self.service.outputs, layout.outputs)
            self._cap = self.options.max_batch_size if layout.rows is None else layout.rows
        self._started = True

    async def infer(self, request: Request) -> Response:
        if request.outputs is not None:
            check_outputs(self.service.outputs, request.outputs)
        if self._closing or not self._started:
            raise ServiceUnavailableError(f"model {self.name!r} is not running")
        if self._checker is None:
            rows, key = 1, tuple(array.shape for array in request.inputs.values())
        else:
            rows, key = self._checker.check(request.inputs)
        expected = self._admit(request, rows, key)
        if rows > self._cap:
            outputs, timing = await self._in_parts(request, rows, key)
        else:
            outputs, timing = await self._enqueue(request, request.inputs, rows, key, expected)
        events = await self._traced(request.inputs, rows) if request.traced else ()
        return Response(chosen(outputs, request.outputs), self.service.served_by, timing, events=events)

    async def _traced(self, inputs: Mapping[str, Array], rows: int) -> tuple[Mapping[str, Any], ...]:
        """A profile of a run of a request alone."""
        layout = self.service.layout
        if layout is not None:
            rows = min(rows, self._cap)
            inputs = layout.padded(layout.part_of(inputs, 0, rows), rows, self._computed(rows))
        return await asyncio.wrap_future(self.service.submit(kernel_events, self.service.module, inputs))

    def expected_wait(self, now: float) -> float:
        """Seconds until a request that comes now would start, as far as costs are known."""
        work = sum(max(0.0, end - now) for end in self._running.values())
        return (work + sum(self._work(key, rows) for key, rows in self._queue.groups())) / self.service.runners

    def expected_latency(self, key: Hashable, rows: int, now: float) -> float:
        """Seconds until a request that comes now would be answered, in the mean.

        Runners end together: what waits and what comes is shared by them, but a run is not.
        """
        own = self._work(key, rows)
        first = 0.0 if self._free > 0 else max(0.0, min(self._running.values(), default=now) - now)
        return max(self.expected_wait(now) + own / self.service.runners, first + own)

    def _work(self, key: Hashable, rows: int) -> float:
        """Seconds of so many rows, in batches; 0 for a shape that never ran, so that it is tried."""
        whole, rest = divmod(rows, self._cap)
        seconds = whole * (self.costs.seconds(key, self._cap) or 0.0) if whole else 0.0
        return seconds + ((self.costs.seconds(key, self._computed(rest)) or 0.0) if rest else 0.0)

    def _computed(self, rows: int) -> int:
        """How many rows a run for so many computes."""
        layout = self.service.layout
        return rows if layout is None or layout.rows is None else layout.rows

    def _admit(self, request: Request, rows: int, key: Hashable) -> float:
        """Refuse a request for which there is no room, or that would be late; else its expected latency in seconds, 0
        where nobody asks for it."""
        waiting = self._queue.rows
        if waiting and waiting + rows > self.options.max_queue:
            raise OverloadedError(
                f"{waiting} rows wait for model {self.name!r} already",
                retry_after=self.expected_wait(time.monotonic()) or 1.0,
            )
        if request.deadline is None:
            return 0.0
        now = time.monotonic()
        expected = self.expected_latency(key, rows, now)
        if now + expected * self._accuracy.factor > request.deadline:
            raise OverloadedError(
                f"model {self.name!r} cannot answer in time: it would take {1000 * expected:.0f} ms",
                retry_after=max(self.expected_wait(now), 0.001),
                late=True,
            )
        return expected

    def _enqueue(
        self, request: Request, inputs: Mapping[str, Array], rows: int, key: Hashable, expected: float = 0.0
    ) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self._loop.create_future()
        now = time.monotonic()
        waiting = Waiting(inputs, rows, key, request.deadline, request.arrival or now, now, expected, future)
        self._queue.add(waiting)
        if not self._scheduled:
            # What else is ready in the event loop now is queued before the next batch is taken.
            self._scheduled = True
            self._loop.call_soon(self._pump)
        return future

    async def _in_parts(self, request: Request, rows: int, key: Hashable) -> Result:
        """A request of more rows than a batch holds."""
        layout = self.service.layout
        assert layout is not None
        bounds = [(start, min(start + self._cap, rows)) for start in range(0, rows, self._cap)]
        parts = await asyncio.gather(
            *(self._enqueue(request, layout.part_of(request.inputs, *each), each[1] - each[0], key) for each in bounds)
        )
        computed = sum(timing.computed for _, timing in parts)
        first = parts[0][1]
        return layout.joined_outputs([outputs for outputs, _ in parts]), Timing(
            first.queued, computed, first.batch_rows
        )

    def _pump(self) -> None:
        self._scheduled = False
        while self._free > 0 and self._queue:
            batch = self._take(time.monotonic())
            if not batch:
                break
            self._launch(batch)
        if self._closing and not self._queue and not self._running:
            self._drained.set()

    def _take(self, now: float) -> list[Waiting]:
        """The next batch: those at the head of the queue that can run together; empty: none, or wait for more."""
        head = self._first(now)
        if head is None or self._must_wait(head, now):
            return []
        cap = max(head.rows, min(self._cap, self._share(head.key, now))) if self._computed(1) == 1 else self._cap
        batch, rows, deadline = [self._queue.take(head.key)], head.rows, head.deadline
        while (following := self._queue.waiting(head.key)) is not None and rows + following.rows <= cap:
            if following.future.done():
                self._queue.take(head.key)
                continue
            ends = [each for each in (deadline, following.deadline) if each is not None]
            soonest = min(ends) if ends else None
            if soonest is not None and now + self.costs.careful(head.key, rows + following.rows) > soonest:
                break  # the batch would be late for one that is in it
            batch.append(self._queue.take(head.key))
            rows, deadline = rows + following.rows, soonest
        return batch

    def _share(self, key: Hashable, now: float) -> int:
        """How many of the rows that wait one runner takes, so that all runners end at the same time."""
        rows = self._queue.rows_of(key)
        seconds = self.costs.seconds(key, rows)
        if not seconds:
            return -(-rows // self._free)
        work = seconds + sum(max(0.0, end - now) for end in self._running.values())
        return math.ceil(rows * min(1.0, work / self.service.runners / seconds))

    def _first(self, now: float) -> Waiting | None:
        """The first request that still can be answered; those before it are refused, or were cancelled."""
        while self._queue:
            head = self._queue.head()
            seconds = self.costs.seconds(head.key, self._computed(head.rows)) or 0.0
            late = head.deadline is not None and now + seconds > head.deadline
            if not late and not head.future.done():
                return head
            self._queue.take(head.key)
            if not head.future.done():
                self._accuracy.missed()
                message = f"model {self.name!r} could not answer in time"
                head.future.set_exception(OverloadedError(message, late=True))
        return None

    def _must_wait(self, head: Waiting, now: float) -> bool:
        """Whether the batch at the head of the queue waits for more rows; a timer ends that."""
        options = self.options
        until = head.arrived + options.max_wait_ms / 1000
        if self._closing or now >= until or self._queue.rows_of(head.key) >= min(options.min_batch_size, self._cap):
            return False
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(until - now, self._pump)
        return True

    def _launch(self, batch: Sequence[Waiting]) -> None:
        rows, key = sum(each.rows for each in batch), batch[0].key
        expected = self.costs.seconds(key, self._computed(rows))
        if expected is not None and expected < _INLINE_SECONDS and rows <= _INLINE_ROWS:
            try:
                run = self._run([each.inputs for each in batch], rows)
            except Exception as error:  # told to those who wait
                self._fail(batch, error)
            else:
                self._answer(batch, run)
            return
        self._submit(batch, rows, expected or 0.0)

    def _submit(self, batch: Sequence[Waiting], rows: int, expected: float) -> None:
        self._free -= 1
        self._running[id(batch)] = time.monotonic() + expected
        running = self.service.submit(self._run, [each.inputs for each in batch], rows)
        running.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._finish, batch, done))

    def _run(self, parts: Sequence[Mapping[str, Array]], rows: int) -> _Run:
        layout = self.service.layout
        if layout is None:
            return self.service.run(parts[0])
        inputs: Mapping[str, Array] = layout.joined(parts)
        if layout.rows is not None:
            inputs = layout.padded(inputs, rows, layout.rows)
        return self.service.run(inputs)

    def _finish(self, batch: Sequence[Waiting], done: Future[_Run]) -> None:
        del self._running[id(batch)]
        self._free += 1
        error = done.exception()
        if error is None:
            self._answer(batch, done.result())
        else:
            self._fail(batch, error)
        self._pump()

    def _answer(self, batch: Sequence[Waiting], run: _Run) -> None:
        outputs, started, seconds = run
        rows = sum(each.rows for each in batch)
        computed = self._computed(rows)
        self.costs.add(batch[0].key, computed, seconds)
        layout, at = self.service.layout, 0
        whole = layout is None or (len(batch) == 1 and computed == rows)
        for each in batch:
            own = outputs if whole or layout is None else layout.rows_of(outputs, at, at + each.rows)
            at += each.rows
            if each.expected:
                self._accuracy.add(each.expected, time.monotonic() - each.admitted)
            if not each.future.done():
                each.future.set_result((own, Timing(max(0.0, started - each.arrived), seconds, rows)))

    def _fail(self, batch: Sequence[Waiting], error: BaseException) -> None:
        """Tell a request its error; those of a batch run again, each alone: only those that fail then are at fault."""
        alone = len(batch) == 1 or not isinstance(error, TensorwrightError)
        for each in batch:
            if each.future.done():
                continue
            if alone:
                each.future.set_exception(error)
            else:
                self._submit([each], each.rows, self._work(each.key, each.rows))

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._started:
            self._pump()
            await self._drained.wait()
        await self.service.close()
