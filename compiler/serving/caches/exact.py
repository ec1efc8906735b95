"""`ExactCache`: equal inputs get the cached answer, and concurrent equal requests run once.

The cache can have a folder, which persists across processes and can be shared by several of them.

Each file holds an answer: a JSON header (tensors, serving model, time) and the arrays' bytes, checked by a digest.
Nothing in it is executed. Unreadable files are misses; if writing fails, the cache continues in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import ServingError, StorageError
from compiler.serving.caches.digests import request_digest
from compiler.serving.caches.memory import Answer, Clock, MemoryStore
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Request, Response, Timing
from compiler.serving.service import Service, Wrapper

_NAME = "exact"


@dataclass(frozen=True, kw_only=True)
class ExactCacheOptions:
    """Options of an exact cache.

    Attributes:
        max_bytes: maximum size of answers in memory.
        max_age: seconds after which an answer is computed again; None: never, since a module's answers do not change.
        folder: folder for answers on disk; None: only in memory.
        max_disk_bytes: maximum size of the files in that folder.
    """

    max_bytes: int = 256 << 20
    max_age: float | None = None
    folder: Path | None = None
    max_disk_bytes: int = 4 << 30


class ExactCache(Wrapper):
    """A cache by the digest of a request's inputs, the module and the requested outputs.

    Traced requests are always computed. Answers of variants less accurate than the request's level are not used, and
    answers that a cheaper variant gave because of overload are not cached.
    """

    def __init__(
        self,
        inner: Service,
        options: ExactCacheOptions | None = None,
        observer: Observer = NO_OBSERVER,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Raises StorageError if the folder cannot be used, OptionError for invalid limits."""
        super().__init__(inner)
        options = options if options is not None else ExactCacheOptions()
        self._observer = observer
        self._memory: MemoryStore[Answer] = MemoryStore(options.max_bytes, options.max_age, clock)
        self._disk = None
        if options.folder is not None:
            self._disk = DiskStore(Path(options.folder), options.max_disk_bytes, options.max_age)
        # One thread: files are read and written in order, and never in the event loop.
        self._files = ThreadPoolExecutor(1, "tensorwright-cache") if self._disk is not None else None
        self._flights: dict[tuple[str, object], _Flight] = {}
        self._writes: set[asyncio.Future[bool]] = set()

    async def infer(self, request: Request) -> Response:
        """Return the cached answer, the one being computed for an equal request, or a new one."""
        if request.traced:
            return await self.inner.infer(request)
        key = request_digest(self.identity, request.inputs, request.outputs)
        entry = await self._lookup(key, request)
        if entry is not None:
            self._observer.observe_cache(self.name, _NAME, 1, 1)
            return _response(entry)
        return await self._compute_once(key, request)

    async def close(self) -> None:
        """Close the inner service; files stay on disk."""
        await self.inner.close()
        await asyncio.gather(*self._writes, return_exceptions=True)
        if self._files is not None:
            self._files.shutdown()

    async def _lookup(self, key: str, request: Request) -> Answer | None:
        entry = self._memory.get(key)
        if entry is None and self._disk is not None:
            stored = await asyncio.get_running_loop().run_in_executor(self._files, self._disk.get, key)
            if stored is not None:
                entry, age = stored
                self._memory.put(key, entry, entry.nbytes, age)
        if entry is not None and entry.accuracy < request.level.min_accuracy:
            return None
        return entry

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
            # Refused because of another request's deadline or queue position: this one may have more time.
            return await self._compute(key, request)
        finally:
            flight.waiting -= 1
            if flight.task.done() or not flight.waiting:
                # Nobody waits any more: work for cancelled requests need not finish.
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
    """A request that is being computed, and the number of equal requests that wait for it."""

    task: asyncio.Future[Response]
    waiting: int = 0


def _retrieve(task: asyncio.Future[Response]) -> None:
    """Retrieve a failure that nobody waits for, so that asyncio does not report it as never retrieved."""
    if not task.cancelled():
        task.exception()


def _answer(response: Response) -> Answer:
    """Return the answer to cache: copies, since the receiver owns the response's arrays."""
    outputs = {name: np.array(array) for name, array in response.outputs.items()}
    return Answer(outputs, response.served_by, dict(response.notes))


def _response(answer: Answer) -> Response:
    outputs = {name: np.array(array) for name, array in answer.outputs.items()}
    return Response(outputs, answer.served_by, Timing(), _NAME, answer.notes)


