"""Communicating processes: children end with their parent, however it ends; exact reads from sockets."""

from __future__ import annotations

import ctypes
import os
import signal
import socket

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(parent: int) -> None:
    """Make the kernel kill this process when the thread in process `parent` that started it ends.

    This works only on Linux; elsewhere a child ends when it has finished its work.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes. Raises EOFError if the peer closes the connection first, and OSError."""
    content = bytearray()
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise EOFError(f"the connection was closed after {len(content)} of {count} bytes")
        content += part
    return bytes(content)
