"""`Sandbox`: runs jobs on client data in disposable processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
import subprocess
import sys
import weakref
from typing import Any

import numpy as np

from compiler import errors
from compiler.errors import InputError, ServiceUnavailableError, TensorwrightError
from compiler.serving.limits import Limits
from compiler.serving.sandbox.process import CLOCK, DEFINE, LENGTH_BYTES, WORK, pack, unpack

_USES = 256  # jobs per process, whose memory might grow
_LARGE = 1 << 20  # message bytes above which a process is not reused, because of its memory
_PIECE = 1 << 20
_LONGEST = 1 << 32  # bytes of a message
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class State:
    """State of jobs that is built before client data arrives, such as a tokenizer; compared by identity.

    It is built in a forker when a job first needs it, and released there when it is no longer referenced here.
    """

    def __init__(self, builder: str, *arguments: object) -> None:
        """`builder`: one of the builders of the program."""
        self.builder, self.arguments = builder, arguments


class Sandbox:
    """Runs each job in a separate process."""

    def __init__(self, limits: Limits, program: str) -> None:
        """Create a sandbox without starting processes yet.

        Args:
            limits: limits of the server; those named `sandbox...` are used.
            program: a module that calls `forker.serve`.
        """
        self._limits, self._program = limits, program
        self._places = asyncio.Semaphore(limits.sandboxes)
        self._forkers: dict[str, Forker] = {}

    async def run(self, job: str, state: State | None, *arguments: object, forker: str = "") -> Any:
        """Run a job of the program.

        Args:
            forker: name of a separate forker, for jobs that load large packages.

        Raises:
            InputError: the process ended by itself or by its limits.
            TensorwrightError: an error of the job.
        """
        async with self._places:
            found, process = await self._answered(job, state, arguments, forker)
            self._forker(forker).give_back(process)
            return found

    async def begin(self, job: str, state: State, *arguments: object, forker: str) -> Process:
        """Start an interactive job; returns its process. Raises as `run`."""
        async with self._places:
            _, process = await self._answered(job, state, arguments, forker)
            return process

    def start(self) -> None:
        """Start the forker in advance, so that the first job does not wait for it."""
        self._forker("").start()

    def close(self) -> None:
        """End all processes."""
        for each in self._forkers.values():
            each.close()
        self._forkers.clear()

    def _forker(self, name: str) -> Forker:
        if name not in self._forkers:
            self._forkers[name] = Forker(self._limits, self._program)
        return self._forkers[name]

    async def _answered(
        self, job: str, state: State | None, arguments: tuple[object, ...], forker: str
    ) -> tuple[Any, Process]:
        """Return a process's answer, and the process."""
        forking = self._forker(forker)
        name = None if state is None else await forking.define(state)
        message = pack([job, name, *arguments])
        process = forking.take()
        try:
            return _result(await process.ask(message), self._limits), process
        except EOFError:
            process.close()
            raise _ended(job, self._limits) from None
        except TensorwrightError:
            forking.give_back(process)
            raise
        except BaseException:
            process.close()  # which ends it
            raise


