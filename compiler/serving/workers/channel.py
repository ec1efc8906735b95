"""Messages between supervisor and worker: lines of JSON over a socket pair, requests and replies matched by number."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from compiler import errors
from compiler.errors import ServiceUnavailableError, ServingError, TensorwrightError

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
_LIMIT = 1 << 20


class Channel:
    """One end: asks questions, and answers those of the other end with a handler."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader, self._writer, self._handler = reader, writer, handler
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, question: Mapping[str, object]) -> Any:
        """Ask, and wait for the answer.

        Raises the error that the other end answered, ServiceUnavailableError if it is gone.
        """
        if self._closed:
            raise ServiceUnavailableError("the other process is gone")
        self._next += 1
        number = self._next
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"ask": number, **question})
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def serve(self) -> None:
        """Read until the other end closes."""
        try:
            while line := await self._reader.readline():
                self._receive(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # the other process died, possibly in the middle of a line
        finally:
            self._closed = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ServiceUnavailableError("the other process is gone"))

    def close(self) -> None:
        """Close this end."""
        self._closed = True
        self._writer.close()

    def _receive(self, message: Mapping[str, Any]) -> None:
        if "ask" in message:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._waiting.get(message["answer"])
        if future is not None and not future.done():
            if message["error"] is None:
                future.set_result(message["result"])
            else:
                future.set_exception(as_error(message["error"]))

    async def _answer(self, message: Mapping[str, object]) -> None:
        result = failure = None
        try:
            result = await self._handler(message)
        except TensorwrightError as error:
            failure = described(error)
        self._send({"answer": message["ask"], "result": result, "error": failure})

    def _send(self, message: Mapping[str, object]) -> None:
        if not self._closed:
            self._writer.write(json.dumps(message).encode() + b"\n")


def described(error: TensorwrightError) -> dict[str, Any]:
    """Describe an error as JSON."""
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint}


def as_error(content: Mapping[str, Any]) -> TensorwrightError:
    """Create the described error; a ServingError if its class needs more than a message."""
    kind = getattr(errors, content["class"], ServingError)
    try:
        error = kind(content["message"], content["hint"])
    except TypeError:
        error = ServingError(content["message"], content["hint"])
    assert isinstance(error, TensorwrightError)
    return error


async def open_channel(sock: object, handler: Handler) -> Channel:
    """Open a channel over a connected socket."""
    reader, writer = await asyncio.open_connection(sock=sock, limit=_LIMIT)
    return Channel(reader, writer, handler)
