"""The bytes of a `.twm` file: prefix, section table, manifest, aligned sections, and an optional signature block.

    0   magic (8), format version u32, section count u16, flags u16 (1: signed), manifest bytes u64,
        content bytes u64                                                                           32 bytes
    32  SHA-256 of bytes 0..32, the section table and the manifest                                   32 bytes
    64  section table: name (16, ASCII, zero-padded), offset u64, size u64                           32 bytes each
        manifest (JSON); zeros up to the next multiple of 64
        sections, each at a multiple of 64, in the table's order; zeros between them
        signature block (`keys.py`), if signed

Numbers are little-endian. Every byte is checked: the header by its digest, each section by its digest in the manifest,
the gaps by being zero, the signature block by its own digest (and its absence by the flag). Nothing is parsed before it
is checked.

Checksums run at memory speed: SHA-256 over a two-level tree whose leaves are hashed on several cores.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import cpu_count

from compiler.errors import ArtifactError, IncompatibleArtifactError

FORMAT_VERSION = 1
"""Version of the file format that this code writes, and the newest version that it reads."""

MAGIC = b"\x89TWM\r\n\x1a\n"  # like PNG's magic, it reveals text-mode and 7-bit damage
ALIGNMENT = 64
MAX_MANIFEST_BYTES = 32 << 20
_PREFIX = struct.Struct("<8sIHHQQ")
_ENTRY = struct.Struct("<16sQQ")
_DIGEST_BYTES = 32
_MAX_SECTIONS = 16
_SIGNED = 1
HEAD_BYTES = _PREFIX.size + _DIGEST_BYTES


def align(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Section:
    """Name, offset and size of one section in the file, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """The header of a file after its digest was checked: the manifest, the sections, and the end of the content."""

    manifest: bytes
    sections: tuple[Section, ...]
    content_bytes: int
    digest: bytes
    signed: bool


def pack_header(manifest: bytes, sizes: dict[str, int], signed: bool) -> tuple[bytes, Layout]:
    """Lay out a file: its first bytes (up to the first section) and the offsets of the sections.

    Args:
        sizes: bytes of each section by name (at most 16 ASCII characters), in file order.
        signed: True if a signature block will follow the content.
    """
    position = align(HEAD_BYTES + _ENTRY.size * len(sizes) + len(manifest))
    sections = []
    for name, size in sizes.items():
        sections.append(Section(name, position, size))
        position = align(position + size)
    content_bytes = sections[-1].offset + sections[-1].size if sections else position
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(sections), _SIGNED if signed else 0, len(manifest), content_bytes)
    table = b"".join(_ENTRY.pack(s.name.encode("ascii"), s.offset, s.size) for s in sections)
    digest = hashlib.sha256(prefix + table + manifest).digest()
    head = prefix + digest + table + manifest
    return head + bytes(align(len(head)) - len(head)), Layout(manifest, tuple(sections), content_bytes, digest, signed)


def parse_header(data: memoryview, origin: str) -> Layout:
    """Check a file's head and return the layout. `data` is the whole file.

    Raises:
        ArtifactError: the data is not a module file, or is truncated or damaged.
        IncompatibleArtifactError: written in a newer format.
    """
    if len(data) < len(MAGIC) or bytes(data[: len(MAGIC)]) != MAGIC:
        is_model = origin.endswith((".onnx", ".pt2", ".gguf"))
        hint = (
            f"compile the model first: tensorwright compile {origin}" if is_model else "module.export(path) writes one"
        )
        raise ArtifactError(f"{origin} is not a Tensorwright module", hint)
    if len(data) < HEAD_BYTES:
        raise _damaged(origin, f"only {len(data)} bytes long")
    _, version, count, flags, manifest_bytes, content_bytes = _PREFIX.unpack(data[: _PREFIX.size])
    if version > FORMAT_VERSION:
        raise IncompatibleArtifactError(
            f"{origin} has format version {version}; this Tensorwright reads up to {FORMAT_VERSION}",
            "upgrade Tensorwright on this machine, or export the module with an older one",
        )
    table_end = HEAD_BYTES + _ENTRY.size * count
    manifest_end = table_end + manifest_bytes
    if count > _MAX_SECTIONS or manifest_bytes > MAX_MANIFEST_BYTES or version == 0 or flags > _SIGNED:
        raise _damaged(origin, "its header is not valid")
    if max(manifest_end, content_bytes) > len(data):
        raise _damaged(origin, f"{max(manifest_end, content_bytes)} bytes are declared and {len(data)} present")
    digest = bytes(data[_PREFIX.size : HEAD_BYTES])
    checked = hashlib.sha256(data[: _PREFIX.size])
    checked.update(data[HEAD_BYTES:manifest_end])
    if checked.digest() != digest:
        raise _damaged(origin, "the checksum of its header does not match")
    sections = _parse_table(data[HEAD_BYTES:table_end], origin)
    _check_extents(data, sections, manifest_end, content_bytes, origin)
    if (len(data) > content_bytes) != bool(flags):
        raise _damaged(origin, "the data after its content does not match its header")
    return Layout(bytes(data[table_end:manifest_end]), sections, content_bytes, digest, bool(flags))


