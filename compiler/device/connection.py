"""A session with a device server, encrypted if keys are given; it ends when the device stops responding.

The protocol is described in `cpp/visitor.h` and `cpp/device_session.h`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Iterator
from typing import Literal

from compiler.device.credentials import Credentials
from compiler.device.noise import SECOND_MESSAGE_BYTES, TAG_BYTES, Cipher, HandshakeError, Initiator
from compiler.errors import DeviceError, OptionError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
# TCP keepalive (Linux's tcp(7)) detects an unreachable host: after 5 s of silence it sends a probe every 5 s; the third
# unanswered probe ends the connection, however long the call may take.
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_FAREWELL_SECONDS = 2.0
_PLAIN, _NOISE, _ERROR = b"TWPLAIN2", b"TWNOISE2", b"TWERROR2"
_LONGEST_PLAIN = 65535 - TAG_BYTES
_LONGEST_ANSWER = 1 << 20
_LONGEST_REASON = 500
_HINT = "\n  hint: "  # prefix of the hint in an error on the device

Kind = Literal["modules", "kernels"]


class NoDeviceServerError(DeviceError):
    """The peer at the address is not a tensorwright-server with this protocol."""


class Connection:
    """A session. `description`: the server's description of itself (JSON)."""

    def __init__(self, address: str, credentials: Credentials | None = None, kind: Kind = "modules") -> None:
        """Connect to HOST:PORT.

        Args:
            credentials: keys to encrypt the connection and to authenticate both sides.
            kind: the purpose of the session: a module, or kernels to be timed by a tuner.

        Raises:
            OptionError: the address is not valid.
            NoDeviceServerError: another service listens there.
            DeviceError: no server answers there, or it rejects this client.
        """
        host, port = parse_address(address)
        self.address = address
        self._received = bytearray()
        self._raw = bytearray()
        self._ciphers: tuple[Cipher, Cipher] | None = None
        end = time.monotonic() + CONNECT_SECONDS
        with self._errors(f"no device server answers at {address}", "start tensorwright-server there", CONNECT_SECONDS):
            self._socket = socket.create_connection((host, port), CONNECT_SECONDS)
        try:
            _set_probes(self._socket)
            what, hint = f"{address} refused the connection", "see tensorwright push --help about keys"
            with self._errors(what, hint, CONNECT_SECONDS, closed=NoDeviceServerError):
                self._shake_hands(credentials, end)
                self.description = self._ask(kind, end)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """End the session, and wait until the server has ended it, too."""
        with contextlib.suppress(OSError), self._socket:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_FAREWELL_SECONDS)
            while self._socket.recv(1 << 16):
                pass

    def call(self, request: str, *, what: str, hint: str, seconds: float | None = None) -> str:
        """Send a request and return the response. Raises DeviceError if the request failed there, or timed out, which
        ends the session.

        Args:
            what, hint: for the error message.
            seconds: timeout; None: ANSWER_SECONDS.
        """
        limit = ANSWER_SECONDS if seconds is None else seconds
        with self._errors(what, hint, limit):
            return self._ask(request, time.monotonic() + limit)

    def send_data(self, data: memoryview, *, what: str, hint: str) -> None:
        """Send a data frame, which has no response. Raises DeviceError."""
        limit = ANSWER_SECONDS
        with self._errors(what, hint, limit):
            self._send_frame(data, time.monotonic() + limit)

    def answer(self, *, what: str, hint: str) -> str:
        """Receive a response. Raises DeviceError."""
        limit = ANSWER_SECONDS
        with self._errors(what, hint, limit):
            return self._answer(time.monotonic() + limit)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes without a frame. Raises OSError."""
        self._socket.settimeout(None)
        self._socket.sendall(self._sealed(data))

    def receive_bytes(self) -> bytes:
        """Read bytes without a frame; empty if the server has closed the session. Raises OSError or HandshakeError."""
        self._socket.settimeout(None)
        while not self._received:
            if not self._receive():
                return b""
        data = bytes(self._received)
        self._received.clear()
        return data

    def _shake_hands(self, credentials: Credentials | None, end: float) -> None:
        if credentials is None:
            self._send(_PLAIN, end)
            return
        handshake = Initiator(credentials.private_key, credentials.device_key, _NOISE)
        self._send(_NOISE + handshake.first_message(), end)
        preface = self._take(len(_NOISE), end)
        if preface == _ERROR:
            raise self._refused(end)
        if preface != _NOISE:
            raise NoDeviceServerError(f"{self.address} is not a tensorwright-server of this version")
        self._ciphers = handshake.read_second(self._take(SECOND_MESSAGE_BYTES, end))

    def _refused(self, end: float) -> DeviceError:
        """An (unauthenticated) error message from a server that ends the connection."""
        (length,) = struct.unpack("<H", self._take(2, end))
        return DeviceError(_printable(self._take(length, end)))

    def _ask(self, request: str, end: float) -> str:
        self._send_frame(memoryview(request.encode()), end)
        return self._answer(end)

    def _answer(self, end: float) -> str:
        head = self._take(4, end)
        if self._ciphers is None and head == _ERROR[:4]:
            self._take(len(_ERROR) - 4, end)
            raise self._refused(end)
        (length,) = struct.unpack("<I", head)
        if length > _LONGEST_ANSWER:
            raise NoDeviceServerError(f"{self.address} is not a tensorwright-server of this version")
        verdict, _, text = self._take(length, end).decode("utf-8", "replace").partition(" ")
        if verdict != "ok":
            raise DeviceError(_printable(text.encode()))
        return text

    def _send_frame(self, data: memoryview, end: float) -> None:
        self._send(struct.pack("<I", len(data)) + data, end)

    def _send(self, data: bytes, end: float) -> None:
        self._socket.settimeout(_left(end))
        self._socket.sendall(self._sealed(data))

    def _sealed(self, data: bytes) -> bytes:
        if self._ciphers is None:
            return data
        parts = []
        for start in range(0, len(data), _LONGEST_PLAIN):
            message = self._ciphers[0].encrypt(data[start : start + _LONGEST_PLAIN])
            parts += [struct.pack("<H", len(message)), message]
        return b"".join(parts)

    def _take(self, count: int, end: float) -> bytes:
        """Read a number of bytes from the server. Raises TimeoutError, EOFError or HandshakeError."""
        while len(self._received) < count:
            self._socket.settimeout(_left(end))
            if not self._receive():
                raise EOFError("the device closed the connection")
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _receive(self) -> bool:
        """Wait for more data; False at the end of the stream."""
        data = self._socket.recv(1 << 16)
        if self._ciphers is None:
            self._received += data
            return bool(data)
        self._raw += data
        while len(self._raw) >= 2:
            length = struct.unpack_from("<H", self._raw)[0]
            if len(self._raw) < 2 + length:
                break
            self._received += self._ciphers[1].decrypt(bytes(self._raw[2 : 2 + length]))
            del self._raw[: 2 + length]
        return bool(data)

    @contextlib.contextmanager
    def _errors(self, what: str, hint: str, seconds: float, closed: type[DeviceError] = DeviceError) -> Iterator[None]:
        """Translate errors into DeviceError, with `closed` for the end of the connection. A timeout ends the session,
        since a late response would be taken for that of the next request."""
        try:
            yield
        except TimeoutError as error:
            self._shut_down()
            raise DeviceError(f"{what}: no answer for {seconds:g} s", hint) from error
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            self._shut_down()
            raise closed(f"{what}: {error}", hint) from error
        except (OSError, HandshakeError) as error:
            self._shut_down()
            raise DeviceError(f"{what}: {error}", hint) from error
        except DeviceError as error:
            raise type(error)(f"{what}: {error.message}", hint) from error

    def _shut_down(self) -> None:
        if hasattr(self, "_socket"):
            with contextlib.suppress(OSError):  # it has already ended
                self._socket.shutdown(socket.SHUT_RDWR)


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "HOST:PORT". Raises OptionError for other texts."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"{address!r} is not an address", "use HOST:PORT, such as 192.168.0.7:9090")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """True if HOST:PORT is on this machine, where traffic cannot be intercepted on the network."""
    host, _ = parse_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _set_probes(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _left(end: float) -> float:
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _printable(text: bytes) -> str:
    """The device's message, escaped for a terminal."""
    said = text.decode("utf-8", "replace").replace(_HINT, "; ")
    words = " ".join(said.split())[:_LONGEST_REASON]
    return "".join(each if each.isprintable() else "?" for each in words) or "no reason given"
