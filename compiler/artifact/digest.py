"""Checksums at the speed of memory: SHA-256 over a two-level tree whose leaves are hashed on several cores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def tree_digests(sections: Sequence[Pieces]) -> list[bytes]:
    """SHA-256 tree digest of each section, all of their leaves hashed together.

    Args:
        sections: each the flat views of bytes that follow one another in it.
    """
    split = [list(_split(section)) for section in sections]
    leaves = [leaf for section in split for leaf in section]
    total = sum(len(piece) for section in sections for piece in section)
    workers = min(cpu_count() or 1, 8, len(leaves))
    if workers > 1 and total >= _PARALLEL_FROM_BYTES:
        with ThreadPoolExecutor(workers) as pool:
            digests = iter(list(pool.map(_leaf, leaves)))
    else:
        digests = map(_leaf, leaves)
    return [
        _root(sum(map(len, section)), [next(digests) for _ in parts])
        for section, parts in zip(sections, split, strict=True)
    ]
