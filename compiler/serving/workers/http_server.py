"""uvicorn, with bounds on what a connection takes before it asks for anything."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import OptionError
from compiler.support.optional import optional_module

uvicorn: Any = optional_module("uvicorn", "serve", "speaks HTTP")
_PURPOSE = "parses HTTP"
_httptools: Any = optional_module("httptools", "serve", _PURPOSE)
_HttpToolsProtocol: Any = optional_module("uvicorn.protocols.http.httptools_impl", "serve", _PURPOSE).HttpToolsProtocol
_MAX_HEADER_BYTES = 64 << 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How HTTP is spoken.

    Attributes:
        header_seconds: until the headers of a request have to be here, from the connection or its first byte.
        keep_alive_seconds: how long a connection may stay idle between requests.
        drain_seconds: how long requests have to end at shutdown.
        max_connections: at once; more are answered 503.
        certificate, private_key: PEM files; with them the server speaks TLS alone.
        private_key_password_file: of an encrypted private key.
        client_ca: PEM file; clients need a certificate signed by one of these.
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


class Server(uvicorn.Server):
    """A uvicorn server whose signals are handled by whoever runs it, and that says when it answers."""

    def __init__(self, app: Any, options: HttpOptions, started: Callable[[], None] = lambda: None) -> None:
        super().__init__(_config(app, options))
        self._started = started

    def capture_signals(self) -> AbstractContextManager[None]:
        """None are captured: `stop` ends the server."""
        return nullcontext()

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._started()

    def stop(self) -> None:
        """Take no more connections, and end once requests are answered."""
        self.should_exit = True


def _config(app: Any, options: HttpOptions) -> Any:
    protocol = type("Protocol", (GuardedProtocol,), {"header_seconds": options.header_seconds})
    tls: dict[str, Any] = {}
    if options.certificate is not None:
        tls = {
            "ssl_certfile": str(options.certificate),
            "ssl_keyfile": None if options.private_key is None else str(options.private_key),
            "ssl_keyfile_password": _password(options.private_key_password_file),
        }
        if options.client_ca is not None:
            tls |= {"ssl_ca_certs": str(options.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=options.keep_alive_seconds,
        timeout_graceful_shutdown=options.drain_seconds,
        limit_concurrency=options.max_connections,
        backlog=2048,
        **tls,
    )


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the password file {path} cannot be read: {error}") from error


class GuardedProtocol(_HttpToolsProtocol):
    """A connection that has to send whole headers in time, and no more than a bound of them."""

    header_seconds = 10.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the headers of the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._wait_for_headers()

    def on_headers_complete(self) -> None:
        """All headers are here."""
        self._stop_waiting()
        self._in_headers = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bound what arrives before headers are whole."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._stop_waiting()
                self.transport.abort()

    def _wait_for_headers(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.abort()
