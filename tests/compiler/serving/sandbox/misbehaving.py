"""Jobs that misbehave like third-party code on hostile data; run by the tests of the sandbox."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.errors import OptionError
from compiler.serving.limits import DEFAULT_LIMITS
from compiler.serving.sandbox.forker import serve
from compiler.serving.sandbox.process import receive, send


class PanicError(BaseException):
    """Not a subclass of Exception, like the panics of extensions in Rust."""


def _panic(_: None) -> None:
    raise PanicError("in Rust")


def _recurse(_: None) -> int:
    return _recurse(_)


def _refuse(_: None) -> None:
    raise OptionError("not this", "but that")


def _spin(_: None) -> None:
    while True:
        pass


def _echo(sock: socket.socket) -> None:
    while True:
        send(sock, receive(sock))


def _go_on(_: None) -> Callable[[socket.socket], None]:
    return _echo


def _marked(_: None, path: str) -> None:
    """Say which process this is, and sleep."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)


JOBS: dict[str, Callable[..., Any]] = {
    "add": lambda state, number: state + number,
    "double": lambda _, array: [array * 2, str(array.dtype)],
    "process": lambda _: os.getpid(),
    "panic": _panic,
    "recurse": _recurse,
    "refuse": _refuse,
    "limit": lambda _: DEFAULT_LIMITS.check("stop_bytes", 5000),
    "crash": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "exit": lambda _: sys.exit(1),
    "spin": _spin,
    "allocate": lambda _, size: len(bytearray(size)),
    "map": lambda _, size: np.ones(size, np.uint8).nbytes,
    "go on": _go_on,
    "mark": _marked,
}

if __name__ == "__main__":
    serve(JOBS, {"number": lambda number: number, "wrong": _refuse, "deadly": lambda: os.abort()})
