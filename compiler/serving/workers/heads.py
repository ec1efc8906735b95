"""Limits on the head of a request (its target and headers).

`KnownHeads` caches parsed heads: clients send the same target and headers again and again, and parsing them takes a
fifth of the time of a small net's request.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from compiler.serving.app.http import HttpError
from compiler.serving.limits import Limits
from compiler.support.optional import optional_module

_httptools: Any = optional_module("httptools", "serve", "parses HTTP")
SINGLE = frozenset(
    (b"host", b"authorization", b"x-api-key", b"api-key", b"transfer-encoding", b"content-encoding", b"content-type",
     b"inference-header-content-length")
)  # fmt: skip
"""Headers that two programs could interpret differently if they are given twice."""
_VERSIONS = ("1.1", "1.0")
_CONTINUE = b"100-continue"


def check_head(
    version: str, url: bytes, headers: Mapping[bytes, bytes], header_bytes: int, twice: bytes | None, limits: Limits
) -> None:
    """Refuse too large heads, and headers that leave the end or the host of a request ambiguous. Raises HttpError if it
    is refused.

    Args:
        header_bytes: size of all headers.
        twice: a header in `SINGLE` that was given more than once.
    """
    if len(url) > limits.header_bytes:
        raise HttpError(414, "the request's target is too long")
    limits.check("header_bytes", header_bytes)
    if version not in _VERSIONS:
        raise HttpError(505, f"HTTP/{version} is not supported", "use HTTP/1.1")
    if twice is not None:
        raise HttpError(400, f"the header {twice.decode('latin-1')} is given twice")
    encoding = headers.get(b"transfer-encoding")
    if version == "1.0":
        if encoding is not None:
            raise HttpError(400, "HTTP/1.0 has no transfer encoding")
        return
    if b"host" not in headers:
        raise HttpError(400, "the header Host is missing")
    if encoding is not None and encoding.lower() != b"chunked":
        raise HttpError(501, "the only transfer encoding is chunked")
    if headers.get(b"expect", _CONTINUE).lower() != _CONTINUE:
        raise HttpError(417, "nothing but 100-continue can be expected")


def path_of(url: bytes) -> str:
    """Return the path of a request's target, unquoted. Raises HttpError."""
    if len(url) <= 256:
        return _short_path(url)
    return _parsed_path(url)


def _parsed_path(url: bytes) -> str:
    try:
        raw: bytes | None = _httptools.parse_url(url).path
    except _httptools.HttpParserInvalidURLError:
        raw = None
    if raw is None:
        raise HttpError(400, "the request's target is not a path")
    path = raw.decode("latin-1")
    return unquote(path) if "%" in path else path


_short_path = lru_cache(maxsize=256)(_parsed_path)


_END = b"\r\n\r\n"
_MAX_BYTES = 2048  # of a cached head
_MAX_HEADS = 1024
_OTHER_FRAMING = (b"transfer-encoding", b"expect", b"upgrade")


class Head(NamedTuple):
    """A parsed head of a request after which the connection stays open; `length`: bytes of its body."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    length: int


class KnownHeads:
    """Cache of heads by their bytes, so that requests with equal heads need no parsing."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Return the head and body of data that is one whole request with a known head, else None."""
        start = data.find(_END, 0, _MAX_BYTES) + len(_END)
        head = self._heads.get(data[:start])
        return None if head is None or len(data) - start != head.length else (head, data[start:])

    def add(self, data: bytes, method: str, path: str, headers: Mapping[bytes, bytes], length: int) -> None:
        """Cache the head of data that was parsed as one request with `length` bytes of body, if nothing followed."""
        start = data.find(_END, 0, _MAX_BYTES) + len(_END)
        if len(data) - start != length or any(name in headers for name in _OTHER_FRAMING):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[data[:start]] = Head(method, path, headers, length)
