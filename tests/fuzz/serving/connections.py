"""Clients that misuse connections: slow or endless pieces, many requests at once, and broken HTTP."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

Answers = Counter[str]
Client = Callable[[int], Answers]
"""Takes the port of a server, and returns how it answered: statuses, "closed" (without an answer) or "no answer"."""

_SECONDS = 90.0  # timeout of all answers on a connection: slow clients are closed after 30
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_HOST = b"Host: localhost\r\n"
_HEAD = b"POST /v2/models/dense/infer HTTP/1.1\r\n" + _HOST
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_DENSE = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,16],"data":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}]}'
_SOUND = _HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(_DENSE), _DENSE)


def _get(path: bytes, rest: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, _HOST, rest)


def _read(sock: socket.socket, until: float, counts: Answers, wanted: float) -> None:
    """Read a number of answers, or until the connection is closed; if several are expected, none may be missing."""
    rest = b""
    while counts.total() < wanted:
        sock.settimeout(max(0.01, until - time.monotonic()))
        try:
            received = sock.recv(1 << 16)
        except TimeoutError:
            counts["no answer"] += 1
            return
        except OSError:
            received = b""
        if not received:
            if 1 < wanted < float("inf"):
                counts["no answer"] += int(wanted) - counts.total()
            elif not counts:
                counts["closed"] += 1
            return
        rest += received
        found = list(_STATUS.finditer(rest))
        counts.update(each[1].decode() for each in found)
        rest = rest[found[-1].end() :] if found else rest[-16:]


def sent(pieces: Callable[[], Iterable[bytes]], pause: float = 0.0, wanted: float = float("inf")) -> Client:
    """A client that sends pieces, with pauses in seconds, and reads answers concurrently."""

    def client(port: int) -> Answers:
        counts: Answers = Counter()
        until = time.monotonic() + _SECONDS
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            reader = threading.Thread(target=_read, args=(sock, until, counts, wanted))
            reader.start()
            with suppress(OSError):
                for piece in pieces():
                    sock.sendall(piece)
                    reader.join(pause)
                    if not reader.is_alive() or time.monotonic() > until:
                        break
            reader.join()
        return counts

    return client


def _half_closed(port: int) -> Answers:
    """A client that shuts down its sending side, which servers cannot distinguish from a closed client."""
    counts: Answers = Counter()
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(_SOUND)
        sock.shutdown(socket.SHUT_WR)
        _read(sock, time.monotonic() + _SECONDS, counts, float("inf"))
    return counts


def _deaf(port: int) -> Answers:
    """A client that sends requests and reads no answers: its connection is closed."""
    until = time.monotonic() + _SECONDS
    with socket.create_connection(("127.0.0.1", port), 30) as sock, suppress(OSError):
        sock.settimeout(_SECONDS)
        while time.monotonic() < until:
            sock.sendall(_get(b"/metrics") * 100)
        return Counter({"no answer": 1})
    return Counter({"closed": 1})


def _crowd(count: int, port: int) -> Answers:
    """Silent connections, in spite of which other clients are served."""
    answers: Answers = Counter()
    held = []
    try:
        for _ in range(count):
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), 30))
        for _ in range(50):
            answers += sent(lambda: [_get(b"/v2/health/live", b"Connection: close\r\n")])(port)
    finally:
        for each in held:
            each.close()
    return answers


def _together(*clients: Client) -> Client:
    """Concurrent clients."""

    def all_of_them(port: int) -> Answers:
        found: list[Answers] = []
        threads = [threading.Thread(target=lambda each=each: found.append(each(port))) for each in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(found, Counter())

    return all_of_them


def _once(content: bytes, wanted: float = 1) -> Client:
    return sent(lambda: [content], wanted=wanted)


def _endless(start: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([start], itertools.repeat(piece))


def _bytewise(content: bytes) -> Iterator[bytes]:
    return (content[at : at + 1] for at in range(len(content)))


_BROKEN = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"\r\n" * 5000,
    b"GET / HTTP/0.9\r\n\r\n", b"GET / HTTP/1.1\n" + _HOST + b"\n", b"GET  /  HTTP/1.1\r\n\r\n", bytes(range(256)),
    _get(b"http://localhost/v2/health/live"), _get(b"*"), b"CONNECT localhost:1 HTTP/1.1\r\n" + _HOST + b"\r\n",
    _get(b"/" + b"%2e%2e/" * 300), _get(b"/\xff\xfe"), _get(b"/v2/models/%00/infer"), _get(b"/" + b"a" * 100_000),
    _get(b"/", b"X: " + b"a" * 100_000 + b"\r\n"), _get(b"/", b"X: a\r\n" * 20_000), _get(b"/", b"X" * 70_000),
    _get(b"/", b"X: a\r\n b\r\n"), _get(b"/", b"X: \x00\r\n"), _get(b"/", b": a\r\n"), _get(b"/", b"X : a\r\n"),
    _get(b"/", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
    _get(b"/v2/health/live", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"),
    *(_HEAD + b"Content-Length: %b\r\n\r\nabc" % size for size in (b"-1", b"1e3", b"9" * 30, b"3\r\nContent-Length: 4",
                                                                b" ", b"+3", b"0x3", b"3, 3", b"18446744073709551616")),
    _HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", _HEAD + b"Transfer-Encoding: gzip\r\n\r\nabc",
    *(_CHUNKED + chunk for chunk in (b"f" * 17 + b"\r\nabc", b"-1\r\n", b"g\r\n", b"3\r\nabcd\r\n", b"\r\n",
                                     b"3;" + b"a" * 70_000)),
    _HEAD + b"Expect: 100-continue, 200\r\nContent-Length: 3\r\n\r\nabc",
)  # fmt: skip

CLIENTS: dict[str, Client] = {
    "2,000 requests for metrics in one piece": _once(_get(b"/metrics") * 2_000, 2_000),
    "4,000 requests for health in one piece": _once(_get(b"/v2/health/live") * 4_000, 4_000),
    "1,000 inferences in one piece": _once(_SOUND * 1_000, 1_000),
    "2,000 requests for the page in one piece": _once(_get(b"/") * 2_000, 2_000),
    "20,000 requests that are refused in one piece": _once(b"GET / HTTP/1.1\r\n\r\n" * 20_000),
    "bodies, headers, chunks and trailers without an end": _together(
        sent(_endless(_get(b"/")[:-2], b"X: " + b"a" * 1000 + b"\r\n")), sent(_endless(_get(b"/")[:-2], b"X" * 1000)),
        sent(_endless(_CHUNKED, b"3e8\r\n" + b" " * 1000 + b"\r\n")), sent(_endless(_CHUNKED, b"1\r\n \r\n" * 5_000)),
        sent(_endless(_CHUNKED + b"3;", b"a" * 1000)), sent(_endless(_CHUNKED + b"0\r\n", b"A: b\r\n" * 100)),
        sent(_endless(_CHUNKED, b"0" * 1000)), sent(_endless(b"", b"\r\n" * 1000)), sent(_endless(b"", b"A" * 1000)),
    ),
    "slow clients": _together(
        sent(_endless(b"G", b"E"), 0.5), sent(_endless(_get(b"/")[:-2] + b"X: ", b"a"), 0.5),
        sent(_endless(_HEAD + b"Content-Length: 1000\r\n\r\n", b" "), 0.5), _deaf,
        sent(_endless(_CHUNKED, b"1\r\n \r\n"), 0.5),
        sent(_endless(_CHUNKED + b"0\r\n", b"A: b\r\n"), 0.5), sent(_endless(_CHUNKED + b"1;", b"a"), 0.5),
        sent(_endless(_HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", b""), 0.5), _deaf,
        sent(_endless(b"", b""), 0.5), sent(_endless(b"", b"\r\n"), 0.5), sent(_endless(_SOUND, b"P"), 0.5),
    ),
    "half-closed connections": _half_closed,
    "broken HTTP": _together(*(_once(content) for content in _BROKEN)),
    "broken HTTP, a byte at a time": _together(
        *(sent(partial(_bytewise, content[:500]), wanted=1) for content in _BROKEN)),
    "1,500 silent connections": partial(_crowd, 1_500),
}  # fmt: skip
"""By name."""
