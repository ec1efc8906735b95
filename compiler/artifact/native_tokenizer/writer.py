"""Writes the binary form that `text/reader.h` of the C++ runtime reads: little-endian, lengths before contents."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np


class Writer:
    """Appends values to a growing file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """Append an integer from 0 to 2**32 - 1."""
        self._parts.append(struct.pack("<I", value))

    def numbers(self, values: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.uint32]]) -> None:
        """Append a list of such integers."""
        self.number(len(values))
        self._parts.append(np.asarray(values, "<u4").tobytes())

    def text(self, value: str) -> None:
        """Append a text as UTF-8."""
        content = value.encode()
        self.number(len(content))
        self._parts.append(content)

    def texts(self, values: Iterable[str]) -> None:
        """Append a list of texts: their lengths, then all bytes."""
        contents = [value.encode() for value in values]
        self.numbers([len(content) for content in contents])
        self._parts += contents

    def append(self, other: Writer) -> None:
        """Append the contents of another writer."""
        self._parts += other._parts

    def content(self) -> bytes:
        """Everything that was written."""
        return b"".join(self._parts)
