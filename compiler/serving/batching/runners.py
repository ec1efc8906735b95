"""`Runners`: the threads that run the modules of one model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from compiler.errors import ServiceUnavailableError

Result = TypeVar("Result")


class Runners:
    """Threads, as many as runs share the cores. The modules of a cascade, say, have them in common.

    They exist as long as one of those modules is started, and take what is submitted first come, first served.
    """

    def __init__(self, name: str) -> None:
        """`name`: the model's."""
        self._name = name
        self._members = self._count = self._started = 0
        self._pool: ThreadPoolExecutor | None = None

    @property
    def is_shared(self) -> bool:
        """Several modules take turns."""
        return self._members > 1

    def join(self, count: int) -> None:
        """A module of which so many runs share the cores takes part; before any of them starts."""
        self._members += 1
        self._count = max(self._count, count)

    def start(self) -> None:
        """One of the modules starts."""
        self._started += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix=f"serve-{self._name}")

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Call a function in one of the threads. Raises ServiceUnavailableError where no module is started."""
        if self._pool is None:
            raise ServiceUnavailableError(f"model {self._name!r} is not running")
        return self._pool.submit(function, *arguments)

    async def close(self) -> None:
        """One of the modules ends; the last one waits for what was submitted."""
        self._started -= 1
        if not self._started and self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
