"""The tensors of one quantized weight, validated when read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder
from compiler.frontends.llm.weights import Array, Groups, Matrix

_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Parts:
    """Tensors of a module, by the suffix after the module's name."""

    folder: SafetensorsFolder
    module: str

    def has(self, end: str) -> bool:
        """True if there is such a tensor."""
        return self.module + end in self.folder.names

    def dtype(self, end: str) -> str:
        """Return a tensor's element type by numpy's name. Raises InvalidModelError if it is missing."""
        self._expect(end)
        return self.folder.dtype(self.module + end)

    def shape(self, end: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises InvalidModelError if it is missing."""
        self._expect(end)
        return self.folder.shape(self.module + end)

    def integers(self, end: str, dtypes: Sequence[str], shape: Sequence[int] | None = None) -> Array:
        """Return a memory-mapped tensor of one of these numpy types. Raises InvalidModelError for another type or
        shape."""
        self._expect(end)
        stored = self.folder.stored(self.module + end)
        if str(stored.dtype) not in dtypes:
            raise self.wrong(end, f"has element type {stored.dtype}, expected {' or '.join(dtypes)}")
        if shape is not None and stored.shape != tuple(shape):
            raise self.wrong(end, f"has shape {stored.shape}, expected {tuple(shape)}")
        return stored

    def floats(self, end: str, shape: Sequence[int] | None = None) -> Array:
        """Return a float tensor, bfloat16 converted to float32; all numbers must be finite. Raises
        InvalidModelError."""
        stored = self.integers(end, _FLOATS, shape)
        stored = stored.astype(np.float32) if stored.dtype == ml_dtypes.bfloat16 else stored
        if not np.isfinite(stored).all():
            raise self.wrong(end, "contains non-finite numbers")
        return stored

    def matrix_shape(self, end: str) -> tuple[int, int]:
        """Return the shape of a 2-D tensor. Raises InvalidModelError for other ranks, or if it is missing."""
        shape = self.shape(end)
        if len(shape) != 2 or not all(shape):
            raise self.wrong(end, f"has shape {shape}, expected two axes")
        return shape[0], shape[1]

    def wrong(self, end: str, what: str) -> InvalidModelError:
        """Return an error about a tensor."""
        return InvalidModelError(f"{self.folder.origin}: tensor {self.module + end!r} {what}")

    def _expect(self, end: str) -> None:
        if not self.has(end):
            raise InvalidModelError(
                f"{self.folder.origin} lacks the tensor {self.module + end!r}", "the checkpoint is not complete"
            )


@dataclass(frozen=True)
class Scheme:
    """Storage format of a package's quantized weights.

    Attributes:
        marks: name suffixes of tensors that mark their module's weight as quantized.
        ends: name suffixes of all tensors that belong to a weight.
        shape: returns the shape of a weight without reading its data.
        read: reads a weight with leading axes flattened to rows. Both raise InvalidModelError for damaged tensors.
        unused: name suffixes of tensors that weights do not need, such as activation scales.
    """

    marks: tuple[str, ...]
    ends: tuple[str, ...]
    shape: Callable[[Parts], tuple[int, ...]]
    read: Callable[[Parts], Matrix]
    unused: tuple[str, ...] = ()


def unpacked(words: Array, bits: int, count: int) -> Array:
    """Unpack the first `count` integers of each row of words, as uint8; the lowest bits of a word come first.

    Args:
        words: any integers, (rows, words of a row).
        bits: bits per integer: 2, 3, 4 or 8; 3-bit integers may cross word boundaries.
        count: number of integers, at most the capacity of a row.
    """
    rows = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return rows[:, :count]
    if bits == 3:
        each = np.unpackbits(rows, axis=1, bitorder="little")[:, : 3 * count].reshape(len(rows), count, 3)
        return each[..., 0] | each[..., 1] << 1 | each[..., 2] << 2
    per_byte = 8 // bits
    values = np.empty((*rows.shape, per_byte), np.uint8)
    for at in range(per_byte):
        np.bitwise_and(rows >> np.uint8(bits * at), np.uint8((1 << bits) - 1), out=values[..., at])
    return values.reshape(len(rows), -1)[:, :count]


def words_of(count: int, bits: int) -> int:
    """Number of 32-bit words for `count` integers, packed without gaps; 2, 4 and 8-bit integers never cross words."""
    return -(-count * bits // 32)


def whole(depth: int) -> int:
    """Return the group size that covers a whole row, as kernels require."""
    return -(-depth // 32) * 32


def order_of(parts: Parts, end: str, depth: int, size: int) -> Array | None:
    """Return the features sorted by group (GPTQ's act-order); None if already sorted, or without such a tensor."""
    if not parts.has(end):
        return None
    groups = parts.integers(end, ("int32", "int64"), (depth,))
    in_order = np.arange(depth) // size
    if np.array_equal(groups, in_order):
        return None
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], in_order):
        raise parts.wrong(end, f"does not put {size} features into each of {-(-depth // size)} groups")
    return order


_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def fp4(codes: Array, scales: Array, size: int) -> Matrix:
    """Read 4-bit floats (E2M1), two per byte, the first in the low half, with scales of `size` neighbors.

    Twice such a number is an integer, so that it is stored as a 5-bit integer.

    Args:
        codes: uint8 (rows, depth / 2).
        scales: float32 (rows, groups).
    """
    depth = 2 * codes.shape[1]
    return Matrix("INT5", _FP4[unpacked(codes, 4, depth)], depth, Groups(size, scales * np.float32(0.5)))


def powers(exponents: Array) -> Array:
    """Convert scales stored as exponents of 2 with bias 127 (E8M0) to float32."""
    scales: Array = np.ldexp(np.float32(1), exponents.view(np.uint8).astype(np.int32) - 127)
    return scales