class Forker:
    """The process from which sandboxes are forked; restarted if it has ended."""

    def __init__(self, limits: Limits, program: str) -> None:
        self._limits, self._program = limits, program
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: list[Process] = []
        self._states = 0  # number of built states: a process has those built before its fork
        self._defining = asyncio.Lock()
        self._numbers = itertools.count()
        self._names: weakref.WeakKeyDictionary[State, str] = weakref.WeakKeyDictionary()
        self._forgotten: list[str] = []

    async def define(self, state: State) -> str:
        """Build a state in the forker, for processes forked from now on, and return its name there.

        Raises ServiceUnavailableError if it cannot be built, and the errors of its builder.
        """
        async with self._defining:
            self.start()
            while self._forgotten:
                await self._built(self._forgotten.pop(), None, ())
            if state not in self._names:
                name = str(next(self._numbers))
                await self._built(name, state.builder, state.arguments)
                self._names[state] = name
                weakref.finalize(state, self._forgotten.append, name)
            return self._names[state]

    def take(self) -> Process:
        """Return an idle process."""
        self.start()
        living = (each for each in iter(self._popped, None) if not each.ended)
        process = next(living, None) or self._forked(WORK)
        process.uses += 1
        return process

    def _popped(self) -> Process | None:
        return self._idle.pop() if self._idle else None

    def give_back(self, process: Process) -> None:
        """Return a process for reuse, unless it has grown, has run many jobs, or lacks states."""
        reusable = process.uses < _USES and not process.large and process.states == self._states
        if reusable and len(self._idle) < self._limits.sandboxes:
            self._idle.append(process)
        else:
            process.close()

    def start(self) -> None:
        """Start the process if it is not running."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._names.clear()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        limits = self._limits
        numbers = (theirs.fileno(), limits.sandbox_seconds, limits.sandbox_bytes)
        command = [sys.executable, "-m", self._program, *map(str, numbers)]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={**os.environ, **_NO_THREADS}
            )
        self._control = ours

    def close(self) -> None:
        """End the process and the idle sandboxes."""
        self._drop_idle()
        if self._control is not None:
            self._control.close()  # which ends it
        if self._process is not None:
            self._process.wait()
        self._control = self._process = None

    async def _built(self, name: str, builder: str | None, arguments: tuple[object, ...]) -> None:
        process = self._forked(DEFINE)
        self._states += 1
        self._drop_idle()
        try:
            _result(await process.ask(pack([name, builder, *arguments])), self._limits)
        except EOFError:
            self.close()  # it has ended, or is about to
            raise ServiceUnavailableError("the tokenizer cannot be read in a sandbox", "see the server's log") from None
        finally:
            process.close()

    def _forked(self, message: bytes) -> Process:
        assert self._control is not None
        return Process.forked(self._control, message, self._states)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Process:
    """A sandbox process; it ends when this is closed.

    Attributes:
        sock: the socket for messages, not blocking.
        states: states that were built before it was forked.
        uses: number of jobs that it has run.
        large: it has read or written a large message.
    """

    def __init__(self, sock: socket.socket, lifeline: socket.socket, states: int) -> None:
        self.sock, self._lifeline, self.states, self.uses, self.large = sock, lifeline, states, 0, False

    @classmethod
    def forked(cls, control: socket.socket, message: bytes, states: int = 0) -> Process:
        """Have a process forked by the one that calls `fork_on_demand` with the other end of `control`."""
        (sock, theirs), (lifeline, other) = socket.socketpair(), socket.socketpair()
        with theirs, other, contextlib.suppress(OSError):  # it has just ended, which also shows at `sock`
            socket.send_fds(control, [message], [theirs.fileno(), other.fileno()])
        sock.setblocking(False)
        return cls(sock, lifeline, states)

    def close(self) -> None:
        """End the process."""
        self.sock.close()
        self._lifeline.close()

    @property
    def ended(self) -> bool:
        """True if an idle process has ended."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    async def ask(self, message: bytes | bytearray) -> Any:
        """Send a message and receive the answer. Raises EOFError if the process ends first."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self.sock, message)
            length = int.from_bytes(await self._received(LENGTH_BYTES), "little")
            if length > _LONGEST:
                raise EOFError
            content = await self._received(length)
        except ConnectionError as error:
            raise EOFError from error
        self.large = self.large or max(len(message), length) > _LARGE
        return unpack(content)

    async def _received(self, count: int) -> memoryview:
        """Receive a number of bytes piece by piece, so that the event loop serves others during large messages."""
        loop = asyncio.get_running_loop()
        content = remaining = np.empty(count, np.uint8).data  # a bytearray would be filled with zeros, which takes long
        while remaining:
            got = await loop.sock_recv_into(self.sock, remaining[:_PIECE])
            if not got:
                raise EOFError
            remaining = remaining[got:]
        return content


def _result(answer: list[Any], limits: Limits) -> Any:
    if answer[0] == "done":
        return answer[1]
    _, kind, message, hint, limit = answer
    if limit is not None:
        raise limits.passed(limit, message)
    raise getattr(errors, kind, InputError)(message, hint)


def _ended(job: str, limits: Limits) -> InputError:
    seconds, memory = limits.sandbox_seconds, limits.sandbox_bytes >> 20
    return InputError(
        f"reading the {job} of the request takes more than {seconds} s of processor time, {CLOCK * seconds} s in all "
        f"or {memory} MiB, or crashes the package that does it",
        "the server's limits 'sandbox_seconds' and 'sandbox_bytes'",
    )
