"""`Application`: the server as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from compiler.errors import InputError, OptionError, TensorwrightError
from compiler.serving.app.authentication import ApiKeys, check_browser
from compiler.serving.app.failures import failure
from compiler.serving.app.http import Call, HttpError, Receive, Reply, Scope, Send, StreamReply
from compiler.serving.app.inflight import Flight, Inflight
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository

access_log = logging.getLogger("tensorwright.access")
_log = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")
_WINDOW = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take.

    Attributes:
        max_request_bytes: of a body, unpacked.
        body_seconds: until the whole body has to be here.
    """

    max_request_bytes: int = 64 << 20
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_request_bytes < 1 or not self.body_seconds > 0:
            raise OptionError("limits of requests must be above 0")


class Routes(Protocol):
    """Answers requests to some paths."""

    async def answer(self, call: Call) -> Reply | StreamReply | None:
        """The response; None if the path is not one of these routes. Raises this project's errors."""


class _ClientGoneError(Exception):
    """The client disconnected."""


class Application:
    """An ASGI application: keys, limits, errors, metrics and the access log around routes."""

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
        """Make one.

        Args:
            routes: asked in order.
            local_only: without keys, answer only what this machine asks for by its own name (`check_browser`).
        """
        self.repository = repository
        self._routes = tuple(routes)
        self._metrics = metrics
        self._keys = keys or ApiKeys()
        self._limits = limits or Limits()
        self._local_only = local_only and not len(self._keys)
        self._inflight = Inflight()

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
            await self.repository.start()
        except TensorwrightError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.repository.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        flight = self._inflight.begin(task, receive, loop.time() + self._limits.body_seconds)
        call = Call(scope["method"], scope["path"], dict(scope["headers"]), b"", time.monotonic())
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
            seconds = time.monotonic() - call.arrival
            self._metrics.observe_request(call.model, call.route, status, seconds)
            if access_log.isEnabledFor(logging.INFO):
                client = (scope.get("client") or ("-",))[0]
                access_log.info(
                    '%s "%s %s" %d %.3fms %s', client, call.method, _printable(call.path), status, 1000 * seconds,
                    call.model or "-",
                )  # fmt: skip

    async def _answered(self, call: Call, flight: Flight) -> Reply | StreamReply:
        try:
            self._keys.check(call.headers)
            if self._local_only:
                check_browser(call.headers)
            call.body = await self._body(call, flight)
            flight.until = None
            for routes in self._routes:
                reply = await routes.answer(call)
                if reply is not None:
                    return reply
            raise HttpError(404, f"there is nothing at {call.path}")
        except _ClientGoneError:
            raise
        except Exception as error:  # each becomes an answer
            reply = failure(error, call.path)
            # What was not read of the body would be taken for the next request.
            unread = flight.until is not None
            return Reply(reply.body, reply.status, (*reply.headers, _CLOSE)) if unread else reply

    async def _body(self, call: Call, flight: Flight) -> bytes:
        limit = self._limits.max_request_bytes
        announced = call.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        try:
            message = await flight.receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await self._rest(body, flight, limit)
            elif message["type"] == "http.disconnect":
                raise _ClientGoneError
        except asyncio.CancelledError:
            if not flight.expired:
                raise
            _uncancel(flight.task)
            raise HttpError(408, f"the request took more than {self._limits.body_seconds:g} s to arrive") from None
        if len(body) > limit:
            raise _too_large(limit)
        encoding = call.headers.get(b"content-encoding", b"identity").lower()
        return body if encoding == b"identity" else _unpacked(body, encoding, limit)

    async def _rest(self, body: bytes, flight: Flight, limit: int) -> bytes:
        parts, size, more = [body], len(body), True
        while more and size <= limit:
            message = await flight.receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the request is larger than {limit} bytes")


def _unpacked(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding not in _WINDOW:
        raise HttpError(415, "the request's content encoding is not supported", "use gzip, deflate or none")
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"the request cannot be decompressed: {error}") from error
    if len(content) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise InputError("the compressed request is truncated")
    return content


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


def _printable(path: str) -> str:
    """A path for a log of lines: nothing in it ends one."""
    return path.encode("unicode_escape").decode()[:512]
