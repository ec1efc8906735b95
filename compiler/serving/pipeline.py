"""`Pipeline`: pre-processing, model and post-processing of different items at the same time, with bounded queues."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from compiler.errors import OptionError, OverloadedError, ServiceUnavailableError


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        function: maps an item to the next stage's item; with `batch`, a list of items to a list of equal length.
        workers: number of threads that call it; more than one for a stage that waits or releases the GIL.
        batch: maximum number of items per call; None: one by one. Only queued items are combined, without waiting.
    """

    function: Callable[[Any], Any]
    workers: int = 1
    batch: int | None = None


def _check(stage: Stage, index: int) -> None:
    """Raise OptionError for an invalid stage."""
    if not callable(stage.function):
        raise OptionError(f"stage {index} is no function: {stage.function!r}")
    for name, count in (("workers", stage.workers), ("batch", stage.batch)):
        if count is not None and count < 1:
            raise OptionError(f"{name} of stage {index} must be at least 1, not {count}")


class Pipeline:
    """Stages with their own threads and a bounded queue before each.

    A full queue blocks the stage before it, and finally `submit` (back pressure). A failing item does not affect
    others: a failed batch runs again item by item. An item whose future is cancelled skips later stages. `map` and
    `stream` return results in the order of the items.

    Safe to use from several threads and event loops. The model's stage is usually `module.run`.
    """

    def __init__(self, stages: Sequence[Stage | Callable[[Any], Any]], *, capacity: int = 8) -> None:
        """Start the threads.

        Args:
            stages: functions, or `Stage`s.
            capacity: capacity of each queue, in items.

        Raises:
            OptionError: there is no stage, one is no function, or a number is below 1.
        """
        self._stages = [each if isinstance(each, Stage) else Stage(each) for each in stages]
        if not self._stages:
            raise OptionError("a pipeline without stages", "give one or more functions")
        if capacity < 1:
            raise OptionError(f"capacity must be at least 1, not {capacity}")
        for index, each in enumerate(self._stages):
            _check(each, index)
        # The first queue is bounded by the slots, which tasks of an event loop can wait for too.
        self._slots = Slots(capacity)
        self._queues: list[queue.Queue[_Item | None]] = [queue.Queue() for _ in self._stages[:1]]
        self._queues += [queue.Queue(capacity) for _ in self._stages[1:]]
        self._limit = capacity * len(self._stages) + sum(each.workers * (each.batch or 1) for each in self._stages)
        self._closed = False
        self._lock = threading.Lock()
        self._items: set[_Item] = set()
        self._threads = [
            [
                threading.Thread(target=self._work, args=(index,), name=f"pipeline-{index}", daemon=True)
                for _ in range(stage.workers)
            ]
            for index, stage in enumerate(self._stages)
        ]
        for threads in self._threads:
            for thread in threads:
                thread.start()

    def submit(self, item: object, *, timeout: float | None = None) -> Future[Any]:
        """Submit an item; waits while the first queue is full.

        Args:
            timeout: maximum seconds to wait; None: until there is room.

        Returns:
            A future of the last stage's result, or of the item's error.

        Raises:
            OverloadedError: there was no room in that time.
            ServiceUnavailableError: the pipeline is closed.
        """
        self._check_open()
        if not self._slots.acquire(timeout):
            raise OverloadedError(f"the pipeline had no room within {timeout} s")
        return self._enter(item)

    async def run(self, item: object) -> Any:
        """Process an item without blocking the event loop. Raises the item's error."""
        return await asyncio.wrap_future(await self._submit_async(item))

    def map(self, items: Iterable[object]) -> Iterator[Any]:
        """Yield results in order; reads only as many `items` as the pipeline holds. Raises the first item's error, and
        cancels the following items."""
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(self.submit(item))
                while len(waiting) > self._limit or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    async def stream(self, items: AsyncIterator[Any] | Iterable[Any]) -> AsyncIterator[Any]:
        """`map` for an event loop; `items` can be asynchronous."""
        waiting: deque[Future[Any]] = deque()
        try:
            async for item in _asynchronous(items):
                waiting.append(await self._submit_async(item))
                while len(waiting) > self._limit or (waiting and waiting[0].done()):
                    yield await asyncio.wrap_future(waiting.popleft())
            while waiting:
                yield await asyncio.wrap_future(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def close(self, *, cancel: bool = False) -> None:
        """Finish the submitted items (or cancel them), and end the threads."""
        with self._lock:
            closing, self._closed = not self._closed, True
            items = list(self._items) if cancel else []
        for item in items:
            item.future.cancel()
        if not closing:
            return
        for each, threads in zip(self._queues, self._threads, strict=True):
            for _ in threads:
                each.put(None)
            for thread in threads:
                thread.join()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceUnavailableError("the pipeline is closed")

    async def _submit_async(self, item: object) -> Future[Any]:
        self._check_open()
        await self._slots.acquire_async()
        return self._enter(item)

    def _enter(self, value: object) -> Future[Any]:
        item = _Item(value)
        with self._lock:
            if not self._closed:
                self._items.add(item)
                self._queues[0].put(item)  # never full: a slot was taken
                return item.future
        self._slots.release()
        raise ServiceUnavailableError("the pipeline is closed")

    def _work(self, index: int) -> None:
        stage, input_queue = self._stages[index], self._queues[index]
        following = self._queues[index + 1] if index + 1 < len(self._stages) else None
        while True:
            items, last = _taken(input_queue, stage.batch or 1)
            if index == 0:
                for _ in items:
                    self._slots.release()
            for item in self._computed(stage, items):
                if following is None:
                    self._end(item)
                else:
                    following.put(item)
            if last:
                return

    def _computed(self, stage: Stage, items: list[_Item]) -> list[_Item]:
        """Run a stage; return the items that continue, with their results as values. The others are done."""
        for item in items:
            if item.future.cancelled():
                self._forget(item)
        alive = [item for item in items if not item.future.cancelled()]
        if stage.batch is not None and len(alive) > 1:
            try:
                results = list(stage.function([item.value for item in alive]))
            except Exception:
                pass  # each of them runs alone below, and only the one at fault fails
            else:
                if len(results) == len(alive):
                    for item, result in zip(alive, results, strict=True):
                        item.value = result
                    return alive
        return [item for item in alive if self._computed_alone(stage, item)]

    def _computed_alone(self, stage: Stage, item: _Item) -> bool:
        try:
            if stage.batch is None:
                item.value = stage.function(item.value)
            else:
                (item.value,) = stage.function([item.value])
        except BaseException as error:  # the thread continues with other items after any error
            self._end(item, error=error)
            return False
        return True

    def _end(self, item: _Item, error: BaseException | None = None) -> None:
        try:
            if item.future.set_running_or_notify_cancel():
                if error is None:
                    item.future.set_result(item.value)
                else:
                    item.future.set_exception(error)
        except (CancelledError, InvalidStateError):
            pass  # cancelled at this moment
        self._forget(item)

    def _forget(self, item: _Item) -> None:
        with self._lock:
            self._items.discard(item)


class _Item:
    """An item that passes through the stages; compared by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.future: Future[Any] = Future()


def _taken(input_queue: queue.Queue[_Item | None], most: int) -> tuple[list[_Item], bool]:
    """Take up to `most` queued items; also return True if the worker's end marker was among them."""
    first = input_queue.get()
    if first is None:
        return [], True
    items = [first]
    while len(items) < most:
        try:
            another = input_queue.get_nowait()
        except queue.Empty:
            break
        if another is None:
            input_queue.put(None)  # the end marker comes after these
            break
        items.append(another)
    return items, False


async def _asynchronous(items: AsyncIterator[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, Iterable):
        for item in items:
            yield item
    else:
        async for item in items:
            yield item


class Slots:
    """A counting semaphore for threads and tasks, first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, timeout: float | None = None) -> bool:
        """Take a slot, waiting up to `timeout` seconds (None: until there is one); False on timeout."""
        granted = threading.Event()
        waiter = self._enter(_Waiter(granted.set))
        if waiter is None or granted.wait(timeout):
            return True
        return not self._leave(waiter)

    async def acquire_async(self) -> None:
        """`acquire` for a task; a task that is cancelled while it waits leaves the queue."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def grant() -> None:
            try:
                loop.call_soon_threadsafe(_set, granted)
            except RuntimeError:  # the loop was closed while one of its tasks waited
                self.release()

        waiter = self._enter(_Waiter(grant))
        if waiter is None:
            return
        try:
            await granted
        except asyncio.CancelledError:
            if not self._leave(waiter):
                self.release()  # it was granted meanwhile
            raise

    def release(self) -> None:
        """Release a slot to the first waiter."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            waiter = self._waiting.popleft()
        waiter.grant()

    def _enter(self, waiter: _Waiter) -> _Waiter | None:
        """Take a slot if one is free and return None; otherwise queue a waiter and return it."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return None
            self._waiting.append(waiter)
            return waiter

    def _leave(self, waiter: _Waiter) -> bool:
        """Stop waiting; False if the slot was already granted."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                return True
            return False


def _set(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_result(None)


class _Waiter:
    """A waiting thread or task; compared by identity."""

    def __init__(self, grant: Callable[[], None]) -> None:
        self.grant = grant
