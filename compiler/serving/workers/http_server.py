"""`Server`: accepts HTTP connections, limits their resources, and drains them at shutdown."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from socket import AF_UNIX, socket

from compiler.errors import OptionError
from compiler.serving.app.http import Handler
from compiler.serving.limits import HeldBytes
from compiler.serving.workers.connection import Connection
from compiler.serving.workers.distributor import handed
from compiler.serving.workers.heads import KnownHeads

_BACKLOG = 2048
_AT_ONCE = 64  # connections accepted in one iteration of the event loop
_OTHER_DESCRIPTORS = 128  # for files, sandboxes, and connections that are being closed
_PERIOD = 0.25  # seconds between checks for overdue data
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the HTTP server.

    Attributes:
        header_seconds: time limit for the headers of a request, from the connection or its first byte.
        keep_alive_seconds: time that a connection may stay idle between requests.
        drain_seconds: time for requests to finish at shutdown.
        max_connections: maximum concurrent connections, further limited by file descriptors. Beyond that, the
            connection that has been idle longest is closed; if none is idle, the new one is answered with 503.
        certificate, private_key: PEM files; with them the server only accepts TLS.
        private_key_password_file: file with the password of an encrypted private key.
        client_ca: PEM file; clients need a certificate signed by one of its CAs.
    """

    header_seconds: float = 10.0
    keep_alive_seconds: float = 60.0
    drain_seconds: float = 30.0
    max_connections: int = 1000
    certificate: Path | None = None
    private_key: Path | None = None
    private_key_password_file: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if self.certificate is None and (self.private_key or self.client_ca):
            raise OptionError("TLS needs a certificate", "give --tls-certificate")


class Server:
    """Serves a request handler until `stop`; the `Owner` of its connections."""

    def __init__(self, handler: Handler, options: HttpOptions, started: Callable[[], None] = lambda: None) -> None:
        """Create a server. Raises OptionError if a certificate or key cannot be read, or does not fit. `started`:
        called when connections are accepted."""
        self.handler = handler
        self.connections: dict[Connection, None] = {}  # least recently active first
        self.heads = KnownHeads()
        self.held = HeldBytes(handler.limits)
        self.header_seconds = options.header_seconds
        self.keep_alive_seconds = options.keep_alive_seconds
        self.max_connections = _possible_connections(options.max_connections)
        self.date = _date()
        self._drain_seconds = options.drain_seconds
        self._tls = _tls(options)
        self._started = started
        self._opening: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def serve(self, source: socket) -> None:
        """Serve until `stop`, and end once requests are answered or the drain time is over. `source`: a bound socket to
        accept connections from, or a Unix socket over which a `Distributor` sends them."""
        loop = asyncio.get_running_loop()
        close = await (self._receiving(source) if source.family == AF_UNIX else self._accepting(source))
        looking = loop.create_task(self._look())
        self._started()
        await self._stopping.wait()
        close()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in tuple(self.connections):
            connection.shutdown()
        await self._drained()
        looking.cancel()

    def stop(self) -> None:
        """Stop accepting connections, and end once requests are answered."""
        self._stopping.set()

    async def _accepting(self, source: socket) -> Callable[[], None]:
        """Accept connections; return a function that stops it."""
        timeout = None if self._tls is None else self.header_seconds
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), sock=source, ssl=self._tls, backlog=_AT_ONCE, ssl_handshake_timeout=timeout
        )
        source.listen(_BACKLOG)  # asyncio accepts as many connections per iteration of the event loop as its backlog
        return server.close

    async def _receiving(self, source: socket) -> Callable[[], None]:
        """Receive connections from a distributor; return a function that stops it after the sent ones are received."""
        loop = asyncio.get_running_loop()

        def take() -> None:
            try:
                while (connection := handed(source)) is not None:
                    connection.setblocking(False)
                    task = loop.create_task(self._open(connection))
                    self._opening.add(task)
                    task.add_done_callback(self._opening.discard)
            except EOFError:  # no more are sent
                loop.remove_reader(source)

        def end() -> None:
            take()
            loop.remove_reader(source)

        loop.add_reader(source, take)
        return end

    async def _open(self, connection: socket) -> None:
        timeout = None if self._tls is None else self.header_seconds
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self), connection, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError as error:  # in a handshake: ssl.SSLError is one
            _log.info("a connection was not opened: %s", error)
            connection.close()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PERIOD)
            now, self.date = loop.time(), _date()
            for connection in tuple(self.connections):
                connection.expire(now)

    async def _drained(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_seconds
        while self.connections and loop.time() < until:
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.abort()
        while self.connections:
            await asyncio.sleep(0)


def _possible_connections(requested: int) -> int:
    """Return the wanted number of connections, or as many as the process has file descriptors for.

    Without free descriptors, new connections would be reset.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return requested if most == resource.RLIM_INFINITY else max(1, min(requested, most - _OTHER_DESCRIPTORS))


def _date() -> bytes:
    return formatdate(usegmt=True).encode()


def _tls(options: HttpOptions) -> ssl.SSLContext | None:
    if options.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        password = _password(options.private_key_password_file)
        context.load_cert_chain(options.certificate, options.private_key, password or "")
        if options.client_ca is not None:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise OptionError(
            f"the certificate {options.certificate} cannot be served: {error}",
            "give PEM files that belong together, and the password of an encrypted key",
        ) from error
    return context


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the password file {path} cannot be read: {error}") from error
