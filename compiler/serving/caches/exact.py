"""`ExactCache`: equal inputs get the answer that was computed for them, and equal requests at once run once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.errors import ServingError
from compiler.serving.caches.digests import request_digest
from compiler.serving.caches.disk import DiskStore
from compiler.serving.caches.memory import Answer, Clock, MemoryStore
from compiler.serving.observer import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Request, Response, Timing
from compiler.serving.service import Service
from compiler.serving.wrapper import Wrapper

_NAME = "exact"


@dataclass(frozen=True, kw_only=True)
class ExactCacheOptions:
    """Options of an exact cache.

    Attributes:
        max_bytes: of the answers in memory.
        max_age: seconds after which an answer is computed again; None: never, since a module's answers do not change.
        folder: where answers are kept on disk as well; None: in memory alone.
        max_disk_bytes: of the files in that folder.
    """

    max_bytes: int = 256 << 20
    max_age: float | None = None
    folder: Path | None = None
    max_disk_bytes: int = 4 << 30


class ExactCache(Wrapper):
    """A cache by the digest of a request's inputs, the module and the wanted outputs.

    Traced requests are always computed. An answer of a variant that is less accurate than a request's level asks for
    is no answer to it, and one that a cheaper variant gave because of overload is not kept.
    """

    def __init__(
        self,
        inner: Service,
        options: ExactCacheOptions | None = None,
        observer: Observer = NO_OBSERVER,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Raises StorageError where the folder cannot be used, OptionError for limits that make no sense."""
        super().__init__(inner)
        options = options if options is not None else ExactCacheOptions()
        self._observer = observer
        self._memory: MemoryStore[Answer] = MemoryStore(options.max_bytes, options.max_age, clock)
        self._disk = None
        if options.folder is not None:
            self._disk = DiskStore(Path(options.folder), options.max_disk_bytes, options.max_age)
        # One thread: files are read and written in turn, and never in the event loop.
        self._files = ThreadPoolExecutor(1, "tensorwright-cache") if self._disk is not None else None
        self._flights: dict[tuple[str, object], _Flight] = {}
        self._writes: set[asyncio.Future[bool]] = set()

    async def infer(self, request: Request) -> Response:
        """The kept answer, the one that is being computed for an equal request, or a new one."""
        if request.traced:
            return await self.inner.infer(request)
        key = request_digest(self.identity, request.inputs, request.outputs)
        found = await self._lookup(key, request)
        if found is not None:
            self._observer.observe_cache(self.name, _NAME, 1, 1)
            return _response(found)
        return await self._compute_once(key, request)

    async def close(self) -> None:
        """Close the inner service; what is on disk stays."""
        await self.inner.close()
        await asyncio.gather(*self._writes, return_exceptions=True)
        if self._files is not None:
            self._files.shutdown()

    async def _lookup(self, key: str, request: Request) -> Answer | None:
        found = self._memory.get(key)
        if found is None and self._disk is not None:
            stored = await asyncio.get_running_loop().run_in_executor(self._files, self._disk.get, key)
            if stored is not None:
                found, age = stored
                self._memory.put(key, found, found.nbytes, age)
        if found is not None and found.accuracy < request.level.min_accuracy:
            return None
        return found

    async def _compute_once(self, key: str, request: Request) -> Response:
        level = (request.level.min_accuracy, request.level.max_cost)
        flight = self._flights.get((key, level))
        first = flight is None
        if flight is None:
            flight = _Flight(asyncio.ensure_future(self._compute(key, request)))
            self._flights[key, level] = flight
            flight.task.add_done_callback(_retrieve)
        self._observer.observe_cache(self.name, _NAME, 0 if first else 1, 1)
        flight.waiting += 1
        try:
            response = await asyncio.shield(flight.task)
        except ServingError:
            if first:
                raise
            # Refused for another request's deadline or place in the queue: this one may have more time.
            return await self._compute(key, request)
        finally:
            flight.waiting -= 1
            if flight.task.done() or not flight.waiting:
                # Nobody waits any more: what was begun for requests that were cancelled need not end.
                flight.task.cancel()
                if self._flights.get((key, level)) is flight:
                    del self._flights[key, level]
        return response if first else _response(_answer(response))._replace(cached=_NAME)

    async def _compute(self, key: str, request: Request) -> Response:
        response = await self.inner.infer(request)
        if not response.notes.get("degraded"):
            answer = _answer(response)
            self._memory.put(key, answer, answer.nbytes)
            if self._disk is not None:
                # Not awaited: the answer does not wait for the disk.
                writing = asyncio.get_running_loop().run_in_executor(self._files, self._disk.put, key, answer)
                self._writes.add(writing)
                writing.add_done_callback(self._written)
        return response

    def _written(self, writing: asyncio.Future[bool]) -> None:
        self._writes.discard(writing)
        if writing.cancelled() or writing.exception() is not None or not writing.result():
            self._observer.observe_cache_failure(self.name, _NAME)


@dataclass
class _Flight:
    """A request that is being computed, and how many equal ones wait for it."""

    task: asyncio.Future[Response]
    waiting: int = 0


def _retrieve(task: asyncio.Future[Response]) -> None:
    """Look at a failure that nobody waits for any more, so that asyncio does not report it as forgotten."""
    if not task.cancelled():
        task.exception()


def _answer(response: Response) -> Answer:
    """Answer to keep: copies, as the receiver owns the response's arrays."""
    outputs = {name: np.array(array) for name, array in response.outputs.items()}
    return Answer(outputs, response.served_by, dict(response.notes))


def _response(answer: Answer) -> Response:
    outputs = {name: np.array(array) for name, array in answer.outputs.items()}
    return Response(outputs, answer.served_by, Timing(), _NAME, answer.notes)


def build(options: ExactCacheOptions, inner: Service, parts: Parts) -> Service:
    """The service that `options` describe around `inner`."""
    return ExactCache(inner, options, parts.observer)
