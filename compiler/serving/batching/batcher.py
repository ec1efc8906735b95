"""`Batcher`: runs queued requests together.

Greedy: it never waits while a runner is idle, and takes the queued requests up to a cap. Options can make it wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from compiler.artifact import TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError, OverloadedError, ServiceUnavailableError, TensorwrightError
from compiler.serving.batching.costs import Accuracy, Costs
from compiler.serving.batching.layout import BatchLayout
from compiler.serving.batching.module_service import ModuleService, check_outputs, chosen
from compiler.serving.batching.planner import Batch, BatchOptions, Planner, Result, Waiting
from compiler.serving.gathering import gathered
from compiler.serving.request import Array, Request, Response, Timing
from compiler.serving.tracing import kernel_events

_INLINE_SECONDS = 200e-6  # shorter runs execute in the event loop: passing one to a thread costs a third of it
_UNQUEUED_SECONDS = 30e-6  # shorter runs execute immediately: queueing costs as much as a batch saves
_LEARNT_RUNS = 8  # of those, the cost of one in this many is recorded: recording takes as long as running a small net
_INLINE_ROWS = 64
_Run = tuple[dict[str, Array], float, float]
_Answer = tuple[Waiting, Result | BaseException]


class Batcher:
    """A service that runs requests of one module together if their rows are independent (`find_layout`)."""

    def __init__(self, service: ModuleService, options: BatchOptions | None = None) -> None:
        self.service = service
        self.options = options or BatchOptions()
        self._inputs, self._outputs = service.inputs, service.outputs
        self._plan = Planner(self.options, service.runners)
        self._accuracy = Accuracy()
        self._checker: InputChecker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = self._closing = self._started = False
        self._at_once_runs = 0

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
    def costs(self) -> Costs:
        """The measured costs of runs."""
        return self._plan.costs

    @property
    def queued_rows(self) -> int:
        """The number of queued rows."""
        return self._plan.queued_rows

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
            self._plan.cap = self.options.max_batch_size if layout.rows is None else layout.rows
            self._plan.fixed_rows = layout.rows
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
        if self._at_once(rows, key):
            run = self._run([request.inputs], rows)
            self._at_once_runs += 1
            if not self._at_once_runs % _LEARNT_RUNS:
                self._plan.learn(key, rows, run[2])
            outputs, timing = self._part(run, 0, rows, rows), Timing(0.0, run[2], rows, run[1] + run[2])
        elif rows > self._plan.cap:
            self._admit(request, rows, key)
            outputs, timing = await self._in_parts(request, rows, key)
        else:
            expected = self._admit(request, rows, key)
            outputs, timing = await self._enqueue(request, request.inputs, rows, key, expected)
        events = await self._traced(request.inputs, rows) if request.traced else ()
        return Response(chosen(outputs, request.outputs), self.service.served_by, timing, events=events)

    def expected_wait(self, now: float) -> float:
        """Return the seconds until a request that arrives now would start, as far as costs are known."""
        return self._plan.expected_wait(now)

    def expected_latency(self, key: Hashable, rows: int, now: float) -> float:
        """Return the mean seconds until a request that arrives now would be answered."""
        return self._plan.expected_latency(key, rows, now)

    def _at_once(self, rows: int, key: Hashable) -> bool:
        """True if a request is so small that it is answered before it would be queued."""
        plan = self._plan
        return (
            plan.has_room
            and rows <= plan.cap
            and self.options.min_batch_size == 1
            and plan.costs.fast_seconds(key, plan.computed(rows)) < _UNQUEUED_SECONDS
        )

    async def _traced(self, inputs: Mapping[str, Array], rows: int) -> tuple[Mapping[str, Any], ...]:
        """Profile a run of a single request."""
        layout = self.service.layout
        if layout is not None:
            rows = min(rows, self._plan.cap)
            inputs = layout.padded(layout.part_of(inputs, 0, rows), rows, self._plan.computed(rows))
        return await asyncio.wrap_future(self.service.submit(kernel_events, self.service.module, inputs))

    def _admit(self, request: Request, rows: int, key: Hashable) -> float:
        """Refuse a request if the queue is full or it would be late; otherwise return its expected latency in seconds,
        0 if it is not needed."""
        waiting = self._plan.queued_rows
        if waiting and waiting + rows > self.options.max_queue:
            raise OverloadedError(
                f"{waiting} rows wait for model {self.name!r} already",
                retry_after=self.expected_wait(time.monotonic()) or 1.0,
            )
        if request.deadline is None:
            return 0.0
        now = time.monotonic()
        expected = self.expected_latency(key, rows, now)
        if now + expected * self._accuracy.factor > request.deadline - request.margin:
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
        self._plan.add(Waiting(inputs, rows, key, request.deadline, request.arrival or now, now, expected, future))
        if not self._scheduled:
            # Other requests that are ready in the event loop are queued before the next batch is taken.
            self._scheduled = True
            self._loop.call_soon(self._pump)
        return future

    async def _in_parts(self, request: Request, rows: int, key: Hashable) -> Result:
        """Run a request with more rows than a batch holds."""
        layout, cap = self.service.layout, self._plan.cap
        assert layout is not None

        def part(number: int) -> asyncio.Future[Result]:
            start = number * cap
            end = min(start + cap, rows)
            return self._enqueue(request, layout.part_of(request.inputs, start, end), end - start, key)

        waiting = max(2, self.options.max_queue // (2 * cap))  # so that the queue has room for others meanwhile
        parts = await gathered(-(-rows // cap), waiting, part)
        computed = sum(timing.computed for _, timing in parts)
        first, ended = parts[0][1], max(timing.ended for _, timing in parts)
        return layout.joined_outputs([outputs for outputs, _ in parts]), Timing(
            first.queued, computed, first.batch_rows, ended
        )

    def _pump(self) -> None:
        """Give batches to free runners, which then take the following batches themselves."""
        self._scheduled = False
        while (batch := self._plan.begin(time.monotonic())).requests:
            self._refuse(batch.late)
            if self._is_inline(batch):
                answers, seconds = self._answers(batch)
                self._plan.end(batch, seconds)
                self._give(answers)
            else:
                self.service.submit(self._work, batch)
        self._pause(batch)

    def _pause(self, batch: Batch) -> None:
        """Handle a time at which nothing can run."""
        self._refuse(batch.late)
        if batch.until is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(batch.until - time.monotonic(), self._pump)
        if self._closing and self._plan.idle:
            self._drained.set()

    def _is_inline(self, batch: Batch) -> bool:
        rows = batch.rows
        fast = self._plan.costs.fast_seconds(batch.requests[0].key, self._plan.computed(rows))
        return rows <= _INLINE_ROWS and fast < _INLINE_SECONDS

    def _work(self, batch: Batch) -> None:
        """Thread of a runner: runs batches one after another, unless another module waits for its turn."""
        while batch.requests:
            answers, seconds = self._answers(batch)
            following = self._plan.next(batch, seconds, time.monotonic())
            if following.requests and self.service.shares_threads:
                self.service.submit(self._work, following)
                self._loop.call_soon_threadsafe(self._after, answers, following)
                return
            self._loop.call_soon_threadsafe(self._after, answers, following)
            batch = following

    def _after(self, answers: Sequence[_Answer], following: Batch) -> None:
        self._give(answers)
        if following.requests:
            self._refuse(following.late)
        else:
            self._pause(following)

    def _answers(self, batch: Batch) -> tuple[list[_Answer], float | None]:
        """Run a batch; return the result of each request, and the seconds of the run, None if it failed.

        If a batch fails, its requests run again, each alone: only those that fail then are at fault.
        """
        requests, rows = batch.requests, batch.rows
        try:
            run = self._run([each.inputs for each in requests], rows)
        except TensorwrightError as error:
            if len(requests) == 1:
                return [(requests[0], error)], None
            return [self._answers(Batch([each]))[0][0] for each in requests if not each.future.done()], None
        except Exception as error:  # passed on to the waiting requests
            return [(each, error) for each in requests], None
        answers: list[_Answer] = []
        _, started, seconds = run
        at = 0
        for request in requests:
            timing = Timing(max(0.0, started - request.arrived), seconds, rows, started + seconds)
            answers.append((request, (self._part(run, at, at + request.rows, rows), timing)))
            at += request.rows
        return answers, seconds

    def _run(self, parts: Sequence[Mapping[str, Array]], rows: int) -> _Run:
        layout = self.service.layout
        if layout is None:
            return self.service.run(parts[0])
        inputs: Mapping[str, Array] = layout.joined(parts)
        if layout.rows is not None:
            inputs = layout.padded(inputs, rows, layout.rows)
        return self.service.run(inputs)

    def _part(self, run: _Run, start: int, stop: int, rows: int) -> dict[str, Array]:
        """Return some rows of the outputs of a run for `rows` rows."""
        layout = self.service.layout
        if layout is None or (stop - start == rows and self._plan.computed(rows) == rows):
            return run[0]
        return layout.rows_of(run[0], start, stop)

    def _give(self, answers: Sequence[_Answer]) -> None:
        """Set the results or errors of requests."""
        now = time.monotonic()
        for waiting, result in answers:
            if isinstance(result, BaseException):
                if not waiting.future.done():
                    waiting.future.set_exception(result)
                continue
            if waiting.expected:
                self._accuracy.add(waiting.expected, now - waiting.admitted)
            if not waiting.future.done():
                waiting.future.set_result(result)

    def _refuse(self, late: Sequence[Waiting]) -> None:
        for request in late:
            if request.expected:
                self._accuracy.missed((time.monotonic() - request.admitted) / request.expected)
            if not request.future.done():
                error = OverloadedError(f"model {self.name!r} could not answer in time", late=True)
                request.future.set_exception(error)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = self._plan.closing = True
        if self._started:
            self._pump()
            await self._drained.wait()
        await self.service.close()


_SHAPES = 256  # remembered shapes


class InputChecker:
    """Checks names, element types and shapes of a request's inputs before it is batched with others."""

    def __init__(self, inputs: tuple[TensorDescription, ...], layout: BatchLayout) -> None:
        described = layout.described(inputs, layout.inputs)
        self._specs = [(each.name, ELEMENT_TYPES[each.dtype].numpy, each.shape, str(each)) for each in described]
        self._rows = layout.name
        self._shared = tuple(each.name for each in inputs if each.name not in layout.inputs)
        self._axes = layout.inputs
        self._takes = "the model takes " + "; ".join(map(str, described))
        # Results for earlier shapes, if they depend only on shapes.
        self._known: dict[tuple[tuple[int, ...], ...], tuple[int, tuple[Any, ...]]] = {}

    def check(self, inputs: Mapping[str, Array]) -> tuple[int, tuple[Any, ...]]:
        """Return the number of rows, and a key that is equal for requests that can run together. Raises InputError if
        the inputs do not fit the model."""
        if len(inputs) != len(self._specs):
            raise self._names_error(inputs)
        shapes = []
        for name, dtype, _, _ in self._specs:
            array = inputs.get(name)
            if array is None or array.dtype is not dtype:
                break
            shapes.append(array.shape)
        known = self._known.get(tuple(shapes))
        return self._checked(inputs) if known is None else known

    def _checked(self, inputs: Mapping[str, Array]) -> tuple[int, tuple[Any, ...]]:
        sizes: dict[str, int] = {}
        for name, dtype, shape, text in self._specs:
            array = inputs.get(name)
            if array is None:
                raise self._names_error(inputs)
            if array.dtype != dtype:
                raise InputError(f"input {name!r} has element type {array.dtype}", f"the model takes {text}")
            if array.ndim != len(shape):
                raise InputError(f"input {name!r} has shape {list(array.shape)}", f"the model takes {text}")
            for declared, actual in zip(shape, array.shape, strict=True):
                expected = declared if isinstance(declared, int) else sizes.setdefault(declared, actual)
                if actual != expected:
                    which = f" ({declared} is {expected})" if isinstance(declared, str) else ""
                    raise InputError(f"input {name!r} has shape {list(array.shape)}{which}", f"the model takes {text}")
        rows = sizes.pop(self._rows)
        if rows == 0:
            raise InputError("the request holds no rows", self._takes)
        checked = rows, (*sizes.values(), *(inputs[name].tobytes() for name in self._shared))
        if not self._shared:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            self._known[tuple(inputs[name].shape for name, *_ in self._specs)] = checked
        return checked

    def _names_error(self, inputs: Mapping[str, Array]) -> InputError:
        names = [name for name, *_ in self._specs]
        unknown, missing = (
            [each for each in inputs if each not in names],
            [each for each in names if each not in inputs],
        )
        parts = [f"no input is named {', '.join(map(repr, unknown))}"] if unknown else []
        parts += [f"missing input{'s' * (len(missing) > 1)}: {', '.join(map(repr, missing))}"] if missing else []
        return InputError("; ".join(parts), self._takes)
