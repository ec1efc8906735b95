"""`Distributor`: accepts the connections of a server with several workers, and assigns them round-robin.

Workers that accept from one socket do not share the load: the first one awake takes all pending connections.
Connections are passed as file descriptors over a Unix socket for each worker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque

_AT_ONCE = 64  # connections accepted in one iteration of the event loop
_PAUSE = 0.1  # seconds, if no file descriptors are left
_log = logging.getLogger(__name__)


def handing_pair() -> tuple[socket.socket, socket.socket]:
    """Create the two ends over which a worker receives connections: the distributor's and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def handed(sock: socket.socket) -> socket.socket | None:
    """Receive the next connection of a worker; None if there is none now.

    Raises EOFError when the distributor is gone.
    """
    try:
        content, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
    except BlockingIOError:
        return None
    if not content:
        raise EOFError
    return socket.socket(fileno=descriptors[0])


class Distributor:
    """Assigns connections to workers; without a worker, they wait in the system's backlog."""

    def __init__(self, listening: socket.socket, backlog: int) -> None:
        """Create a distributor for a bound socket, in a running event loop."""
        listening.setblocking(False)
        listening.listen(backlog)
        self._listening = listening
        self._workers: deque[socket.socket] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, worker: socket.socket) -> None:
        """Add a ready worker, by its end of `handing_pair`."""
        self._workers.append(worker)
        self._resume()

    def remove(self, worker: socket.socket) -> None:
        """Remove a worker."""
        if worker in self._workers:
            self._workers.remove(worker)
            if not self._workers:
                self._loop.remove_reader(self._listening)

    def close(self) -> None:
        """Accept no more."""
        self._workers.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listening)

    def _resume(self) -> None:
        if self._workers:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("connections cannot be accepted: %s", error)
                self._loop.remove_reader(self._listening)
                self._timer = self._loop.call_later(_PAUSE, self._resume)
                return
            with connection:
                self._deal(connection)

    def _deal(self, connection: socket.socket) -> None:
        for _ in range(len(self._workers)):
            worker = self._workers[0]
            self._workers.rotate(-1)
            try:
                socket.send_fds(worker, [b"c"], [connection.fileno()])
            except OSError:  # it just died, or accepts none now
                continue
            return
        _log.warning("a connection was dropped: no worker takes it")