def _parse_table(table: memoryview, origin: str) -> tuple[Section, ...]:
    sections = []
    for raw, offset, size in _ENTRY.iter_unpack(table):
        name = raw.rstrip(b"\0")
        if not name.isascii() or not name:
            raise _damaged(origin, "a section has no valid name")
        sections.append(Section(name.decode("ascii"), offset, size))
    if len({section.name for section in sections}) != len(sections):
        raise _damaged(origin, "two sections have the same name")
    return tuple(sections)


def _check_extents(
    data: memoryview, sections: tuple[Section, ...], header_end: int, content_bytes: int, origin: str
) -> None:
    """Sections must be consecutive, each at the next multiple of 64, with zeros between them, and fill the content."""
    position = header_end
    for section in sections:
        if section.offset != align(position) or section.offset + section.size > content_bytes:
            raise _damaged(origin, f"section {section.name!r} is at a wrong offset")
        if any(data[position : section.offset]):
            raise _damaged(origin, f"the padding before section {section.name!r} is not zero")
        position = section.offset + section.size
    if content_bytes != (position if sections else align(position)) or any(data[position:content_bytes]):
        raise _damaged(origin, "its content has a wrong length")


def _damaged(origin: str, what: str) -> ArtifactError:
    return ArtifactError(f"{origin} is damaged: {what}", "copy or export the file again")


LEAF_BYTES = 1 << 20
_PARALLEL_FROM_BYTES = 4 << 20  # below this, starting threads takes longer than it saves


Pieces = Sequence[memoryview | bytes]


def _leaf(pieces: Pieces) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _root(size: int, leaves: Sequence[bytes]) -> bytes:
    # The size and the number of leaves come first, so that the input of a tree never equals the input of another tree's
    # leaf.
    head = b"tree" + size.to_bytes(8, "little") + len(leaves).to_bytes(8, "little")
    return hashlib.sha256(head + b"".join(leaves)).digest()


def _split(pieces: Pieces) -> Iterator[list[memoryview]]:
    """Split a section, given in pieces, into leaves of `LEAF_BYTES` without copying; a leaf may have several parts."""
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
    """SHA-256 tree digests that other threads start computing immediately."""

    def __init__(self, sections: Sequence[Pieces], workers: int) -> None:
        """Start the computation.

        Args:
            sections: each is a list of flat views of its consecutive bytes.
            workers: number of threads to start; threads that call `result` also compute.
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
        """End the threads; no result is available afterwards."""
        for _ in self._waiting:
            pass
        for each in self._threads:
            each.join()

    def result(self) -> list[bytes]:
        """Wait for the digests of all sections and return them."""
        self._work()
        for each in self._threads:
            each.join()
        digests = iter(self._digests)
        return [
            _root(size, [next(digests) for _ in parts]) for size, parts in zip(self._sizes, self._split, strict=True)
        ]


def tree_digests(sections: Sequence[Pieces]) -> list[bytes]:
    """SHA-256 tree digests of sections, hashed in one batch. `sections`: each is a list of flat views of its
    consecutive bytes."""
    return begin_digests(sections, cpu_count() or 1).result()


def begin_digests(sections: Sequence[Pieces], processors: int) -> TreeDigests:
    """Start computing digests on some processors, including that of the caller."""
    total = sum(len(piece) for section in sections for piece in section)
    others = min(processors, 8, -(-total // LEAF_BYTES)) - 1
    return TreeDigests(sections, others if total >= _PARALLEL_FROM_BYTES else 0)
