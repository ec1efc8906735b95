"""Runs cases in processes that may crash or hang: that is the case's outcome, and a new process takes over."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from tests.fuzz.outcome import Outcome

Case = Callable[[Any, int], Outcome]
"""Called as case(context, seed) in a worker; a module-level function."""

MEMORY_BYTES = 8 << 30
SECONDS = 60.0
_START_SECONDS = 120.0
_CLOCK = 5
"""The time of a case by the clock, as a multiple of its processor time: other programs may be busy."""


def _serve(connection: Connection, case: Case, context: Any, memory_bytes: int) -> None:
    """Loop of a worker: receives seeds and sends outcomes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(None)  # ready: imports are done
    while (seed := connection.recv()) is not None:
        connection.send(case(context, seed))


class _Worker:
    """One process and its current case."""

    def __init__(self, case: Case, context: Any, memory_bytes: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, case, context, memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        self.seed: int | None = None
        self._limit(_START_SECONDS)

    def give(self, seed: int | None, seconds: float) -> None:
        self.seed = seed
        self._limit(seconds)
        with contextlib.suppress(BrokenPipeError):  # it died after its last outcome: the next receive reports it
            self.connection.send(seed)

    def _limit(self, seconds: float) -> None:
        """Limit the CPU time from now on, in seconds."""
        self._seconds, self._until, self._used = seconds, time.monotonic() + _CLOCK * seconds, self._processor_time()

    @property
    def hangs(self) -> bool:
        """True if its case has taken too long."""
        return time.monotonic() > self._until or self._processor_time() > self._used + self._seconds

    def _processor_time(self) -> float:
        """CPU seconds of the process and its children."""
        try:
            own = psutil.Process(self.process.pid)
            return sum(sum(each.cpu_times()[:4]) for each in (own, *own.children(recursive=True)))
        except psutil.NoSuchProcess:
            return 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_cases(
    case: Case,
    context: Any,
    seeds: Iterable[int],
    *,
    workers: int = 2,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Outcome]:
    """Run a case for every seed; yield outcomes as they arrive.

    Args:
        context: passed to every case; must be picklable.
        seconds: CPU time after which a case counts as hanging and its process is killed; its wall-clock limit is five
            times that.
        memory_bytes: limit of a worker's address space.
    """
    waiting = iter(seeds)
    pool = [_Worker(case, context, memory_bytes) for _ in range(workers)]
    try:
        while pool:
            ready = wait([worker.connection for worker in pool], timeout=0.5)
            for worker in list(pool):
                if worker.connection in ready:
                    outcome, alive = _receive(worker)
                elif worker.hangs:
                    outcome, alive = Outcome("hang", "?", f"no answer in {seconds:g} s of processor time"), False
                else:
                    continue
                if outcome is not None:
                    yield _with_seed(outcome, worker.seed)
                if not alive:
                    worker.end()
                    pool.remove(worker)
                seed = next(waiting, None)
                if seed is None:
                    if alive:
                        worker.give(None, seconds)
                        pool.remove(worker)
                elif alive:
                    worker.give(seed, seconds)
                else:
                    waiting = _chain(seed, waiting)
                    pool.append(_Worker(case, context, memory_bytes))
    finally:
        for worker in pool:
            worker.end()


def _receive(worker: _Worker) -> tuple[Outcome | None, bool]:
    """A worker's message: an outcome (None: it is ready), and True if the worker is alive."""
    try:
        return worker.connection.recv(), True
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        if worker.seed is None:
            raise RuntimeError(f"a worker could not start: {name}") from None
        return Outcome("crash", "?", name), False


def _with_seed(outcome: Outcome, seed: int | None) -> Outcome:
    return Outcome(outcome.kind, outcome.label, outcome.detail, -1 if seed is None else seed)


def _chain(first: int, rest: Iterator[int]) -> Iterator[int]:
    yield first
    yield from rest
