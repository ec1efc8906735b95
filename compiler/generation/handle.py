"""Handle of a submitted sequence: its pieces as they are generated, its result, and its cancellation."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.generation.options import Generation
from compiler.generation.output import Piece

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True)
class Usage:
    """Tokens of a sequence.

    Attributes:
        prompt_tokens: number of tokens of its prompt.
        cached_tokens: number of prompt tokens reused from a sequence with the same prefix.
        generated_tokens: number of tokens in its result so far.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class SequenceHandle(Iterator[Piece], AsyncIterator[Piece]):
    """One submitted sequence. Iterate over its pieces with `for` or `async for`; one consumer at a time.

    All methods can be used from any thread and any event loop.
    """

    def __init__(self, prompt_tokens: int, cancel: Callable[[SequenceHandle], None]) -> None:
        self._condition = threading.Condition()
        self._ended = threading.Event()  # so that threads waiting only for the end are not woken by each piece
        self._pieces: deque[Piece] = deque()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._usage = Usage(prompt_tokens, 0, 0)
        self._result: Generation | None = None
        self._error: BaseException | None = None
        self._cancel = cancel

    @property
    def done(self) -> bool:
        """True if it has ended; there may still be unread pieces."""
        return self._result is not None or self._error is not None

    @property
    def usage(self) -> Usage:
        """Its tokens so far."""
        return self._usage

    def cancel(self) -> None:
        """End it after the current step, or at once if it has not begun. Its finish reason is "cancelled"."""
        if not self.done:
            self._cancel(self)

    def result(self, timeout: float | None = None) -> Generation:
        """Wait for the end and return the whole generation.

        Raises:
            TimeoutError: it has not ended within this many seconds.
            TensorwrightError: the error that ended it.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the sequence has not ended within {timeout} s")
        return self._outcome()

    async def finished(self) -> Generation:
        """Like `result`, for asyncio."""
        while not self.done:
            await self._change(lambda: self.done)
        return self._outcome()

    def __next__(self) -> Piece:
        with self._condition:
            self._condition.wait_for(lambda: self._pieces or self.done)
            if self._pieces:
                return self._pieces.popleft()
        self._outcome()
        raise StopIteration

    def __aiter__(self) -> SequenceHandle:
        return self

    async def __anext__(self) -> Piece:
        while True:
            with self._condition:
                if self._pieces:
                    return self._pieces.popleft()
                if self.done:
                    break
            await self._change(lambda: bool(self._pieces) or self.done)
        self._outcome()
        raise StopAsyncIteration

    def put(self, pieces: Sequence[Piece], usage: Usage) -> None:
        """Add new pieces (called by the scheduler)."""
        with self._condition:
            self._pieces.extend(pieces)
            self._usage = usage
            self._wake()

    def finish(self, outcome: Generation | BaseException) -> None:
        """End with a result or an error (called by the scheduler)."""
        with self._condition:
            if isinstance(outcome, Generation):
                self._result = outcome
            else:
                self._error = outcome
            self._ended.set()
            self._wake()

    def _outcome(self) -> Generation:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _wake(self) -> None:
        self._condition.notify_all()
        waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # its loop is closed, so nobody waits
                loop.call_soon_threadsafe(_set, future)

    async def _change(self, is_there: Callable[[], bool]) -> None:
        import asyncio  # loaded by callers that await; others need not wait for the import

        loop = asyncio.get_running_loop()
        with self._condition:
            if is_there():
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
