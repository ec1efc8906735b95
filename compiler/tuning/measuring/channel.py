"""A worker process and the pipe to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from compiler.errors import UserError
from compiler.support.interrupts import uninterrupted

_NICE_END_SECONDS = 2.0
_CHECK_SECONDS = 1.0
_CHANNEL = "TENSORWRIGHT_TUNING_CHANNEL"


class WorkerDiedError(UserError):
    """A worker process ended during a request; `signal` is the signal that ended it, if any."""


class WorkerTimeoutError(UserError):
    """A worker did not answer in time and was killed."""


class Worker:
    """A process of `python -m module` that answers requests one at a time; started on first use.

    Its time limits do not use the wall clock, so that they do not depend on how busy the machine is: a request is
    overdue if its process has used this many seconds of processor time, or has been idle for that long (it hangs, or
    waits for something that hangs: a device that does not answer). `starts`: number of times that it was started.
    """

    def __init__(
        self, module: str, setup: Any, environment: Mapping[str, str] | None = None, *, threads: int = 1
    ) -> None:
        """`threads`: number of threads that compute in the process; limits of processor time are multiplied by it."""
        self._module, self._setup, self._threads = module, setup, threads
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._folder: str | None = None
        self.starts = 0
        self._spent = 0.0
        self._watch = _Watch(0.0)

    @property
    def processor_seconds(self) -> float:
        """Processor time of the worker's processes, including ended ones and their child processes."""
        return self._spent + _processor_seconds(self.pid)

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        return self._process.pid if self._process is not None else None

    @property
    def connection(self) -> Connection[Any, Any]:
        """The parent's end of the pipe; starts the process if necessary."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        return self._pipe

    @uninterrupted
    def _start(self) -> None:
        ours, theirs = Pipe()
        self._folder = tempfile.mkdtemp(prefix="tensorwright-")
        channel = {_CHANNEL: str(theirs.fileno()), "TMPDIR": self._folder}  # killed processes leave files
        environment = {**os.environ, **self._environment, **channel}
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("TENSORWRIGHT_DEBUG") else subprocess.DEVNULL,
            start_new_session=True,  # its child processes (a linker, a server's children) end with it
        )
        theirs.close()
        self._pipe = ours
        self.starts += 1
        ours.send(self._setup)

    def send(self, request: object) -> None:
        """Send a request. Raises WorkerDiedError."""
        try:
            connection = self.connection
            self._watch = _Watch(self.processor_seconds)
            connection.send(request)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self._died() from error

    def overdue(self, limit: float) -> str:
        """The limit of `limit` seconds exceeded by the latest request, as text; "" if none."""
        return self._watch.exceeded(self.processor_seconds, limit, self._threads)

    def receive(self, limit: float) -> Any:
        """The answer to the oldest request. Raises WorkerDiedError or WorkerTimeoutError, with the process ended."""
        pipe = self.connection
        try:
            while not pipe.poll(min(limit, _CHECK_SECONDS)):
                if exceeded := self.overdue(limit):
                    self.kill()
                    raise WorkerTimeoutError(f"no answer within {exceeded}")
            return pipe.recv()
        except (EOFError, ConnectionResetError, OSError) as error:
            raise self._died() from error

    def ask(self, request: object, limit: float) -> Any:
        """Send a request and wait for the answer."""
        self.send(request)
        return self.receive(limit)

    def _died(self) -> WorkerDiedError:
        process = self._process
        code = None
        if process is not None:
            try:
                code = process.wait(1.0)
            except subprocess.TimeoutExpired:
                code = None
        self.kill()
        if code is not None and code < 0:
            return WorkerDiedError(f"ended by {signal.Signals(-code).name}")
        return WorkerDiedError(f"ended with exit code {code}")

    @uninterrupted
    def kill(self) -> None:
        """End the process and all its child processes now; the next request starts a new one."""
        self._spent += _processor_seconds(self.pid)
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def close(self) -> None:
        """Let the process end by itself (its pipe closes), and wait for it."""
        process, pipe = self._process, self._pipe
        if pipe is not None:
            pipe.close()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_NICE_END_SECONDS)
            self._pipe = None
            self.kill()


def _processor_seconds(pid: int | None) -> float:
    import psutil

    if pid is None:
        return 0.0
    try:
        process = psutil.Process(pid)
        total = float(sum(process.cpu_times()[:4]))
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return 0.0
    for child in children:  # ended ones are included in their parent's times
        with contextlib.suppress(psutil.NoSuchProcess):
            total += float(sum(child.cpu_times()[:4]))
    return total


def serve(make_handler: Callable[[Any], Callable[[Any], Any]]) -> None:
    """The worker's side: `make_handler(setup)` returns the function that answers requests; ends with the pipe."""
    pipe: Connection[Any, Any] = Connection(int(os.environ[_CHANNEL]))
    handle = make_handler(pipe.recv())
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            if not pipe.poll(5.0):
                continue
            request = pipe.recv()
        except (EOFError, OSError):
            return
        answer = handle(request)
        if answer is not None:
            pipe.send(answer)


def first_done(limits: Mapping[Worker, float]) -> list[Worker]:
    """Workers that have an answer, have died, or exceed their limits; waits for the first."""
    from multiprocessing.connection import wait

    connections = {id(worker.connection): worker for worker in limits}
    while True:
        ready = wait([worker.connection for worker in limits], min(_CHECK_SECONDS, *limits.values()))
        done = [connections[id(each)] for each in ready]
        done = done or [worker for worker, limit in limits.items() if worker.overdue(limit)]
        if done:
            return done


class _Watch:
    """Processor time that a worker has used since its request."""

    def __init__(self, used: float) -> None:
        self._first = self._last = used
        self._changed = time.monotonic()

    def exceeded(self, used: float, limit: float, threads: int) -> str:
        now = time.monotonic()
        if used != self._last:
            self._last, self._changed = used, now
        if used - self._first > limit * threads:
            return f"{limit * threads:g} s of processor time"
        if now - self._changed > limit:
            return f"{limit:g} s, in which it did not use the processor"
        return ""
