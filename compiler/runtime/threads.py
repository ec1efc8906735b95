"""Controls the number of threads of a run, on top of TVM's thread pool, and the thread that it runs on.

TVM keeps one pool per calling thread, whose size is fixed when that thread first runs a parallel kernel. If every
caller had one, a program with many calling threads would have more threads than processors, all waiting for each other
by spinning. So only the main thread and the *runners* have pools: threads of this process, at most
`processors // threads` for each number of threads, which all modules share. Calls from other threads are queued for
them in order. Single-threaded runs need no pool and compute on the calling thread; outside the main thread, at most as
many at a time as there are processors. Runners end with the last module that has their number of threads.

The main thread's pool is made with the size asked for and restricted later when a module asks for less; when one asks
for more (or after a fork, whose child has the pool's memory without its threads), a runner computes for the main
thread too.

TVM would bind the pool's threads to the first cores of the machine, and those of every process and every calling
thread to the same ones; they are left to the system instead, unless the environment variable TVM_BIND_THREADS says 1.

Its threads wait for work by yielding the processor, 300,000 times by default, and nothing but work ends that early: a
process with more threads than processors would take many seconds to end. Unless TVM_THREAD_POOL_SPIN_COUNT says
otherwise, they go to sleep after a thousand, some 0.3 ms, which is longer than kernels of one run wait for each other.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from compiler.errors import InternalError, OptionError
from compiler.runtime.tvm_runtime import global_function, runtime_library
from targets.processors import usable_cores, usable_processors

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_THREADS = 4096
_THREADS_OF_A_PROCESSOR, _LEAST_LIMIT = 4, 64
_BIG_CORES = 1  # TVM's affinity mode for "no special wish"
Result = TypeVar("Result")


class _ThreadState(threading.local):
    """State of the calling thread.

    Attributes:
        current: the setting that kernels run with now; 0: none yet, or the thread may not compute now.
        pool: the pool's size; 0: no pool.
        forked: the pool is memory without threads.
        single: the thread is not a computing one, and TVM knows that it uses one thread.
        computes: the thread may compute at any time: the main thread, and runners.
    """

    pool = 0
    forked = False
    single = False

    def __init__(self) -> None:
        self.current = 0
        self.computes = threading.get_ident() == threading.main_thread().ident


_state = _ThreadState()
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")


class Runners:
    """Worker threads of this process, each with a pool of `threads` threads; started on demand."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.limit = max(1, usable_processors() // threads)
        self._started: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function on a runner, in the order of submission."""
        return self._pool().submit(self._computed, function)

    def _pool(self) -> ThreadPoolExecutor:
        with _lock:
            if self._started is None:
                from concurrent.futures import ThreadPoolExecutor  # most programs need no runner

                self._started = ThreadPoolExecutor(self.limit, "tensorwright", _become_runner)
            return self._started

    def _computed(self, function: Callable[[], Result]) -> Result:
        if not in_force(self.threads) and not _configure(self.threads):
            raise InternalError(f"TVM's pool of a new thread does not have {self.threads} threads")
        return function()

    def forget(self) -> None:
        """After a fork: the threads are those of the parent."""
        self._started = None


_lock = threading.Lock()
_runners: WeakValueDictionary[int, Runners] = WeakValueDictionary()


def runners_of(threads: int) -> Runners:
    """The runners with that number of threads; they end with the last reference to this object."""
    with _lock:
        found = _runners.get(threads)
        if found is None:
            found = _runners[threads] = Runners(threads)
        return found


def _become_runner() -> None:
    _state.computes = True


class Turns:
    """A fair semaphore: limits the number of threads that compute at a time, in order of arrival.

    Not for the main thread: an interrupt between two lines would lose a turn.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for a slot."""
        with self._lock:
            if self.free:
                self.free -= 1
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def give(self) -> None:
        """Release the slot to the first waiting thread."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self.free += 1


_turns = Turns(usable_processors())  # of runs of one thread, on threads that are neither the main one nor runners


def _after_fork() -> None:
    # Only the forking thread lives on in the child, as its main thread; its pool is memory without threads.
    global _turns, _lock
    _state.current = 0
    _state.computes = True
    _state.forked = _state.forked or _state.pool > 0
    _lock = threading.Lock()
    _turns = Turns(usable_processors())
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
    return max(_LEAST_LIMIT, _THREADS_OF_A_PROCESSOR * usable_processors())


def threads_here(asked: int | None, stored: int | None) -> int:
    """Number of threads that a run uses on this machine.

    Args:
        asked: what the caller wants, None to leave it to the module.
        stored: the module's own setting, which is bounded by the logical processors; None: `default_threads()`.

    Raises:
        OptionError: `asked` is not a number of threads, or more than `threads_limit()`.
    """
    check_threads(asked)
    if asked is not None:
        return _within_limit(asked, "threads")
    return default_threads() if stored is None else min(stored, usable_processors())


def default_threads() -> int:
    """TVM_NUM_THREADS or OMP_NUM_THREADS if set, else the physical cores that this process may use.

    Raises:
        OptionError: the variable says more than `threads_limit()`.
    """
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


@cache
def _set_max_concurrency() -> Any:
    """tvm::runtime::threading::SetMaxConcurrency(int): the one setting that needs no pool to be made first."""
    function = runtime_library()["_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"]
    function.argtypes = [ctypes.c_int]
    function.restype = None
    return function


def in_force(threads: int) -> bool:
    """True if kernels launched by the calling thread may run now, on these threads; the fast path of `run_with`."""
    return _state.current == threads


def run_with(threads: int, function: Callable[[], Result]) -> Result:
    """Call a function with kernels on these threads: from the calling thread where possible, else from a runner."""
    if _state.current == threads:
        return function()
    if _state.computes:
        if _configure(threads):
            return function()
    elif threads == 1:
        return _in_turn(function)
    return runners_of(threads).submit(function).result()


def _in_turn(function: Callable[[], Result]) -> Result:
    """Call a function whose kernels run inline; waits while as many threads do so as there are processors."""
    turns = _turns
    turns.take()
    state = _state
    try:
        if not state.single:
            _set_max_concurrency()(1)
            state.single = True
        state.current = 1
        return function()
    finally:
        state.current = 0
        turns.give()


def _configure(threads: int) -> bool:
    """Configure the calling thread; False if its pool cannot be used."""
    if threads == 1:
        # Kernels then run inline and no pool is touched.
        _set_max_concurrency()(1)
        _state.current = 1
        return True
    if _state.forked or (_state.pool and _state.pool < threads):
        return False
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    _set_max_concurrency()(threads)
    try:
        global_function("runtime.NumThreads")()  # makes the pool if there is none
    except Exception as error:  # TVM raises whatever class its C++ side names
        _set_max_concurrency()(1)
        raise OptionError(
            f"{threads} threads could not be started: {error}", "use fewer threads: module.threads = 2"
        ) from error
    global_function("runtime.config_threadpool")(_BIG_CORES, threads)
    _set_max_concurrency()(threads)  # the call above resets it
    used: int = global_function("runtime.NumThreads")()
    if affinity is not None:
        # With TVM_BIND_THREADS=1 the calling thread was bound too; its later children would inherit that.
        os.sched_setaffinity(0, affinity)
    _state.pool = max(_state.pool, used)
    # Fewer: other code created a smaller pool on this thread.
    _state.current = threads if used == threads else 0
    return used == threads
