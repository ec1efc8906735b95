"""A server that echoes requests, for tests of HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from compiler.errors import InputError
from compiler.serving.app.http import Call, Reply, StreamReply
from compiler.serving.limits import Limits
from compiler.serving.workers.http_server import HttpOptions, Server
from compiler.serving.workers.supervisor import listen

TYPE = (b"content-type", b"text/plain")


class Echo:
    """Answers with the method, path and body; counts finished requests."""

    limits = Limits(max_request_bytes=1 << 20)

    def __init__(self, limits: Limits = limits) -> None:
        self.limits = limits
        self.server: Server | None = None
        self.statuses: list[int] = []
        self.cancelled = threading.Event()
        self.asked = threading.Event()

    def admit(self, call: Call) -> None:
        if call.headers.get(b"x-refused"):
            raise InputError("refused")

    async def answer(self, call: Call) -> Reply | StreamReply:
        self.asked.set()
        if call.path == "/stream":
            return StreamReply(self._pieces(bytes(call.body)), (TYPE,))
        if call.path == "/forever":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if call.path == "/later":
            await asyncio.sleep(0.02)
        return Reply(b"%b %b %b" % (call.method.encode(), call.path.encode(), bytes(call.body)), headers=(TYPE,))

    async def _pieces(self, body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    def refused(self, call: Call, error: Exception) -> Reply:
        return Reply(str(error).encode(), getattr(error, "status", 400), (TYPE,))

    def finished(self, call: Call, status: int, client: str) -> None:
        self.statuses.append(status)


@contextmanager
def echoing(options: HttpOptions, limits: Limits = Echo.limits) -> Iterator[tuple[Echo, int]]:
    """An echo and its port."""
    sock, echo, ready = listen("127.0.0.1", 0), Echo(limits), threading.Event()
    made: dict[str, Server] = {}
    loop, failures = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    async def run() -> None:
        made["server"] = echo.server = Server(echo, options, ready.set)
        await made["server"].serve(sock)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield echo, sock.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(made["server"].stop)
        thread.join()
        loop.close()
        sock.close()
    assert failures == []


def connected(port: int) -> socket.socket:
    """A connection to a server of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def whole(client: socket.socket) -> bytes:
    """All data until the server closes the connection."""
    content = b""
    while part := client.recv(1 << 16):
        content += part
    return content


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
