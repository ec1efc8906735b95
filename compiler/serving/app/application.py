"""`Application`: answers requests with its routes, and handles keys, limits, errors, metrics and the access log.

`Asgi` runs the application on ASGI servers such as uvicorn and Ray Serve. Tensorwright's own server does not need it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from compiler.errors import InputError, TensorwrightError
from compiler.serving.app.authentication import ApiKeys, check_browser
from compiler.serving.app.http import (
    CLOSE,
    Call,
    HttpError,
    Lag,
    LifespanHandler,
    Receive,
    Reply,
    Scope,
    Send,
    StreamReply,
    failure,
)
from compiler.serving.limits import HeldBytes, Limits
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.sandbox.client import Sandbox

access_log = logging.getLogger("tensorwright.access")
_WINDOW = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


class Routes(Protocol):
    """Interface of a group of routes."""

    async def answer(self, call: Call) -> Reply | StreamReply | None:
        """Return the response; None if the path is not one of these routes. Raises Tensorwright's errors."""


class Application:
    """A `Handler` of requests, and an ASGI application."""

    def __init__(
        self,
        repository: Repository,
        routes: Sequence[Routes],
        metrics: Metrics,
        *,
        keys: ApiKeys | None = None,
        limits: Limits | None = None,
        local_only: bool = True,
    ) -> None:
        """Create an application.

        Args:
            routes: tried in order; the first that knows the path answers.
            local_only: without keys, answer only requests from this machine to its own name (`check_browser`).
        """
        self.repository = repository
        self.limits = limits or Limits()
        self._routes = tuple(routes)
        self.metrics = metrics
        self._keys = keys or ApiKeys()
        self._local_only = local_only and not len(self._keys)
        self._asgi = Asgi(self)
        self._sandbox = Sandbox(self.limits, "compiler.serving.app.jobs")
        self._lag = Lag()
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    async def start(self) -> None:
        """Load the models. Raises the error if one cannot be served."""
        await self.repository.start()
        if self.repository.reads_text:
            self._sandbox.start()

    async def close(self) -> None:
        """Close everything that was started."""
        await self.repository.close()
        self._sandbox.close()

    def admit(self, call: Call) -> None:
        """See `Handler`."""
        self._keys.check(call.headers)
        if self._local_only:
            check_browser(call.headers)
        announced = call.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.max_request_bytes:
            raise self.limits.too_large()

    async def answer(self, call: Call) -> Reply | StreamReply:
        """See `Handler`."""
        call.lag, call.limits, call.sandbox, call.parsing = self._lag, self.limits, self._sandbox, self._parsing
        try:
            encoding = call.headers.get(b"content-encoding")
            if encoding is not None:
                # zlib releases the GIL
                call.body = await asyncio.to_thread(_unpacked, call.body, encoding.lower(), self.limits)
            for routes in self._routes:
                reply = await routes.answer(call)
                if reply is not None:
                    if call.computed:
                        now = time.monotonic()
                        self._lag.add(now - call.computed, now)
                    return reply
            raise HttpError(404, f"there is nothing at {call.path}")
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # each becomes an answer; panics of Rust extensions are not Exceptions
            return failure(error, call.path)

    def refused(self, call: Call, error: Exception) -> Reply:
        """See `Handler`."""
        reply = failure(error, call.path)
        return Reply(reply.body, reply.status, (*reply.headers, CLOSE))

    def finished(self, call: Call, status: int, client: str) -> None:
        """See `Handler`."""
        seconds = time.monotonic() - call.arrival
        self.metrics.observe_request(call.model, call.route, status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                '%s "%s %s" %d %.3fms %s', client, call.method, _printable(call.path), status, 1000 * seconds,
                call.model or "-",
            )  # fmt: skip


