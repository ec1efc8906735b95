"""Runs a coroutine at once up to where it first waits: one that never waits needs no task.

Python 3.12 has eager tasks; this does the same for older versions. Before a coroutine first waits it has no current
task, so it must not use `asyncio.timeout` or a task group until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

Started = Coroutine[Any, Any, None]


def run_eagerly(coroutine: Started, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
    """Begin a coroutine. Returns the task of the rest; None where it ended. Raises what it raises before it waits."""
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return None
    return loop.create_task(_Begun(coroutine, awaited))


class _Begun(Started):
    """A coroutine that has begun: the first step of its task is to wait for what it waits for."""

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
            first[0].cancel()  # as a task does that is cancelled while it waits
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("runs as a task alone")
