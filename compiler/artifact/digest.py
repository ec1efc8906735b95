"""Checksums at the speed of memory: SHA-256 over a two-level tree whose leaves are hashed on several cores."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from os import cpu_count

LEAF_BYTES = 1 << 20
DIGEST_BYTES = 32
_PARALLEL_FROM_BYTES = 4 << 20  # below this, starting threads costs more than it saves


Pieces = Sequence[memoryview | bytes]


def _leaf(pieces: Pieces) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _root(size: int, leaves: Sequence[bytes]) -> bytes:
    # The size and the number of leaves precede them, so that no tree's input is another one's leaf.
    head = b"tree" + size.to_bytes(8, "little") + len(leaves).to_bytes(8, "little")
    return hashlib.sha256(head + b"".join(leaves)).digest()


def _split(pieces: Pieces) -> Iterator[list[memoryview]]:
    """Cut a section, given in pieces, into leaves of `LEAF_BYTES`; without copying, so a leaf may have parts."""
    leaf: list[memoryview] = []
    room = LEAF_BYTES
    for data in pieces:
        piece = memoryview(data)
        position = 0
        while position < len(piece):
            part = piece[position : position + room]
            leaf.append(part)
            position += len(part)
            room -= len(part)
            if not room:
                yield leaf
                leaf, room = [], LEAF_BYTES
    if leaf:
        yield leaf


class TreeDigests:
    """SHA-256 tree digests that other threads compute from now on."""

    def __init__(self, sections: Sequence[Pieces], workers: int) -> None:
        """Begin.

        Args:
            sections: each the flat views of bytes that follow one another in it.
            workers: threads to start; those that `result` is called by compute too.
        """
        self._split = [list(_split(section)) for section in sections]
        self._sizes = [sum(map(len, section)) for section in sections]
        self._leaves = [leaf for section in self._split for leaf in section]
        self._digests: list[bytes] = [b""] * len(self._leaves)
        self._waiting = iter(range(len(self._leaves)))  # taking from it is atomic
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for each in self._threads:
            each.start()

    def _work(self) -> None:
        for index in self._waiting:
            self._digests[index] = _leaf(self._leaves[index])

    def stop(self) -> None:
        """End the threads; there is no result then."""
        for _ in self._waiting:
            pass
        for each in self._threads:
            each.join()

    def result(self) -> list[bytes]:
        """The digest of each section; waits for them."""
        self._work()
        for each in self._threads:
            each.join()
        digests = iter(self._digests)
        return [
            _root(size, [next(digests) for _ in parts]) for size, parts in zip(self._sizes, self._split, strict=True)
        ]


def tree_digests(sections: Sequence[Pieces]) -> list[bytes]:
    """SHA-256 tree digest of each section, all of their leaves hashed together.

    Args:
        sections: each the flat views of bytes that follow one another in it.
    """
    return begin_digests(sections, cpu_count() or 1).result()


def begin_digests(sections: Sequence[Pieces], processors: int) -> TreeDigests:
    """Begin to compute digests on some processors, that of the caller included."""
    total = sum(len(piece) for section in sections for piece in section)
    others = min(processors, 8, -(-total // LEAF_BYTES)) - 1
    return TreeDigests(sections, others if total >= _PARALLEL_FROM_BYTES else 0)
