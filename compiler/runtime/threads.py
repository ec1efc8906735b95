"""Number of threads per run, and number of concurrent runs.

Kernels run in the process's thread pool (`compiler.runtime.thread_pool`), whichever thread calls. The main thread can
always compute. Of the others, at most `processors // threads` do for each number of threads, in order of arrival, so
that a program with many calling threads runs no more kernels than there are processors.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from compiler.errors import OptionError
from compiler.runtime.thread_pool import set_threads
from targets.processors import usable_cores, usable_processors

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_THREADS = 4096
_THREADS_OF_A_PROCESSOR, _MIN_LIMIT = 4, 64
Result = TypeVar("Result")


class _ThreadState(threading.local):
    """State of the calling thread.

    Attributes:
        current: the number of threads that kernels use now; 0: not set yet, or the thread must not compute now.
        in_pool: the number that the pool has for this thread; more than 1: it has helper threads.
        computes: whether the thread may always compute: the main thread.
    """

    current = 0
    in_pool = 0

    def __init__(self) -> None:
        self.computes = threading.get_ident() == threading.main_thread().ident


_state = _ThreadState()


class Runners:
    """Threads for submitted runs, at most `processors // threads`; started on demand."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._started: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function on one of them, in the order of submission."""
        return self._executor().submit(function)

    def _executor(self) -> ThreadPoolExecutor:
        with _lock:
            if self._started is None:
                from concurrent.futures import ThreadPoolExecutor  # most programs never submit runs

                self._started = ThreadPoolExecutor(runs_at_once(self.threads), "tensorwright")
            return self._started

    def forget(self) -> None:
        """Forget the threads after a fork: they exist only in the parent."""
        self._started = None


_lock = threading.Lock()
_runners: WeakValueDictionary[int, Runners] = WeakValueDictionary()


def runs_at_once(threads: int) -> int:
    """Number of concurrent runs with that many threads, without the main thread's."""
    return max(1, usable_processors() // threads)


def runners_of(threads: int) -> Runners:
    """The runners with that number of threads; they end with the last reference to this object."""
    with _lock:
        runners = _runners.get(threads)
        if runners is None:
            runners = _runners[threads] = Runners(threads)
        return runners


class FairSemaphore:
    """Limits the number of threads that compute at a time; they enter in order of arrival.

    Not for the main thread: an interrupt between two lines would lose a slot.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait for a slot."""
        with self._lock:
            if self.free:
                self.free -= 1
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def release(self) -> None:
        """Release the slot to the first waiting thread."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self.free += 1


_semaphores: dict[int, FairSemaphore] = {}  # by number of threads


def _semaphore_of(threads: int) -> FairSemaphore:
    semaphore = _semaphores.get(threads)
    if semaphore is None:
        with _lock:
            semaphore = _semaphores.setdefault(threads, FairSemaphore(runs_at_once(threads)))
    return semaphore


def _after_fork() -> None:
    # Only the forking thread survives in the child, as its main thread; helpers are the parent's.
    global _semaphores, _lock
    _state.current = _state.in_pool = 0
    _state.computes = True
    _lock = threading.Lock()
    _semaphores = {}
    for each in list(_runners.values()):
        each.forget()


os.register_at_fork(after_in_child=_after_fork)


def check_threads(threads: int | None) -> None:
    """Validate a setting, for this machine or another. Raises OptionError for anything but None and 1 to 4096."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise OptionError(f"threads must be an integer from 1 to {MAX_THREADS}, not {threads!r}")


def threads_limit() -> int:
    """Maximum number of threads on this machine: 4 per logical processor, but at least 64."""
    return max(_MIN_LIMIT, _THREADS_OF_A_PROCESSOR * usable_processors())


def threads_here(asked: int | None, stored: int | None) -> int:
    """Number of threads that a run uses on this machine. Raises OptionError if `asked` is not a number of threads, or
    more than `threads_limit()`.

    Args:
        asked: the caller's setting; None to use the module's.
        stored: the module's own setting, limited to the logical processors; None: `default_threads()`.
    """
    check_threads(asked)
    if asked is not None:
        return _within_limit(asked, "threads")
    return default_threads() if stored is None else min(stored, usable_processors())


def default_threads() -> int:
    """TVM_NUM_THREADS or OMP_NUM_THREADS if set, otherwise the physical cores that this process may use. Raises
    OptionError if the variable exceeds `threads_limit()`."""
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "")
        if value.isascii() and value.isdigit() and int(value) >= 1:
            return _within_limit(int(value), variable)
    return usable_cores()


def _within_limit(threads: int, what: str) -> int:
    if threads > threads_limit():
        raise OptionError(
            f"{what} is {threads}; with {usable_processors()} usable processor"
            f"{'s' * (usable_processors() != 1)} this machine supports at most "
            f"{threads_limit()} threads",
            f"set {what} to {usable_processors()} or less",
        )
    return threads


def in_force(threads: int) -> bool:
    """True if kernels launched by the calling thread may run now, on these threads; the fast path of `run_with`."""
    return _state.current == threads


def run_with(threads: int, function: Callable[[], Result]) -> Result:
    """Call a function with its kernels on these threads; outside the main thread it may have to wait for a slot. Raises
    OptionError if the system cannot start that many threads."""
    state = _state
    if state.current == threads:
        return function()
    if state.computes:
        state.current = 0
        _set(threads)
        state.current = threads
        return function()
    return _with_slot(threads, function)


def _with_slot(threads: int, function: Callable[[], Result]) -> Result:
    semaphore, state = _semaphore_of(threads), _state
    semaphore.acquire()
    previous = state.current
    try:
        _set(threads)
        state.current = threads
        return function()
    finally:
        state.current = previous
        _set(max(previous, 1))  # returns helpers
        semaphore.release()


def _set(threads: int) -> None:
    """Tell the pool how many threads the calling thread uses."""
    state = _state
    if state.in_pool == threads:
        return
    started = set_threads()(threads)
    state.in_pool = 0 if started != threads else threads
    if started != threads:
        raise OptionError(
            f"{threads} threads could not be started: the system allows {started}",
            f"use fewer threads: module.threads = {started}",
        )
