"""`Connection`: HTTP/1.1 on one client connection, parsed by httptools (llhttp).

Requests of one connection are answered one after another. Connections have no timers: the server checks all of them
(`expire`) a few times per second.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections import deque
from collections.abc import Coroutine, Generator, Mapping
from contextlib import aclosing, suppress
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

from compiler.serving.app.http import CLOSE, Call, Handler, Header, HttpError, Reply, StreamReply
from compiler.serving.limits import HeldBytes, LimitError
from compiler.serving.workers.heads import SINGLE, Head, KnownHeads, check_head, path_of
from compiler.support.optional import optional_module

_httptools: Any = optional_module("httptools", "serve", "parses HTTP")
_HEADER_COST = 32  # bytes that each header counts in addition to its own
_JOINED_BYTES = 64 << 10  # maximum bytes of a body that are copied behind its headers
_SLICE = 16 << 10  # bytes that are parsed at once: a millisecond of small requests, which also bounds their number
_TURN_SECONDS = 0.002  # seconds of parsing, after which other connections get their turn
_LINGER_SECONDS = 2.0  # seconds for which a refused client's data is still read, so that it can read the answer
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOTHING = memoryview(b"")
_log = logging.getLogger(__name__)


class Owner(Protocol):
    """The server of connections."""

    handler: Handler
    connections: dict[Connection, None]  # least recently active first
    heads: KnownHeads
    held: HeldBytes
    header_seconds: float
    keep_alive_seconds: float
    max_connections: int
    date: bytes


class _Reading(Enum):
    """The part of a request that is read next."""

    IDLE = 0
    HEADERS = 1
    BODY = 2
    NOTHING = 3


class Connection(asyncio.Protocol):
    """A connection; created by the event loop's server."""

    def __init__(self, owner: Owner) -> None:
        self._owner, self._handler = owner, owner.handler
        self._loop = asyncio.get_running_loop()
        self._parser = _httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._client = "-"
        self._reading = _Reading.IDLE
        self._until: float | None = None
        self._stalled_until = 0.0
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = self._silent_bytes = 0
        self._twice: bytes | None = None
        self._call: Call | None = None
        self._body: bytes | bytearray = b""
        self._whole: bytes | None = None  # the data being parsed, if it may be a whole request
        self._unread = _NOTHING  # received, but not parsed yet
        self._heard = self._paused = self._scheduled = self._turn_taken = False
        self._continues = False
        self._pending: deque[tuple[Call | None, Reply | None, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._gone = self._ending = False

    # Of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the headers of the first request."""
        self._transport = transport
        self._owner.connections[self] = None
        if len(self._owner.connections) > self._owner.max_connections:
            self._make_room()
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else "-"
        self._until = self._loop.time() + self._owner.header_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the requests of a client that disconnected."""
        self._owner.connections.pop(self, None)
        self._gone, self._reading, self._until = True, _Reading.NOTHING, None
        self._forget(self._call)
        self._drop_pending()
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        if self._reading is _Reading.NOTHING:
            return
        if self._reading is _Reading.IDLE and self._task is None and not self._paused:
            known = self._owner.heads.find(data)
            if known is not None:
                self._received(*known)
                return
            self._whole = data
        self._turn_taken = False
        if self._paused or len(data) > _SLICE:
            self._unread = memoryview(bytes(self._unread) + data)
            self._read_on()
        else:
            self._parse(data)
            if self._pending:
                self._settle()
        self._whole = None

    def pause_writing(self) -> None:
        """Stop answering a client that reads more slowly than answers are written."""
        self._writable = self._loop.create_future()
        self._stalled_until = self._loop.time() + self._handler.limits.body_seconds

    def resume_writing(self) -> None:
        """Continue answering."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # Turns

    def _parse(self, data: bytes | memoryview) -> None:
        self._heard = False
        try:
            self._parser.feed_data(data)
        except _httptools.HttpParserUpgrade:
            self._reading = _Reading.NOTHING  # no other protocol is supported; the request is answered as usual
        except _httptools.HttpParserError:
            self._refuse(None, HttpError(400, "the request is not valid HTTP"))
        self._bound_silence(len(data))

    def _read_on(self) -> None:
        """Parse received data, up to a request that must wait, or until it is the turn of other connections."""
        until = self._loop.time() + _TURN_SECONDS
        while self._unread and not self._pending and self._reading is not _Reading.NOTHING:
            data, self._unread = self._unread[:_SLICE], self._unread[_SLICE:]
            self._parse(data)
            if self._loop.time() >= until:
                break
        self._settle()

    def _settle(self) -> None:
        """Receive more, or continue with received data in another iteration of the event loop."""
        if self._reading is _Reading.NOTHING:
            self._unread = _NOTHING
        if self._pending or self._unread:
            self._pause()
            if (self._task is None or not self._pending) and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._go_on)
            return
        self._resume()
        if self._task is None:
            self._continue()

    def _go_on(self) -> None:
        """Take a turn: answer one waiting request, or parse."""
        self._scheduled = self._turn_taken = False
        if self._gone:
            return
        self._next()
        if self._pending:
            self._settle()
        else:
            self._read_on()

    def _pause(self) -> None:
        """Stop receiving for now. While a request waits, the client's time limit for the next one is suspended."""
        if self._pending:
            self._until = None
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._paused or self._transport.is_closing():
            return
        self._paused = False
        self._transport.resume_reading()
        if self._until is not None:
            return
        now, owner = self._loop.time(), self._owner
        if self._reading is _Reading.HEADERS:
            self._until = now + owner.header_seconds
        elif self._reading is _Reading.BODY:
            self._until = now + self._handler.limits.body_seconds
        elif self._reading is _Reading.IDLE and self._task is None:
            self._until = now + owner.keep_alive_seconds

    # Of the parser

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._reading is _Reading.NOTHING:
            return
        self._reading, self._heard = _Reading.HEADERS, True
        self._url, self._headers, self._header_bytes, self._twice = b"", {}, 0, None
        self._until = self._loop.time() + self._owner.header_seconds

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; the last of several with the same name counts. Trailers after a body are ignored."""
        if self._reading is not _Reading.HEADERS:
            return
        name = name.lower()
        if name in self._headers and name in SINGLE:
            self._twice = name
        self._header_bytes += len(name) + len(value) + _HEADER_COST
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """All headers have been received; if they are refused, the request is not read further."""
        if self._reading is _Reading.NOTHING:
            return
        call = self._call_of(self._parser.get_method().decode("latin-1"), "", self._headers, b"")
        version = self._parser.get_http_version()
        call.chunked = version == "1.1"
        try:
            check_head(version, self._url, self._headers, self._header_bytes, self._twice, self._handler.limits)
            call.path = path_of(self._url)
            self._admit(call)
        except Exception as error:  # becomes an answer
            self._refuse(call, error)
            return
        self._call, self._body = call, b""
        self._reading, self._heard = _Reading.BODY, True
        self._until = self._loop.time() + self._handler.limits.body_seconds
        self._continues = b"expect" in self._headers and call.chunked
        if self._task is None:
            self._continue()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._reading is not _Reading.BODY or self._call is None:
            return
        self._heard = True
        try:
            self._call.hold(len(body))
        except LimitError as error:
            self._refuse(self._call, error)
            return
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body + body)
        limits = self._handler.limits
        if len(self._body) > limits.max_request_bytes:
            self._refuse(self._call, limits.too_large())

    def on_message_complete(self) -> None:
        """A whole request has been received."""
        call = self._call
        if self._reading is not _Reading.BODY or call is None:
            return
        call.body = self._body
        self._call, self._body, self._continues = None, b"", False
        self._reading, self._until = _Reading.IDLE, None
        parser = self._parser
        keeps = parser.should_keep_alive() and not parser.should_upgrade() and call.chunked
        if keeps and self._whole is not None:
            self._owner.heads.add(self._whole, call.method, call.path, call.headers, len(call.body))
        self._pending.append((call, None, keeps))
        if self._task is None and not self._turn_taken:
            self._next()

    def _received(self, head: Head, body: bytes) -> None:
        """A whole request has been received, with a known head."""
        call = self._call_of(head.method, head.path, head.headers, body)
        try:
            self._admit(call)
        except Exception as error:  # becomes an answer
            self._refuse(call, error)
            return
        self._until = None
        self._begin(call, True)

    def _call_of(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes) -> Call:
        return Call(method, path, headers, body, time.monotonic(), holding=self._owner.held)

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, or else the one that has waited longest for a body."""
        connections = self._owner.connections
        for in_body in (False, True):
            for connection in connections:
                if connection.waits and connection.in_body is in_body and connection is not self:
                    del connections[connection]
                    connection.abort()
                    return

    def _admit(self, call: Call) -> None:
        if len(self._owner.connections) > self._owner.max_connections:
            raise HttpError(503, "too many connections are open")
        self._handler.admit(call)

    # Of the server

    def shutdown(self) -> None:
        """Close after the accepted requests are answered."""
        self._ending = True
        if self._task is None and not self._pending and not self._unread and self._reading is not _Reading.BODY:
            self._transport.close()

    @property
    def waits(self) -> bool:
        """True while waiting for a request, with none being answered."""
        return self._task is None and not self._pending and self._reading is not _Reading.NOTHING

    @property
    def in_body(self) -> bool:
        """True while the body of a request is being received."""
        return self._reading is _Reading.BODY

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Drop requests that did not arrive in time, and clients that do not read; `now` is the event loop's clock."""
        if self._writable is not None and now >= self._stalled_until:
            self._transport.abort()
            return
        if self._until is None or now < self._until:
            return
        self._until = None
        if self._reading is _Reading.BODY:
            seconds = self._handler.limits.body_seconds
            self._refuse(self._call, HttpError(408, f"the request took more than {seconds:g} s to arrive"))
        else:
            self._transport.abort()

    # Answers

    def _refuse(self, call: Call | None, error: Exception) -> None:
        """Answer with an error, after the answers before it, and close; data after the first error is ignored."""
        if self._reading is _Reading.NOTHING:
            return
        refused_call = call or Call("GET", "", {}, b"", time.monotonic())
        self._forget(self._call)
        self._call, self._body, self._continues = None, b"", False
        self._reading, self._until = _Reading.NOTHING, None
        self._pending.append((call, self._handler.refused(refused_call, error), False))
        if self._task is None:
            self._next()

    def _forget(self, call: Call | None) -> None:
        if call is not None:
            call.release()

    def _drop_pending(self) -> None:
        for call, _, _ in self._pending:
            self._forget(call)
        self._pending.clear()

    def _bound_silence(self, received: int) -> None:
        """Bound the parser's memory for an incomplete header, and the overhead of a body's chunks."""
        if self._heard or self._reading is _Reading.IDLE:
            self._silent_bytes = 0
            return
        self._silent_bytes += received
        limits = self._handler.limits
        if self._silent_bytes > limits.header_bytes:
            message = f"the request's target and headers are larger than {limits.header_bytes} bytes"
            self._refuse(self._call, limits.passed("header_bytes", message))

    def _continue(self) -> None:
        """Ask for the body that a client withholds (100-continue)."""
        if self._continues:
            self._continues = False
            self._transport.write(_CONTINUE)

    def _next(self) -> None:
        """Answer the first waiting request, if none is being answered."""
        if not self._pending or self._task is not None or self._gone:
            return
        self._turn_taken = True
        call, reply, keeps = self._pending.popleft()
        if reply is None:
            assert call is not None
            self._begin(call, keeps)
            return
        self._write(reply, call is not None and call.method == "HEAD", keeps)
        if call is not None:
            self._handler.finished(call, reply.status, self._client)
        self._end()

    def _begin(self, call: Call, keeps: bool) -> None:
        connections = self._owner.connections
        connections.pop(self, None)
        connections[self] = None  # the last to be closed for others
        self._task = run_eagerly(self._answer(call, keeps and not self._ending), self._loop)

    async def _answer(self, call: Call, keeps: bool) -> None:
        status = 499
        try:
            reply = await self._handler.answer(call)
            keeps = keeps and not self._ending
            status = reply.status
            if isinstance(reply, Reply):
                self._write(reply, call.method == "HEAD", keeps)
                if self._writable is not None:
                    await self._writable
            else:
                keeps = keeps and call.chunked
                await self._stream(reply, call.chunked, keeps)
        except asyncio.CancelledError:
            if not self._gone:
                raise
        except Exception:  # in the middle of a stream, which stays incomplete
            _log.exception("an answer to %s was interrupted", call.path)
            keeps = False
            self._transport.abort()
        finally:
            self._task = None
            self._forget(call)
            self._handler.finished(call, status, self._client)
        self._answered(keeps)

    def _answered(self, keeps: bool) -> None:
        if self._gone:
            return
        if not keeps:
            self._drop_pending()
            self._end()
        elif self._pending or self._paused:
            self._settle()
        elif self._reading is _Reading.IDLE:
            self._until = self._loop.time() + self._owner.keep_alive_seconds
        else:
            self._continue()

    def _write(self, reply: Reply, bodiless: bool, keeps: bool) -> None:
        body = reply.body
        head = b"%b%d\r\ndate: %b\r\n\r\n" % (_head(reply.status, reply.headers, keeps), len(body), self._owner.date)
        if bodiless:
            self._transport.write(head)
        elif len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def _stream(self, reply: StreamReply, chunked: bool, keeps: bool) -> None:
        headers = (*reply.headers, *(((b"transfer-encoding", b"chunked"),) if chunked else ()))
        async with aclosing(reply.pieces) as pieces:  # type: ignore[type-var]
            self._transport.write(_fields(reply.status, headers, keeps) + b"date: %b\r\n\r\n" % self._owner.date)
            async for piece in pieces:
                if piece:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._writable is not None:
                    await self._writable
            if chunked:
                self._transport.write(b"0\r\n\r\n")

    def _end(self) -> None:
        """No more answers: close once the client has had time to read the last one."""
        mid_request = self._reading is _Reading.NOTHING
        self._reading = _Reading.NOTHING
        if mid_request and not self._ending and self._transport.can_write_eof():
            with suppress(OSError):  # the client is already gone, which the event loop reports
                self._transport.write_eof()
            self._until = self._loop.time() + _LINGER_SECONDS
        else:
            self._transport.close()


@lru_cache(maxsize=256)
def _fields(status: int, headers: tuple[Header, ...], keeps: bool) -> bytes:
    """Return the status line and headers, without the final empty line."""
    fields = headers if keeps or CLOSE in headers else (*headers, CLOSE)
    lines = [b"%b: %b\r\n" % each for each in fields]
    return b"HTTP/1.1 %d %b\r\n" % (status, http.HTTPStatus(status).phrase.encode()) + b"".join(lines)


@lru_cache(maxsize=256)
def _head(status: int, headers: tuple[Header, ...], keeps: bool) -> bytes:
    return _fields(status, headers, keeps) + b"content-length: "


Started = Coroutine[Any, Any, None]


def run_eagerly(coroutine: Started, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Start a coroutine return the task for the rest, None if it ended. Raises errors before the first wait."""
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return None
    return loop.create_task(_StartedCoroutine(coroutine, awaited))


class _StartedCoroutine(Started):
    """A started coroutine: the first step of its task is to await the pending awaitable."""

    def __init__(self, coroutine: Started, awaited: Any) -> None:
        self._coroutine = coroutine
        self._first: tuple[Any] | None = (awaited,)
        self.__name__ = self.__qualname__ = getattr(coroutine, "__name__", "answer")  # for the names of tasks in logs

    def send(self, value: Any) -> Any:
        first, self._first = self._first, None
        return self._coroutine.send(value) if first is None else first[0]

    def throw(self, *error: Any) -> Any:
        first, self._first = self._first, None
        if first is not None and asyncio.isfuture(first[0]):
            first[0].cancel()  # like a task that is cancelled while it waits
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("runs only as a task")