def _unpacked(body: bytes | bytearray, encoding: bytes, limits: Limits) -> bytes | bytearray:
    if encoding == b"identity":
        return body
    if encoding not in _WINDOW:
        raise HttpError(415, "the request's content encoding is not supported", "use gzip, deflate or none")
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = unpacker.decompress(body, limits.max_request_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the request cannot be decompressed: {error}") from error
    if len(content) > limits.max_request_bytes:
        raise limits.too_large()
    if not unpacker.eof:
        raise InputError("the compressed request is truncated")
    if unpacker.unused_data:
        raise InputError("bytes follow the compressed request", "compress it as one member of gzip")
    return content


def _printable(path: str) -> str:
    """Return a path for the access log, without line breaks."""
    return path.encode("unicode_escape").decode()[:512]


class _ClientGoneError(Exception):
    """The client disconnected."""


class Asgi:
    """An ASGI application around a request handler; models are loaded at startup."""

    def __init__(self, handler: LifespanHandler) -> None:
        self._handler = handler
        self._inflight = Inflight()
        self._held = HeldBytes(handler.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._handler.start()
        except TensorwrightError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._handler.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        flight = self._inflight.begin(task, receive, loop.time() + self._handler.limits.body_seconds)
        headers = dict(scope["headers"])
        call = Call(scope["method"], scope["path"], headers, b"", time.monotonic(), holding=self._held)
        status = 499
        try:
            reply = await self._answered(call, flight)
            status = reply.status
            if isinstance(reply, Reply):
                await _send(reply, call, send)
            else:
                await _stream(reply, send)
        except _ClientGoneError:
            pass
        except asyncio.CancelledError:
            if not flight.gone:
                raise
            _uncancel(task)
        finally:
            self._inflight.end(flight)
            call.release()
            self._handler.finished(call, status, (scope.get("client") or ("-",))[0])

    async def _answered(self, call: Call, flight: Flight) -> Reply | StreamReply:
        try:
            self._handler.admit(call)
            call.body = await self._body(call, flight)
        except _ClientGoneError:
            raise
        except Exception as error:  # becomes an answer
            return self._handler.refused(call, error)
        flight.until = None
        return await self._handler.answer(call)

    async def _body(self, call: Call, flight: Flight) -> bytes:
        limits = self._handler.limits
        parts, size, more = [], 0, True
        try:
            while more:
                message = await flight.receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                parts.append(message.get("body", b""))
                call.hold(len(parts[-1]))
                size += len(parts[-1])
                if size > limits.max_request_bytes:
                    raise limits.too_large()
                more = message.get("more_body", False)
        except asyncio.CancelledError:
            if not flight.expired:
                raise
            _uncancel(flight.task)
            raise HttpError(408, f"the request took more than {limits.body_seconds:g} s to arrive") from None
        return b"".join(parts)


async def _send(reply: Reply, call: Call, send: Send) -> None:
    body = b"" if call.method == "HEAD" else reply.body
    headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(reply: StreamReply, send: Send) -> None:
    async with aclosing(reply.pieces) as pieces:  # type: ignore[type-var]
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _uncancel(task: asyncio.Task[Any]) -> None:
    if hasattr(task, "uncancel"):  # Python 3.11
        task.uncancel()


_PERIOD = 0.25  # seconds


@dataclass(eq=False)
class Flight:
    """One request.

    Attributes:
        until: time by which its body must be complete, in seconds of the loop's clock; None once it is.
        expired: its body did not arrive in time.
        gone: its client disconnected.
    """

    task: asyncio.Task[object]
    receive: Receive
    until: float | None
    expired: bool = False
    gone: bool = False
    watched: bool = True
    watcher: asyncio.Task[None] | None = None


class Inflight:
    """All requests in progress."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def begin(self, task: asyncio.Task[object], receive: Receive, until: float) -> Flight:
        """Add a request whose body must be complete by `until`."""
        flight = Flight(task, receive, until)
        self._flights.add(flight)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._look)
        return flight

    def end(self, flight: Flight) -> None:
        """Remove an answered request."""
        self._flights.discard(flight)
        if flight.watcher is not None:
            flight.watcher.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PERIOD, self._look) if self._flights else None
        now = loop.time()
        for flight in self._flights:
            if flight.until is not None:
                if now > flight.until and not flight.expired:
                    flight.expired = True
                    flight.task.cancel()
            elif flight.watched and flight.watcher is None:
                flight.watcher = loop.create_task(_watch(flight))


async def _watch(flight: Flight) -> None:
    """Cancel a request when its client disconnects."""
    while (await flight.receive())["type"] != "http.disconnect":
        pass
    flight.gone = True
    flight.task.cancel()
