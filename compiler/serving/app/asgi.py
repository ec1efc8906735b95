"""`Asgi`: the application on servers of ASGI, as uvicorn and Ray Serve are. The project's own server does without."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from compiler.errors import TensorwrightError
from compiler.serving.app.http import Call, HttpError, LifespanHandler, Receive, Reply, Scope, Send, StreamReply
from compiler.serving.app.inflight import Flight, Inflight


class _ClientGoneError(Exception):
    """The client disconnected."""


class Asgi:
    """An ASGI application around a handler of requests; loading models is its startup."""

    def __init__(self, handler: LifespanHandler) -> None:
        self._handler = handler
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
            self._handler.finished(call, status, (scope.get("client") or ("-",))[0])

    async def _answered(self, call: Call, flight: Flight) -> Reply | StreamReply:
        try:
            self._handler.admit(call)
            call.body = await self._body(flight)
        except _ClientGoneError:
            raise
        except Exception as error:  # becomes an answer
            return self._handler.refused(call, error)
        flight.until = None
        return await self._handler.answer(call)

    async def _body(self, flight: Flight) -> bytes:
        limits = self._handler.limits
        parts, size, more = [], 0, True
        try:
            while more:
                message = await flight.receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                parts.append(message.get("body", b""))
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
