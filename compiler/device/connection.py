"""A session with a device server that ends when the device stops answering.

The engine's own socket waits for ever, in destructors too. It is found among the open files of this process and given
limits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from compiler.errors import DeviceError, OptionError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
# A host that is gone is found out by probes (Linux's tcp(7)): 5 s of silence, then one every 5 s; the third that stays
# unanswered ends the connection, however long the call may take.
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_NO_ANSWER = os.strerror(errno.EAGAIN)  # what a socket's time limit gives
_HINT = "hint: "


class Connection:
    """The engine's RPC session with a device server."""

    def __init__(self, address: str) -> None:
        """Connect to HOST:PORT.

        Raises:
            OptionError: the address is not one.
            DeviceError: nobody answers there.
        """
        host, separator, port = address.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise OptionError(f"{address!r} is no address", "write HOST:PORT, such as 192.168.0.7:9090")
        from tvm import rpc

        import schedules.engine  # noqa: F401  (first, so that the engine loads without torch)

        what, hint = f"no device server answers at {address}", "start tensorwright-server there"
        with _as_device_error(what, hint, CONNECT_SECONDS):
            peer = _resolve(host, int(port))
            earlier = _sockets_to(peer)
            with _closed_after(CONNECT_SECONDS, lambda: _sockets_to(peer) - earlier):
                self._session: Any = rpc.connect(*peer, session_timeout=0)
            (number,) = _sockets_to(peer) - earlier
            self._socket = socket.socket(fileno=os.dup(number))  # another name of the same connection
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def close(self) -> None:
        """End the session: the server then takes the next client."""
        self._session = None
        self._end()
        self._socket.close()

    def offers(self, function: str, *, what: str, hint: str) -> bool:
        """Whether the server has a function. Raises DeviceError, of `what` and `hint`, where no answer comes."""
        with _as_device_error(what, hint, self._limit(ANSWER_SECONDS), self._end):
            try:
                self._session.get_function(function)
            except AttributeError:
                return False
            return True

    def call(self, function: str, *arguments: Any, what: str, hint: str, seconds: float | None = None) -> Any:
        """Call a function of the server.

        Args:
            what, hint: of the error.
            seconds: how long the device may be silent; None: ANSWER_SECONDS.

        Raises:
            DeviceError: it failed there, or no answer came; then the session is at its end.
        """
        limit = self._limit(ANSWER_SECONDS if seconds is None else seconds)
        with _as_device_error(what, hint, limit, self._end):
            return self._session.get_function(function)(*arguments)

    def _limit(self, seconds: float) -> float:
        """Let the device be silent for so long; the same seconds."""
        time_limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time_limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time_limit)
        return seconds

    def _end(self) -> None:
        """A late answer would be taken for that of the next call."""
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)


def _resolve(host: str, port: int) -> tuple[str, int]:
    """The IPv4 address and port that a name stands for. Raises OSError."""
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    address, number = found[0][4][:2]
    return str(address), int(number)


def _sockets_to(peer: tuple[str, int]) -> set[int]:
    """The numbers of this process's open files that are connections to an address, or on their way to be."""
    found = set()
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # not connected, or closed by now
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as each:
                    if each.family == socket.AF_INET and each.getpeername() == peer:
                        found.add(number)
    return found


@contextlib.contextmanager
def _closed_after(seconds: float, sockets: Callable[[], set[int]]) -> Iterator[None]:
    """Shut the sockets down if the block takes longer. Raises TimeoutError then, in place of the block's error."""
    late = threading.Event()

    def close() -> None:
        late.set()
        for number in sockets():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as each:
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError(_NO_ANSWER) from error
        raise
    finally:
        timer.cancel()


@contextlib.contextmanager
def _as_device_error(what: str, hint: str, seconds: float, end: Callable[[], None] = lambda: None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises whatever class its C++ side names
        if _NO_ANSWER in str(error):
            end()
            raise DeviceError(f"{what}: no answer for {seconds:g} s", hint) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DeviceError(f"{what}: {_reason(lines)}", hint) from error


def _reason(lines: list[str]) -> str:
    """The device's own words out of the engine's error text: its last line, and the hint that may follow it."""
    words = [line for line in lines if "Error caught from RPC call" not in line]
    if len(words) > 1 and words[-1].startswith(_HINT):
        words = [f"{words[-2]}; {words[-1].removeprefix(_HINT)}"]
    return (words[-1] if words else "no reason given").removeprefix("InternalError: ")[:500]
