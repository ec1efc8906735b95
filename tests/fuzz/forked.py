"""Call a function in a forked process: one that dies there costs its result alone."""

from __future__ import annotations

import faulthandler
import os
import pickle
from collections.abc import Callable
from typing import Any


def call_forked(function: Callable[[], Any]) -> Any:
    """What `function` returns (to be pickled); None where it raises, or its process dies.

    The child has this thread alone, so `function` must not wait for another one.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(function, reading, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(answer) if status == 0 else None


def _answer(function: Callable[[], Any], reading: int, writing: int) -> None:
    """The child: write the answer and end, without a report of a crash and without the parent's exit handlers."""
    try:
        faulthandler.disable()
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        with os.fdopen(writing, "wb") as stream:
            stream.write(pickle.dumps(function()))
        os._exit(0)
    except BaseException:
        os._exit(1)
