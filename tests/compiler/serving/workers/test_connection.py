"""HTTP on sockets with an echoing handler: accepted requests, sent in any pieces, and their answers."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from compiler.serving.limits import Limits
from compiler.serving.workers.connection import Connection, run_eagerly
from compiler.serving.workers.http_server import HttpOptions, Server
from tests.compiler.serving.workers.echo import Echo, connected, echoing, post, whole


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Echo, int]]:
    with echoing(HttpOptions()) as made:
        yield made


def test_pipelined_requests_are_answered_in_order(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        asked = [post(path, b"%d" % at) for at, path in enumerate(["/later", "/a", "/later", "/b"])]
        client.sendall(b"".join(asked) + post("/c", b"last", "Connection: close"))
        answers = whole(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [each.split(b"\r\n\r\n")[1] for each in answers] == [
        b"POST /later 0", b"POST /a 1", b"POST /later 2", b"POST /b 3", b"POST /c last",
    ]  # fmt: skip
    assert [b"connection: close" in each for each in answers] == [False] * 4 + [True]


def test_what_a_known_head_says_is_checked_again(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        for _ in range(2):  # the second time their heads are known
            for body in (b"one", b"two", b"123456"):
                client.sendall(post("/a%20b", body))
                assert client.recv(1 << 16).endswith(b"\r\n\r\nPOST /a b " + body)
        client.sendall(post("/a%20b", b"") + post("/a%20b", b"one") + post("/a%20b", b"two")[:-1])
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 2 or not answers.endswith(b"POST /a b one"):
            answers += client.recv(1 << 16)
        client.sendall(b"o" + post("/a%20b", b"", "X-Refused: yes"))
        assert b"POST /a b two" in (ended := whole(client))
        assert ended.endswith(b"refused")
    for _ in range(2):
        with connected(server[1]) as client:
            client.sendall(post("/", b"x", "Connection: close"))
            assert b"connection: close" in whole(client)
        with connected(server[1]) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"content-length: 6" in whole(client)


def test_many_requests_behind_a_slow_one(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        client.sendall(post("/later", b"") + post("/", b"x") * 1500 + post("/", b"last", "Connection: close"))
        assert whole(client).count(b"POST / x") == 1500


def test_a_task_that_is_cancelled_before_its_first_step_ends_what_it_began() -> None:
    async def scenario() -> None:
        ended = []
        awaited: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await awaited
            finally:
                ended.append(asyncio.current_task())

        task = run_eagerly(work(), asyncio.get_running_loop())
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert awaited.cancelled()
        assert ended == [task]

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [1, 7])
def test_a_request_in_many_pieces(server: tuple[Echo, int], size: int) -> None:
    content = post("/a%20b?query=1", b"the body", "Expect: 100-continue", "Connection: close")
    with connected(server[1]) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(content), size):
            client.sendall(content[at : at + size])
        answer = whole(client)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"POST /a b the body")


def test_a_body_is_asked_for_in_its_turn(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        client.sendall(post("/later", b"") + post("/a", b"body", "Expect: 100-continue", "Connection: close")[:-4])
        answers = b""
        while not answers.endswith(b"100 Continue\r\n\r\n"):
            answers += client.recv(1 << 16)
        assert answers.startswith(b"HTTP/1.1 200 OK")
        client.sendall(b"body")
        assert whole(client).endswith(b"POST /a body")


def test_a_stream_in_chunks_and_without(server: tuple[Echo, int]) -> None:
    body = bytes(range(256)) * 3000
    with connected(server[1]) as client:
        client.sendall(post("/stream", body, "Connection: close"))
        head, _, chunks = whole(client).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    found = b""
    while True:
        length, _, chunks = chunks.partition(b"\r\n")
        if not int(length, 16):
            break
        found, chunks = found + chunks[: int(length, 16)], chunks[int(length, 16) + 2 :]
    assert found == body
    with connected(server[1]) as client:  # HTTP/1.0 knows no chunks: the end of the connection is the end
        client.sendall(post("/stream", body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, content = whole(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert content == body


def test_head_has_no_body(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        client.sendall(b"HEAD /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = whole(client).partition(b"\r\n\r\n")
    assert b"content-length: 8\r\n" in head
    assert body == b""


def test_another_protocol_is_answered_as_http(server: tuple[Echo, int]) -> None:
    with connected(server[1]) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes")
        assert whole(client).endswith(b"GET /x ")


def test_what_a_client_asked_for_is_cancelled_when_it_goes() -> None:
    with echoing(HttpOptions()) as (echo, port):
        with connected(port) as client:
            client.sendall(post("/forever", b""))
            assert echo.asked.wait(60)
        assert echo.cancelled.wait(60)
    assert echo.statuses == [499]


def test_a_client_that_reads_nothing_gets_no_more_answers_and_is_given_up() -> None:
    with echoing(HttpOptions()) as (echo, port), connected(port) as client:
        echo.limits = Limits(body_seconds=0.05)
        with suppress(OSError):  # reset, or a broken pipe
            for _ in range(1000):
                client.sendall(post("/a", bytes(100_000)))
        assert 0 < len(echo.statuses) < 1000


@pytest.mark.parametrize("seed", range(4))
def test_broken_requests_in_random_pieces_do_not_break_the_server(server: tuple[Echo, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    content = post("/a?b=%20c", b"body", "Expect: 100-continue", "Connection: keep-alive") * 3
    for _ in range(25):
        broken = bytearray(content)
        for at in random.integers(0, len(broken), random.integers(0, 4)):
            broken[at] = random.integers(0, 256)
        with connected(server[1]) as client, suppress(OSError):  # what the server closed
            for piece in np.array_split(np.frombuffer(bytes(broken), np.uint8), random.integers(1, 6)):
                client.sendall(piece.tobytes())
    with connected(server[1]) as client:
        client.sendall(post("/a", b"sound", "Connection: close"))
        assert whole(client).endswith(b"POST /a sound")


def test_too_many_connections_and_the_end_of_time() -> None:
    first = socket.socket()
    with first, echoing(HttpOptions(max_connections=1, drain_seconds=0.01)) as (echo, port):
        first.connect(("127.0.0.1", port))
        first.sendall(post("/forever", b""))
        assert echo.asked.wait(60)
        with connected(port) as second:
            second.sendall(post("/a", b""))
            assert second.recv(12) == b"HTTP/1.1 503"
    assert echo.cancelled.is_set()  # requests that do not end in the time to drain are given up
    with echoing(HttpOptions(keep_alive_seconds=0.01)) as (_, port), connected(port) as idle:
        idle.sendall(post("/a", b""))
        assert whole(idle).endswith(b"POST /a ")


def test_the_connection_that_waits_longest_makes_room() -> None:
    with (
        echoing(HttpOptions(max_connections=3)) as (_, port),
        connected(port) as used,
        connected(port) as silent,
        connected(port) as begun,
    ):
        for client in (begun, used):
            client.sendall(post("/a", b"x"))
            assert client.recv(1 << 16).endswith(b"POST /a x")
        begun.sendall(post("/a", b"x")[:-1])
        with connected(port) as new:
            new.sendall(post("/a", b"new"))
            assert new.recv(1 << 16).endswith(b"POST /a new")
            assert silent.recv(1) == b""
        used.sendall(post("/a", b"again", "Connection: close"))
        assert whole(used).endswith(b"POST /a again")


def test_connections_are_as_many_as_descriptors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (700, 700))
    assert [Server(Echo(), HttpOptions(max_connections=most)).max_connections for most in (10, 1000)] == [10, 572]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Server(Echo(), HttpOptions(max_connections=1000)).max_connections == 1000


class _Transport(asyncio.Transport):
    """Records written data."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.paused = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def test_one_request_is_answered_in_a_turn_of_the_event_loop() -> None:
    async def scenario() -> None:
        server = Server(Echo(), HttpOptions())
        connection, transport = Connection(server), _Transport()
        connection.connection_made(transport)
        connection.data_received(post("/a", b"x") * 1000 + post("/a", b"x")[:-1])
        for answered in range(1, 1000):
            assert transport.written.count(b"POST /a x") == answered
            assert transport.paused
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not transport.paused
        connection.data_received(b"x")
        assert transport.written.count(b"POST /a x") == 1001

    asyncio.run(scenario())


def test_bodies_in_arrival_are_bounded_together() -> None:
    request = post("/", b"x" * 200_000, "Connection: close")

    def status(port: int) -> bytes:
        with connected(port) as client:
            with suppress(OSError):  # refused before all of it is read
                client.sendall(request)
            return whole(client)[9:12]

    with echoing(HttpOptions(), Limits(held_bytes=300_000)) as (echo, port):
        assert echo.server is not None

        def wait_for(count: int) -> None:
            while echo.server is not None and echo.server.held.count != count:
                time.sleep(0.01)

        for ending in (b"x", b""):  # a body counts from when it is here until it is answered, or given up
            with connected(port) as slow:
                slow.sendall(request[:-1])
                wait_for(199_999)
                assert [status(port) for _ in range(3)] == [b"503"] * 3
                slow.sendall(ending)
                assert not ending or whole(slow).startswith(b"HTTP/1.1 200")
            wait_for(0)
            assert status(port) == b"200"
