"""`KnownHeads`: heads of requests that were parsed before.

Clients send the same target and headers again and again; parsing them takes a fifth of a small net's request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_END = b"\r\n\r\n"
_MAX_BYTES = 2048  # of a head that is kept
_MAX_HEADS = 1024
_OTHER_FRAMING = (b"transfer-encoding", b"expect", b"upgrade")


class Head(NamedTuple):
    """Facts of the head of a request after which the connection stays open; `length`: of its body in bytes."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    length: int


class KnownHeads:
    """Heads by their bytes, so that requests that begin with equal bytes need no parsing."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and body of data that is one whole request whose head is known, else None."""
        start = data.find(_END, 0, _MAX_BYTES) + len(_END)
        head = self._heads.get(data[:start])
        return None if head is None or len(data) - start != head.length else (head, data[start:])

    def add(self, data: bytes, method: str, path: str, headers: Mapping[bytes, bytes], length: int) -> None:
        """Remember the head of data that was parsed as one request with `length` bytes of body, if nothing followed."""
        start = data.find(_END, 0, _MAX_BYTES) + len(_END)
        if len(data) - start != length or any(name in headers for name in _OTHER_FRAMING):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[data[:start]] = Head(method, path, headers, length)
