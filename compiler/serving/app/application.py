"""`Application`: answers requests; keys, limits, errors, metrics and the access log around routes."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Sequence
from typing import Protocol

from compiler.errors import InputError
from compiler.serving.app.asgi import Asgi
from compiler.serving.app.authentication import ApiKeys, check_browser
from compiler.serving.app.failures import failure
from compiler.serving.app.http import (
    CLOSE,
    Call,
    HttpError,
    Receive,
    Reply,
    Scope,
    Send,
    StreamReply,
)
from compiler.serving.app.lag import Lag
from compiler.serving.limits import Limits
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.sandbox.client import Sandbox

access_log = logging.getLogger("tensorwright.access")
_WINDOW = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


class Routes(Protocol):
    """Answers requests to some paths."""

    async def answer(self, call: Call) -> Reply | StreamReply | None:
        """The response; None if the path is not one of these routes. Raises this project's errors."""


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
        """Make one.

        Args:
            routes: tried in order; the first that knows the path answers.
            local_only: without keys, answer only what this machine asks for by its own name (`check_browser`).
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
        """Load the models. Raises what keeps one from being served."""
        await self.repository.start()
        if self.repository.reads_text:
            self._sandbox.start()

    async def close(self) -> None:
        """End what was started."""
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
                # zlib lets other threads run
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
        except BaseException as error:  # each becomes an answer; panics of extensions in Rust are no Exception
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
    """A path for the access log, without line breaks."""
    return path.encode("unicode_escape").decode()[:512]
