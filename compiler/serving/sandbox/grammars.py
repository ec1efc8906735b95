"""`GrammarProcesses`: client grammars, each compiled in a process that forks another for each text."""

from __future__ import annotations

import asyncio
import math
import select
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from compiler.errors import InputError
from compiler.generation.grammar import Bits, Grammar, Matcher
from compiler.serving.limits import Limits
from compiler.serving.sandbox.client import Process, Sandbox, State
from compiler.serving.sandbox.process import CLOCK, WORK, pack, receive

_KEPT = 16  # compiled grammars per model
_FORKER = "grammars"  # a separate forker, since the package loads torch


class GrammarProcesses:
    """The grammars of a model; recently used ones stay compiled."""

    def __init__(self, state: State, vocabulary: int, stop_tokens: tuple[int, ...]) -> None:
        self._state, self._vocabulary, self._stop_tokens = state, vocabulary, stop_tokens
        self._compiled: OrderedDict[Grammar, asyncio.Future[Process]] = OrderedDict()

    async def matcher(self, grammar: Grammar, sandbox: Sandbox, limits: Limits) -> Matcher:
        """Create the matcher of one text. Raises OptionError if the grammar cannot be used, InputError as
        `Sandbox.run`."""
        first, process = await self._began(grammar, sandbox, limits)
        return Matcher(_Masks(process, first, limits.sandbox_seconds * CLOCK), self._vocabulary, self._stop_tokens)

    def close(self) -> None:
        """End the processes."""
        while self._compiled:
            self._drop(next(iter(self._compiled)))

    async def _began(self, grammar: Grammar, sandbox: Sandbox, limits: Limits) -> tuple[Any, Process]:
        """Fork a process for a text; return its first message and the process."""
        known = grammar in self._compiled
        compiled = await self._compiling(grammar, sandbox, limits)
        process = Process.forked(compiled.sock, WORK)
        try:
            return await process.ask(b""), process
        except (OSError, EOFError):
            process.close()
            self._drop(grammar)
            if known:  # its process has ended in the meantime
                return await self._began(grammar, sandbox, limits)
            raise InputError("the grammar cannot be followed") from None
        except BaseException:
            process.close()
            raise

    async def _compiling(self, grammar: Grammar, sandbox: Sandbox, limits: Limits) -> Process:
        """The process that has compiled a grammar."""
        if grammar not in self._compiled:
            begun = sandbox.begin(
                "grammar", self._state, grammar.kind, grammar.text, limits.sandbox_seconds, forker=_FORKER
            )
            self._compiled[grammar] = asyncio.ensure_future(begun)
            while len(self._compiled) > _KEPT:
                self._drop(next(iter(self._compiled)))
        self._compiled.move_to_end(grammar)
        compiled = self._compiled[grammar]
        try:
            return await asyncio.shield(compiled)
        except BaseException:
            if compiled.done():
                self._compiled.pop(grammar, None)
            raise

    def _drop(self, grammar: Grammar) -> None:
        compiled = self._compiled.pop(grammar, None)
        if compiled is not None:
            compiled.add_done_callback(_close)


def _close(compiled: asyncio.Future[Process]) -> None:
    if not compiled.cancelled() and compiled.exception() is None:
        compiled.result().close()


class _Masks:
    """Masks computed by a process that follows the text; used by the scheduler's thread."""

    def __init__(self, process: Process, first: Any, seconds: float) -> None:
        self._process, self._answer, self._seconds = process, first, seconds
        self._until = 0.0
        self._poll = select.poll()  # supports any number of descriptors
        self._poll.register(process.sock, select.POLLIN)
        process.sock.settimeout(seconds)

    def accept(self, token: int) -> None:
        """See `Masks`."""
        self._answer = None
        self._until = time.monotonic() + self._seconds
        try:
            self._process.sock.sendall(pack(int(token)))
        except OSError as error:
            raise _stopped() from error

    def wait(self, seconds: float) -> bool:
        """See `Masks`."""
        if self._answer is None:
            if not self._poll.poll(math.ceil(seconds * 1000)):
                if time.monotonic() > self._until:
                    raise _stopped()
                return False
            self._receive()
        return True

    def next(self) -> tuple[Bits | None, bool]:
        """See `Masks`."""
        if self._answer is None:
            self._receive()
        bits, completed = self._answer
        return None if bits is None else np.asarray(bits), completed

    def __del__(self) -> None:
        self._process.close()

    def _receive(self) -> None:
        try:
            self._answer = receive(self._process.sock)
        except (OSError, EOFError) as error:
            raise _stopped() from error


def _stopped() -> InputError:
    return InputError(
        "following the grammar takes too long, or crashes the package that does it", "simplify the grammar"
    )
