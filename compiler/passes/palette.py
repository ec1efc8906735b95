"""Palettes: an array of few distinct values as an index of a few bits an element, and the table of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from compiler.passes.matching import Array

# Below this, the kernel that expands an array is larger than what it saves.
SMALLEST = 4096
LARGEST_TABLE = 256
_SAMPLE = 4096
# A multiple of 8 elements ends at a whole byte, whatever the width of an index.
_CHUNK = 1 << 20
_DTYPES = ("float32", "int8", "uint8")


@dataclass(frozen=True, eq=False)
class Palette:
    """An array as indices into a table.

    Attributes:
        packed: uint8; index number i is in the bits [i * bits, (i + 1) * bits), counted from the lowest bit of the
            first byte. One byte more than needed, so that two bytes can be read anywhere.
        table: the distinct values, at most `2**bits`.
        shape: of the array.
    """

    packed: Array
    table: Array
    bits: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.table.nbytes

    def kernel(self, packed: Any, table: Any) -> Any:
        """A tensor expression of `packed` and `table` that gives the array."""
        # The number of a bit must fit.
        index = "int32" if self.packed.size < 2**27 else "int64"

        def element(*at: Any) -> Any:
            place = tirx.const(0, index)
            for size, each in zip(self.shape, at, strict=True):
                place = place * size + tirx.Cast(index, each)
            bit = place * self.bits
            low, high = (tirx.Cast("int32", packed(bit // 8 + after)) for after in (0, 1))
            code = ((low | high << 8) >> tirx.Cast("int32", bit % 8)) & (2**self.bits - 1)
            return table(code)

        return te.compute(self.shape, element, name="expand_palette")


def find_palette(array: Array) -> Palette | None:
    """The palette of an array of few distinct values; None where it would not be smaller.

    Values are told apart by their bits: NaN and -0.0 come back as they were.
    """
    if str(array.dtype) not in _DTYPES or array.size < SMALLEST:
        return None
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")
    if np.unique(flat[:: max(1, flat.size // _SAMPLE)]).size > LARGEST_TABLE:
        return None
    table, codes = np.unique(flat, return_inverse=True)
    if table.size > LARGEST_TABLE:
        return None
    bits = max(1, int(table.size - 1).bit_length())
    palette = Palette(pack_bits(codes.astype(np.uint8), bits), table.view(array.dtype), bits, array.shape)
    return palette if palette.nbytes < array.nbytes else None


def pack_bits(codes: Array, bits: int) -> Array:
    """uint8 numbers below `2**bits` without the bits that they do not use, and one byte of zeros."""
    places = np.arange(bits, dtype=np.uint8)
    chunks = []
    for start in range(0, codes.size, _CHUNK):
        spread = (codes[start : start + _CHUNK, None] >> places) & 1
        chunks.append(np.packbits(spread.reshape(-1), bitorder="little"))
    return np.concatenate([*chunks, np.zeros(1, np.uint8)])