def build(options: ExactCacheOptions, inner: Service, parts: Parts) -> Service:
    """Build the cache around `inner`."""
    return ExactCache(inner, options, parts.observer)


_MAGIC = b"twcache1"
_MAX_HEADER = 1 << 20
_SUFFIX = ".answer"
# After a failed write this many writes are skipped: a full disk must not cost each request a failed write.
_SKIPPED_WRITES = 64
_log = logging.getLogger(__name__)


class DiskStore:
    """Answers by key in a folder, bounded by bytes and by age. For one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int, max_age: float | None = None, clock: Clock = time.time) -> None:
        """Read the folder's contents. Raises StorageError if the folder cannot be created or read. `max_age`: seconds
        of `clock`, which must keep counting across restarts of the process."""
        self._folder, self._max_bytes, self._max_age, self._clock = folder, max_bytes, max_age, clock
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._to_skip = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(
                (each.stat().st_mtime, each.stem, each.stat().st_size) for each in folder.glob(f"*{_SUFFIX}")
            )
        except OSError as error:
            raise StorageError(f"the cache's folder {folder} cannot be used: {error}", "name another one") from error
        for _, key, size in files:
            self._sizes[key] = size
        self.nbytes = sum(self._sizes.values())

    def get(self, key: str) -> tuple[Answer, float] | None:
        """Return the answer and its age in seconds; None if there is no intact one that is recent enough."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            self._forget(key)
            return None
        except OSError as error:
            _log.warning("the cache's file %s cannot be read: %s", self._path(key), error)
            return None
        decoded = _decoded(content, key)
        if decoded is None:
            _log.warning("the cache's file %s is damaged and is removed", self._path(key))
            self.remove(key)
            return None
        answer, stored = decoded
        age = self._clock() - stored
        if self._max_age is not None and age > self._max_age:
            self.remove(key)
            return None
        return answer, max(age, 0.0)

    def put(self, key: str, answer: Answer) -> bool:
        """Write an answer atomically; False if it could not be written."""
        if self._to_skip:
            self._to_skip -= 1
            return False
        content = _encoded(key, answer, self._clock())
        if len(content) > self._max_bytes:
            return True
        try:
            self._write(key, content)
        except OSError as error:
            self._to_skip = _SKIPPED_WRITES
            _log.warning("the cache's folder %s cannot be written, so answers stay in memory: %s", self._folder, error)
            return False
        self._forget(key)
        self._sizes[key] = len(content)
        self.nbytes += len(content)
        while self.nbytes > self._max_bytes:
            self.remove(next(iter(self._sizes)))
        return True

    def remove(self, key: str) -> None:
        """Remove an answer, if present."""
        self._forget(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the cache's file %s cannot be removed: %s", self._path(key), error)

    def _forget(self, key: str) -> None:
        self.nbytes -= self._sizes.pop(key, 0)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _write(self, key: str, content: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, self._path(key))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _encoded(key: str, answer: Answer, now: float) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.outputs.items()}
    header = {
        "key": key,
        "stored": now,
        "served_by": answer.served_by,
        "notes": dict(answer.notes),
        "tensors": [[name, str(array.dtype), list(answer.outputs[name].shape)] for name, array in arrays.items()],
    }
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in arrays.values())])
    return b"".join([_MAGIC, hashlib.blake2b(body, digest_size=32).digest(), body])


def _decoded(content: bytes, key: str) -> tuple[Answer, float] | None:
    """Decode an answer and its time; None if it is damaged or has another key."""
    head = len(_MAGIC) + 32
    digest = hashlib.blake2b(memoryview(content)[head:], digest_size=32).digest()
    if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : head] != digest:
        return None
    try:
        size = int.from_bytes(content[head : head + 4], "little")
        if size > _MAX_HEADER:
            return None
        header: dict[str, Any] = json.loads(content[head + 4 : head + 4 + size])
        outputs, position = {}, head + 4 + size
        for name, dtype, shape in header["tensors"]:
            element = ELEMENT_TYPES[dtype].numpy
            count = math.prod(shape)
            outputs[name] = np.frombuffer(content, element, count, position).reshape(shape)
            position += count * element.itemsize
        if header["key"] != key or position != len(content):
            return None
        return Answer(outputs, str(header["served_by"]), header["notes"]), float(header["stored"])
    except (KeyError, ValueError, TypeError):
        return None
