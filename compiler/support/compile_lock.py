"""TVM below compiles for one thread of a process at a time.

The options of LLVM, the names that TE gives to operators and the modes of `torch.export` belong to the process; two
threads that compile take them from each other. Whoever comes second waits. Running modules needs none of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_lock = threading.RLock()


def one_at_a_time(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function`, that one thread of the process runs at a time, together with all others decorated so."""

    @wraps(function)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return alone


def _renew() -> None:
    """A thread that held the lock does not exist in a forked process, and never gives it back there."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
