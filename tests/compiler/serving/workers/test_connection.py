"""HTTP on sockets, with a handler that echoes: what clients may send, in which pieces, and what they get."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from compiler.errors import InputError
from compiler.serving.app.http import Call, Limits, Reply, StreamReply
from compiler.serving.workers.http_server import HttpOptions, Server
from compiler.serving.workers.supervisor import listen

TYPE = (b"content-type", b"text/plain")


class Echo:
    """Answers the method, path and body; counts what was finished."""

    limits = Limits(max_request_bytes=1 << 20)

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.cancelled = threading.Event()
        self.asked = threading.Event()

    def admit(self, call: Call) -> None:
        if call.headers.get(b"x-refused"):
            raise InputError("refused")

    async def answer(self, call: Call) -> Reply | StreamReply:
        self.asked.set()
        if call.path == "/stream":
            return StreamReply(self._pieces(call.body), (TYPE,))
        if call.path == "/forever":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if call.path == "/later":
            await asyncio.sleep(0.02)
        return Reply(b"%b %b %b" % (call.method.encode(), call.path.encode(), call.body), headers=(TYPE,))

    async def _pieces(self, body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    def refused(self, call: Call, error: Exception) -> Reply:
        return Reply(str(error).encode(), getattr(error, "status", 400), (TYPE,))

    def finished(self, call: Call, status: int, client: str) -> None:
        self.statuses.append(status)


@contextmanager
def echoing(options: HttpOptions) -> Iterator[tuple[Echo, int]]:
    """An echo and its port."""
    sock, echo, ready = listen("127.0.0.1", 0), Echo(), threading.Event()
    made: dict[str, Server] = {}
    loop, failures = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    async def run() -> None:
        made["server"] = Server(echo, options, ready.set)
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


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Echo, int]]:
    with echoing(HttpOptions()) as made:
        yield made


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def _whole(client: socket.socket) -> bytes:
    content = b""
    while part := client.recv(1 << 16):
        content += part
    return content


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_pipelined_requests_are_answered_in_order(server: tuple[Echo, int]) -> None:
    with _connected(server[1]) as client:
        asked = [_post(path, b"%d" % at) for at, path in enumerate(["/later", "/a", "/later", "/b"])]
        client.sendall(b"".join(asked) + _post("/c", b"last", "Connection: close"))
        answers = _whole(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [each.split(b"\r\n\r\n")[1] for each in answers] == [
        b"POST /later 0", b"POST /a 1", b"POST /later 2", b"POST /b 3", b"POST /c last",
    ]  # fmt: skip
    assert [b"connection: close" in each for each in answers] == [False] * 4 + [True]


@pytest.mark.parametrize("size", [1, 7])
def test_a_request_in_many_pieces(server: tuple[Echo, int], size: int) -> None:
    content = _post("/a%20b?query=1", b"the body", "Expect: 100-continue", "Connection: close")
    with _connected(server[1]) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(content), size):
            client.sendall(content[at : at + size])
        answer = _whole(client)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"POST /a b the body")


def test_a_stream_in_chunks_and_without(server: tuple[Echo, int]) -> None:
    body = bytes(range(256)) * 3000
    with _connected(server[1]) as client:
        client.sendall(_post("/stream", body, "Connection: close"))
        head, _, chunks = _whole(client).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    found = b""
    while True:
        length, _, chunks = chunks.partition(b"\r\n")
        if not int(length, 16):
            break
        found, chunks = found + chunks[: int(length, 16)], chunks[int(length, 16) + 2 :]
    assert found == body
    with _connected(server[1]) as client:  # HTTP/1.0 knows no chunks: the end of the connection is the end
        client.sendall(_post("/stream", body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, content = _whole(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert content == body


def test_head_has_no_body(server: tuple[Echo, int]) -> None:
    with _connected(server[1]) as client:
        client.sendall(b"HEAD /x HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert _whole(client).endswith(b"content-length: 8\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no HTTP at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-Refused: yes\r\n\r\nGET /next HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (_post("/", b"x" * ((1 << 20) + 1)), 413),
    ],
)
def test_refused_requests_end_the_connection(server: tuple[Echo, int], sent: bytes, status: int) -> None:
    with _connected(server[1]) as client:
        client.sendall(sent)
        answer = _whole(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer


def test_another_protocol_is_answered_as_http(server: tuple[Echo, int]) -> None:
    with _connected(server[1]) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes")
        assert _whole(client).endswith(b"GET /x ")


def test_what_a_client_asked_for_is_cancelled_when_it_goes() -> None:
    with echoing(HttpOptions()) as (echo, port):
        with _connected(port) as client:
            client.sendall(_post("/forever", b""))
            assert echo.asked.wait(60)
        assert echo.cancelled.wait(60)
    assert echo.statuses == [499]


def test_a_client_that_reads_nothing_gets_no_more_answers_and_is_given_up() -> None:
    with echoing(HttpOptions()) as (echo, port), _connected(port) as client:
        echo.limits = Limits(body_seconds=0.05)
        with suppress(OSError):  # reset, or a broken pipe
            for _ in range(1000):
                client.sendall(_post("/a", bytes(100_000)))
        assert 0 < len(echo.statuses) < 1000


@pytest.mark.parametrize("seed", range(4))
def test_broken_requests_in_random_pieces_do_not_break_the_server(server: tuple[Echo, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    content = _post("/a?b=%20c", b"body", "Expect: 100-continue", "Connection: keep-alive") * 3
    for _ in range(25):
        broken = bytearray(content)
        for at in random.integers(0, len(broken), random.integers(0, 4)):
            broken[at] = random.integers(0, 256)
        with _connected(server[1]) as client, suppress(OSError):  # what the server closed
            for piece in np.array_split(np.frombuffer(bytes(broken), np.uint8), random.integers(1, 6)):
                client.sendall(piece.tobytes())
    with _connected(server[1]) as client:
        client.sendall(_post("/a", b"sound", "Connection: close"))
        assert _whole(client).endswith(b"POST /a sound")


def test_too_many_connections_and_the_end_of_time() -> None:
    first = socket.socket()
    with first, echoing(HttpOptions(max_connections=1, drain_seconds=0.01)) as (echo, port):
        first.connect(("127.0.0.1", port))
        first.sendall(_post("/forever", b""))
        assert echo.asked.wait(60)
        with _connected(port) as second:
            second.sendall(_post("/a", b""))
            assert second.recv(12) == b"HTTP/1.1 503"
    assert echo.cancelled.is_set()  # requests that do not end in the time to drain are given up
    with echoing(HttpOptions(keep_alive_seconds=0.01)) as (_, port), _connected(port) as idle:
        idle.sendall(_post("/a", b""))
        assert _whole(idle).endswith(b"POST /a ")
