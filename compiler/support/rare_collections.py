"""Fewer collections of cyclic garbage while compiling: TVM's graphs are many objects and hardly any cycles."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from compiler.support.interrupts import uninterrupted

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Of `gc.set_threshold`. With Python's own, collections took 6 % of the processor time of a network of 200 convolutions;
# its memory at most was the same.
_THRESHOLDS = (50_000, 20, 100)


_lock = threading.Lock()
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
    with _lock:
        _running += 1
        if _running > 1:
            return
        _before = gc.get_threshold()
        if _before[0]:
            gc.set_threshold(*map(max, _before, _THRESHOLDS))


@uninterrupted
def _leave() -> None:
    global _running
    with _lock:
        _running -= 1
        if not _running:
            gc.set_threshold(*_before)
