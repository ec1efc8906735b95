"""Processes forked on demand, their kernel limits, and messages with them.

A message is a length followed by MessagePack, with an extension type for numpy arrays. Nothing is unpickled, since a
sandbox has read untrusted data.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from compiler.support.processes import receive_exactly

DEFINE, WORK = b"D", b"W"
CLOCK = 6
"""Wall clock time limit of a job, as a multiple of its processor time limit."""
_KILL_FIRST = 800  # OOM score adjustment, out of 1000
_PAGE = resource.getpagesize()


def fork_on_demand(
    control: socket.socket,
    handle: Callable[[bytes, socket.socket], None],
    define: Callable[[socket.socket], None] | None = None,
) -> None:
    """Fork a process for each received socket, until the other end closes.

    A second socket comes with each, through which nothing is sent: a process ends when its other end is closed.

    Args:
        handle: runs in the process; it ends when this returns or raises.
        define: called in this process with the sockets that come with DEFINE.
    """
    gc.collect()
    gc.freeze()  # so that garbage collection in the children does not copy shared pages
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as sock, socket.socket(fileno=descriptors[1]) as lifeline:
            if message == DEFINE and define is not None:
                define(sock)
                gc.freeze()
            elif os.fork() == 0:
                try:
                    control.close()
                    _end_with(lifeline)
                    handle(message, sock)
                finally:
                    os._exit(0)


def _end_with(lifeline: socket.socket) -> None:
    """Let the kernel end this process, whatever it computes, when the other end of a socket is closed.

    SIGIO, whose default is to end a process, is raised on any activity on the socket. It may come after the data that
    caused it have been read, so this works only on a socket through which nothing is sent.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # already closed
        os._exit(0)


def allow(seconds: int) -> None:
    """Limit this process to a time from now, after which the kernel ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (total, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds * CLOCK)


def allow_waiting() -> None:
    """Let this process wait for a message without a time limit."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def lift_processor_limit() -> None:
    """Remove this process's limit on processor time."""
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def confine(memory: int) -> None:
    """Limit this process's memory beyond its shared pages, and suppress its output."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_KILL_FIRST))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # Rust panics would print a report per request


LENGTH_BYTES = 8
_ARRAY = 1
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def pack(message: object) -> bytearray:
    """Encode a message with a length prefix."""
    content = bytearray(LENGTH_BYTES)
    _ENCODER.encode_into(message, content, LENGTH_BYTES)
    content[:LENGTH_BYTES] = (len(content) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little")
    return content


def unpack(content: bytes | bytearray | memoryview) -> Any:
    """Decode a message without its length prefix."""
    return _DECODER.decode(content)


def send(sock: socket.socket, message: object) -> None:
    """Send over a blocking socket."""
    sock.sendall(pack(message))


def receive(sock: socket.socket) -> Any:
    """Receive from a blocking socket. Raises EOFError if the other end is closed."""
    try:
        return unpack(receive_exactly(sock, int.from_bytes(receive_exactly(sock, LENGTH_BYTES), "little")))
    except ConnectionError as error:
        raise EOFError from error


def _encoded(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent")
    head = _ENCODER.encode([str(value.dtype), value.shape])
    return msgspec.msgpack.Ext(_ARRAY, len(head).to_bytes(2, "little") + head + value.tobytes())


def _decoded(code: int, data: memoryview) -> Any:
    size = int.from_bytes(data[:2], "little")
    name, shape = msgspec.msgpack.decode(data[2 : 2 + size])
    dtype = _DTYPES[name] if name in _DTYPES else np.dtype(name)
    return np.frombuffer(data[2 + size :], dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_decoded)
