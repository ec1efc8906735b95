"""The process from which sandboxes are forked. It has no threads, and never reads client data itself.

It is started by `client.Forker` with a socket, over which each message is a byte and a socket: DEFINE builds
a state (a tokenizer, say) here, so that processes forked later have it; WORK forks one that runs jobs over the socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from compiler.errors import TensorwrightError
from compiler.serving.limits import LimitError
from compiler.serving.sandbox.process import allow, allow_waiting, confine, fork_on_demand, receive, send

_NICENESS = 5  # lower priority than the event loop and the models


Functions = Mapping[str, Callable[..., Any]]


def serve(jobs: Functions, builders: Functions) -> None:
    """Fork on demand until the server closes its end; the arguments are those passed by `client.Forker`.

    Args:
        jobs: functions of a state, or None, and arguments. If one returns a function, it continues with that on its
            socket, once the server knows that it has begun.
        builders: functions that build states.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended processes are not waited for
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    control = socket.socket(fileno=int(sys.argv[1]))
    seconds, memory = map(int, sys.argv[2:4])
    states: dict[str, Any] = {}

    def handle(message: bytes, sock: socket.socket) -> None:
        confine(memory)
        _run_jobs(sock, jobs, states, seconds)

    fork_on_demand(control, handle, lambda sock: _define(sock, builders, states))


def _define(sock: socket.socket, builders: Functions, states: dict[str, Any]) -> None:
    try:
        name, builder, *arguments = receive(sock)
        states.pop(name, None)
        if builder is not None:
            states[name] = builders[builder](*arguments)
        send(sock, ["done", None])
    except EOFError:
        return  # the server is gone
    except Exception as error:  # raised by a package that could not read the model's tokenizer
        send(sock, failure(error))


def _run_jobs(sock: socket.socket, jobs: Functions, states: dict[str, Any], seconds: int) -> None:
    """Run one job after another, until the server closes its end."""
    while True:
        try:
            job, state, *arguments = receive(sock)
        except EOFError:
            return
        allow(seconds)
        try:
            result = jobs[job](None if state is None else states[state], *arguments)
            answer = ["done", result if not callable(result) else None]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of Rust extensions are not Exceptions
            result, answer = None, failure(error)
        allow_waiting()
        send(sock, answer)
        if callable(result):  # an interactive job
            result(sock)
            return


def failure(error: BaseException) -> list[Any]:
    """Return the answer for an exception; exceptions from other packages mean that they could not read their
    input."""
    if isinstance(error, TensorwrightError):
        limit = error.limit if isinstance(error, LimitError) else None
        return ["failed", type(error).__name__, error.message, error.hint, limit]
    return ["failed", "InputError", f"it cannot be read: {type(error).__name__}: {error}", None, None]
