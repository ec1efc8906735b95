"""Process-wide state while TVM compiles.

- A lock: compiling with TVM is not thread-safe. LLVM options, the names that TE gives to operators and the modes of
`torch.export` are global to the process, so threads that compile at the same time would overwrite each other's. A
second thread waits. Running modules needs no lock.
- Less frequent garbage collection: TVM's graphs have many objects and hardly any cycles.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from compiler.support.interrupts import uninterrupted

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_lock = threading.RLock()


def one_at_a_time(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate `function` so that only one thread at a time runs any of the functions decorated with this."""

    @wraps(function)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return alone


def _renew() -> None:
    """Replace the lock in a forked process: the thread that held it does not exist there and could never release it."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)


# For `gc.set_threshold`. With Python's defaults, collections took 6 % of the processor time for a network of 200
# convolutions; the peak memory was the same.
_THRESHOLDS = (50_000, 20, 100)


_counting = threading.Lock()
_running = 0
_before = gc.get_threshold()


def collecting_rarely(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate `function` so that Python collects garbage less often while it runs, in any thread. Previous settings
    are restored afterwards; disabled collection stays disabled."""

    @wraps(function)
    def rarely(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        _enter()
        try:
            return function(*args, **kwargs)
        finally:
            _leave()

    return rarely


@uninterrupted
def _enter() -> None:
    global _before, _running
    with _counting:
        _running += 1
        if _running > 1:
            return
        _before = gc.get_threshold()
        if _before[0]:
            gc.set_threshold(*map(max, _before, _THRESHOLDS))


@uninterrupted
def _leave() -> None:
    global _running
    with _counting:
        _running -= 1
        if not _running:
            gc.set_threshold(*_before)
