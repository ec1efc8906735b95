"""Validates the header of a GGUF file before the gguf package, which trusts all counts, reads it."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from compiler.errors import InvalidModelError, StorageError

# Bytes of the scalar types by number; texts and lists have numbers of their own.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _LIST = 4, 8, 9
_VERSIONS = (2, 3)
_MOST_ELEMENTS = 1 << 22  # of all lists together: vocabularies have less than a million, and the package is slow
_MOST_AXES = 4
_ALIGNMENT = "general.alignment"


def check_gguf_header(path: Path, blocks: Mapping[int, tuple[int, int]]) -> None:
    """Check that everything in a header is where it says, and that tensors neither overlap nor leave the file.

    Args:
        blocks: by the number of an element type, elements and bytes of its blocks.

    Raises:
        StorageError: the file cannot be read.
        InvalidModelError: it is truncated or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data).check(blocks)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:  # ValueError: of an empty file
        raise InvalidModelError(
            f"{path} is a GGUF file that is truncated or damaged: {error}", "download or convert the file again"
        ) from error


class _Header:
    """A position in the file; what is beyond its end raises struct.error, what makes no sense ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0
        self._order, self._elements, self._alignment = "<", 0, 32

    def check(self, blocks: Mapping[int, tuple[int, int]]) -> None:
        """See `check_gguf_header`."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        (version,) = struct.unpack_from("<I", self._data, self._at)
        if not version & 0xFFFF:
            self._order = ">"
        if self._integer("I") not in _VERSIONS:
            raise ValueError("its version is not 2 or 3")
        tensors, entries = self._integer("Q"), self._integer("Q")
        for _ in range(entries):
            self._entry()
        places = [self._tensor(blocks) for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        end, last = 0, ""
        for offset, size, name in sorted(places):
            if offset < end:
                raise ValueError(f"the tensors {last!r} and {name!r} overlap")
            end, last = offset + size, name
        if start + end > len(self._data):
            raise ValueError(f"the tensor {last!r} ends behind the end of the file")

    def _entry(self) -> None:
        """A key of the metadata and its value."""
        key, kind = self._text(), self._integer("I")
        if key == _ALIGNMENT:
            (value,) = struct.unpack_from(self._order + "I", self._data, self._at)
            if kind != _UINT32 or value & (value - 1) or not value:
                raise ValueError(f"{_ALIGNMENT} is {value}, not a power of two")
            self._alignment = value
        if kind == _TEXT:
            self._text()
        elif kind == _LIST:
            self._list(key)
        else:
            self._skip(self._size(kind))

    def _list(self, key: str) -> None:
        kind, count = self._integer("I"), self._integer("Q")
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise ValueError(f"its metadata up to {key[:80]!r} have {self._elements} elements")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._integer("Q"))
        else:
            self._skip(count * self._size(kind))

    def _tensor(self, blocks: Mapping[int, tuple[int, int]]) -> tuple[int, int, str]:
        """Offset, bytes and name of a tensor."""
        name, axes = self._text(), self._integer("I")
        if not 1 <= axes <= _MOST_AXES:
            raise ValueError(f"the tensor {name[:80]!r} has {axes} axes")
        shape = [self._integer("Q") for _ in range(axes)]
        kind, offset = self._integer("I"), self._integer("Q")
        elements, size = blocks.get(kind, (1, 0))  # those that are not known are refused by their names later
        if 0 in shape or shape[0] % elements or offset % self._alignment:
            raise ValueError(f"the tensor {name[:80]!r} has the shape {shape} at {offset}")
        return offset, math.prod(shape) // elements * size, name

    def _text(self) -> str:
        length = self._integer("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self._at:
            raise ValueError("it ends within its header")
        self._at += count

    def _integer(self, form: str) -> int:
        (value,) = struct.unpack_from(self._order + form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SCALARS:
            raise ValueError(f"a value of its metadata has the type {kind}")
        return _SCALARS[kind]
