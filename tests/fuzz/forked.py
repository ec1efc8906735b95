"""Calls a function in a forked process: a crash or hang there costs only its result."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Ending:
    """End of a call: a value, an exception, the death of its process (`reason`), or the time limit."""

    kind: Literal["returned", "raised", "died", "too long"]
    value: Any = None
    reason: str = ""


def call_forked(function: Callable[[], Any], seconds: float | None = None) -> Any:
    """The result of `function` (pickled); None if the call fails."""
    return ending_of(function, seconds).value


def ending_of(function: Callable[[], Any], seconds: float | None = None) -> Ending:
    """Call `function` in a child process for at most `seconds`.

    The child has only this thread, so `function` must not wait for others.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(function, reading, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        in_time = bool(select.select([stream], [], [], seconds)[0])
        if not in_time:
            os.kill(child, signal.SIGKILL)
        answer = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time:
        return Ending("too long", reason=f"{seconds:g} s")
    return pickle.loads(answer) if code == 0 else Ending("died", reason=f"exit code {code}")


def _answer(function: Callable[[], Any], reading: int, writing: int) -> None:
    """In the child: write the ending and exit, without crash reports and without the parent's exit handlers."""
    try:
        faulthandler.disable()
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            ending = Ending("returned", function())
        except BaseException as error:
            ending = Ending("raised", reason=f"{type(error).__name__}: {error}")
        content = pickle.dumps(ending)
        with os.fdopen(writing, "wb") as stream:
            stream.write(content)
        os._exit(0)
    except BaseException:
        os._exit(1)
