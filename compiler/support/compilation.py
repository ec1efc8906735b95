"""Process-wide state while TVM compiles.

- A lock: compiling with TVM is not thread-safe. The options of LLVM, the names that TE gives to operators and the modes
  of `torch.export` belong to the process; threads that compile at the same time would overwrite each other's. A second
  thread waits. Running modules needs no lock.
- Fewer collections of cyclic garbage: TVM's graphs are many objects and hardly any cycles.
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
    """Decorate `function` so that one thread at a time runs any of the functions decorated with it."""

    @wraps(function)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return alone


def _renew() -> None:
    """The thread that held the lock does not exist in a forked process, so it would never be released there."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)


# Of `gc.set_threshold`. With Python's own, collections took 6 % of the processor time of a network of 200 convolutions;
# its memory at most was the same.
_THRESHOLDS = (50_000, 20, 100)


_counting = threading.Lock()
_running = 0
_before = gc.get_threshold()


def collecting_rarely(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate `function` so that Python collects garbage more rarely while it runs, in whichever threads. What was set
    before holds again afterwards; where collections are off they stay off."""

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
