"""A process-wide lock: compiling with TVM is not thread-safe.

The options of LLVM, the names that TE gives to operators and the modes of `torch.export` belong to the process; threads
that compile at the same time would overwrite each other's. A second thread waits. Running modules needs no lock.
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
