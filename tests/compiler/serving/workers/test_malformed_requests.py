"""Requests that are not HTTP, or that two programs on their way could read differently, and what they get.

Each was compared with uvicorn, on h11 and on httptools: where these differ, the stricter answer is expected.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.serving.workers.http_server import HttpOptions
from tests.compiler.serving.workers.echo import Echo, connected, echoing, whole

GET, POST = b"GET /a HTTP/1.1", b"POST /a HTTP/1.1"
HOST = b"Host: localhost"
CHUNKED = b"Transfer-Encoding: chunked"
CHUNK = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Echo, int]]:
    with echoing(HttpOptions()) as made:
        yield made


def _length(value: bytes) -> bytes:
    return b"Content-Length: " + value


def _answers(port: int, content: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer, until the server closes."""
    with connected(port) as client:
        client.sendall(content)
        answers = whole(client).split(b"HTTP/1.1 ")[1:]
    return [(int(each[:3]), each.partition(b"\r\n\r\n")[2]) for each in answers]


def _request(line: bytes, headers: list[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join((line, *headers, b"", b"")) + body


REFUSED = {
    # Where does the body end?
    "length and chunks": (400, POST, [HOST, _length(b"3"), CHUNKED], CHUNKS),
    "chunks and length": (400, POST, [HOST, CHUNKED, _length(b"3")], CHUNKS),
    "two lengths": (400, POST, [HOST, _length(b"3"), _length(b"5")], b"abcde"),
    "a list of lengths": (400, POST, [HOST, _length(b"3, 3")], b"abc"),
    "a length with a sign": (400, POST, [HOST, _length(b"+3")], b"abc"),
    "a negative length": (400, POST, [HOST, _length(b"-1")], b"abc"),
    "a hexadecimal length": (400, POST, [HOST, _length(b"0x3")], b"abc"),
    "an empty length": (400, POST, [HOST, _length(b"")], b"abc"),
    "a length beyond 64 bits": (400, POST, [HOST, _length(b"9" * 30)], b"abc"),
    "packed chunks": (501, POST, [HOST, b"Transfer-Encoding: gzip, chunked"], CHUNKS),
    "chunked is not last": (400, POST, [HOST, b"Transfer-Encoding: chunked, identity"], CHUNKS),
    "chunked twice": (400, POST, [HOST, CHUNKED, CHUNKED], CHUNKS),
    "two encodings": (400, POST, [HOST, b"Transfer-Encoding: gzip", CHUNKED], CHUNKS),
    "an unknown encoding": (501, POST, [HOST, b"Transfer-Encoding: xchunked"], CHUNKS),
    "a space before the colon": (400, POST, [HOST, b"Transfer-Encoding : chunked"], CHUNKS),
    "a control character before chunked": (400, POST, [HOST, b"Transfer-Encoding: \x0bchunked"], CHUNKS),
    "chunks of HTTP/1.0": (400, b"POST /a HTTP/1.0", [HOST, CHUNKED], CHUNKS),
    "a chunk's size is no number": (400, POST, [HOST, CHUNKED], b"xyz\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size with a prefix": (400, POST, [HOST, CHUNKED], b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk": (400, POST, [HOST, CHUNKED], b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk beyond 64 bits": (400, POST, [HOST, CHUNKED], b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": (400, POST, [HOST, CHUNKED], b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunks with bare line feeds": (400, POST, [HOST, CHUNKED], b"3\nabc\n0\n\n"),
    "endless trailers": (431, POST, [HOST, CHUNKED], b"0\r\nX-A: " + b"a" * 600_000),
    # For whom is it?
    "no host": (400, GET, [], b""),
    "two hosts": (400, GET, [HOST, b"Host: other"], b""),
    "two keys": (400, GET, [HOST, b"Authorization: Bearer a", b"authorization: Bearer b"], b""),
    # Is it HTTP?
    "not HTTP": (400, b"no HTTP at all", [], b""),
    "no version": (505, b"GET /a", [HOST], b""),
    "HTTP/2": (505, b"GET /a HTTP/2.0", [HOST], b""),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0", [], b"SM\r\n\r\n"),
    "TLS": (400, bytes.fromhex("16030100a5010000a10303") + bytes(160), [], b""),
    "line feeds alone": (400, b"GET /a HTTP/1.1\nHost: localhost\n\n", [], b""),
    "a header on two lines": (400, GET, [HOST, b"X-A: 1", b"  2"], b""),
    "a header without a colon": (400, GET, [HOST, b"X-A"], b""),
    "a header without a name": (400, GET, [HOST, b": 1"], b""),
    "a name beyond ASCII": (400, GET, [HOST, b"X-\xc3\xa4: 1"], b""),
    "a zero in a value": (400, GET, [HOST, b"X-A: a\0b"], b""),
    "a carriage return in a value": (400, GET, [HOST, b"X-A: a\rX-B: b"], b""),
    "an unknown method": (400, b"FOO /a HTTP/1.1", [HOST], b""),
    "a tunnel": (400, b"CONNECT localhost:80 HTTP/1.1", [HOST], b""),
    "a target with a space": (400, b"GET /a b HTTP/1.1", [HOST], b""),
    "a target with a zero": (400, b"GET /a\0 HTTP/1.1", [HOST], b""),
    "a target beyond ASCII": (400, b"GET /\xff HTTP/1.1", [HOST], b""),
    "a target of no path": (400, b"GET a HTTP/1.1", [HOST], b""),
    # How much of it?
    "a long target": (414, b"GET /" + b"a" * 70_000 + b" HTTP/1.1", [HOST], b""),
    "an endless target": (431, b"GET /" + b"a" * 600_000, [], b""),
    "a long header": (431, GET, [HOST, b"X-A: " + b"a" * 70_000], b""),
    "an endless header": (431, GET, [HOST, b"X-A: " + b"a" * 600_000], b""),
    "many headers": (431, GET, [HOST, *(b"X-%d: 1" % at for at in range(3000))], b""),
    "an unknown expectation": (417, POST, [HOST, _length(b"3"), b"Expect: 200-ok"], b"abc"),
    "a large body": (413, POST, [HOST, _length(b"%d" % ((1 << 20) + 1))], b"a" * ((1 << 20) + 1)),
    "a large body in chunks": (413, POST, [HOST, CHUNKED], CHUNK * 17),
    "what the handler refuses": (400, GET, [HOST, b"X-Refused: yes"], b""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_requests_end_the_connection(server: tuple[Echo, int], case: str) -> None:
    """Requests that follow them are not answered, and nothing of them is run."""
    status, line, headers, body = REFUSED[case]
    server[0].statuses.clear()
    answers = _answers(server[1], _request(line, headers, body) + _request(b"GET /next HTTP/1.1", [HOST]))
    assert [each for each, _ in answers] == [status]
    assert 200 not in server[0].statuses


TAKEN = {
    "spaces around a length": (POST, [HOST, _length(b"  3  ")], b"abc", b"POST /a abc"),
    "chunks": (POST, [HOST, b"transfer-encoding: CHUNKED"], CHUNKS, b"POST /a abc"),
    "a chunk with an extension": (POST, [HOST, CHUNKED], b"3;a=b\r\nabc\r\n0\r\n\r\n", b"POST /a abc"),
    "trailers": (POST, [HOST, CHUNKED], b"3\r\nabc\r\n0\r\nHost: b\r\nExpect: c\r\n\r\n", b"POST /a abc"),
    "chunks of a byte": (POST, [HOST, CHUNKED], b"1\r\na\r\n" * 500 + b"0\r\n\r\n", b"POST /a " + b"a" * 500),
    "HTTP/1.0 without a host": (b"GET /a HTTP/1.0", [], b"", b"GET /a "),
    "HTTP/1.0 expects nothing": (b"POST /a HTTP/1.0", [_length(b"3"), b"Expect: 100-continue"], b"abc", b"POST /a abc"),
    "empty lines before": (b"\r\n\r\n" + GET, [HOST], b"", b"GET /a "),
    "a value beyond ASCII": (GET, [HOST, b"X-A: \xc3\xa4\xff"], b"", b"GET /a "),
    "a body of GET": (GET, [HOST, _length(b"3")], b"abc", b"GET /a abc"),
    "an absolute target": (b"GET http://localhost/a?b HTTP/1.1", [HOST], b"", b"GET /a "),
    "bad escapes": (b"GET /%zz%ff HTTP/1.1", [HOST], b"", "GET /%zz\ufffd ".encode()),
    "options of the server": (b"OPTIONS * HTTP/1.1", [HOST], b"", b"OPTIONS * "),
    "another protocol": (GET, [HOST, b"Connection: Upgrade", b"Upgrade: h2c"], b"", b"GET /a "),
    "many headers": (GET, [HOST, *(b"X-%d: 1" % at for at in range(1000))], b"", b"GET /a "),
}


@pytest.mark.parametrize("case", TAKEN)
def test_odd_requests_are_answered(server: tuple[Echo, int], case: str) -> None:
    line, headers, body, expected = TAKEN[case]
    if case != "another protocol":
        headers = [*headers, b"Connection: close"]
    assert _answers(server[1], _request(line, headers, body)) == [(200, expected)]
