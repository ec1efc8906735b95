"""`Slots`: a bounded number of places that threads and tasks of event loops wait for, in the order they came."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable


class Slots:
    """A counted resource; waiters are served first come, first served, threads and tasks alike."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, timeout: float | None = None) -> bool:
        """Take a place, waiting up to `timeout` seconds (None: until there is one); False where there was none."""
        granted = threading.Event()
        waiter = self._enter(_Waiter(granted.set))
        if waiter is None or granted.wait(timeout):
            return True
        return not self._leave(waiter)

    async def acquire_async(self) -> None:
        """The same for a task; a task that is cancelled while it waits leaves its place in the queue."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def grant() -> None:
            try:
                loop.call_soon_threadsafe(_set, granted)
            except RuntimeError:  # the loop was closed while a task of it waited
                self.release()

        waiter = self._enter(_Waiter(grant))
        if waiter is None:
            return
        try:
            await granted
        except asyncio.CancelledError:
            if not self._leave(waiter):
                self.release()  # it was granted meanwhile
            raise

    def release(self) -> None:
        """Give a place back: the first who waits gets it."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            waiter = self._waiting.popleft()
        waiter.grant()

    def _enter(self, waiter: _Waiter) -> _Waiter | None:
        """None where there is a place at once."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return None
            self._waiting.append(waiter)
            return waiter

    def _leave(self, waiter: _Waiter) -> bool:
        """Stop waiting; False where the place was granted already."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                return True
            return False


def _set(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_result(None)


class _Waiter:
    """One who waits; compared by identity."""

    def __init__(self, grant: Callable[[], None]) -> None:
        self.grant = grant
