"""The tensors of one quantized weight, checked as they are read."""

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
        """The element type of a tensor by numpy's name. Raises InvalidModelError where it is missing."""
        self._expect(end)
        return self.folder.dtype(self.module + end)

    def shape(self, end: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InvalidModelError where it is missing."""
        self._expect(end)
        return self.folder.shape(self.module + end)

    def integers(self, end: str, dtypes: Sequence[str], shape: Sequence[int] | None = None) -> Array:
        """A tensor of one of these types of numpy, mapped. Raises InvalidModelError for another type or shape."""
        self._expect(end)
        found = self.folder.stored(self.module + end)
        if str(found.dtype) not in dtypes:
            raise self.wrong(end, f"has element type {found.dtype}, expected {' or '.join(dtypes)}")
        if shape is not None and found.shape != tuple(shape):
            raise self.wrong(end, f"has shape {found.shape}, expected {tuple(shape)}")
        return found

    def floats(self, end: str, shape: Sequence[int] | None = None) -> Array:
        """A tensor of floats, as they are stored or, of bfloat16, as float32, all finite. Raises InvalidModelError."""
        found = self.integers(end, _FLOATS, shape)
        found = found.astype(np.float32) if found.dtype == ml_dtypes.bfloat16 else found
        if not np.isfinite(found).all():
            raise self.wrong(end, "holds numbers that are not finite")
        return found

    def matrix_shape(self, end: str) -> tuple[int, int]:
        """The shape of a tensor of two axes. Raises InvalidModelError for one of others, or of none."""
        shape = self.shape(end)
        if len(shape) != 2 or not all(shape):
            raise self.wrong(end, f"has shape {shape}, expected two axes")
        return shape[0], shape[1]

    def wrong(self, end: str, what: str) -> InvalidModelError:
        """An error about a tensor."""
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
        marks: name suffixes of tensors that show that their module's weight is quantized.
        ends: name suffixes of all tensors that belong to a weight.
        shape: the shape of a weight, its data unread.
        read: a weight, all leading axes as rows. Both raise InvalidModelError for damaged tensors.
        unused: ends of the names of tensors that hold nothing for weights, such as scales of activations.
    """

    marks: tuple[str, ...]
    ends: tuple[str, ...]
    shape: Callable[[Parts], tuple[int, ...]]
    read: Callable[[Parts], Matrix]
    unused: tuple[str, ...] = ()


def unpacked(words: Array, bits: int, count: int) -> Array:
    """The first `count` integers of each row of words, as uint8; the lowest bits of a word come first.

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
    """The group size that covers a whole row, as kernels read it."""
    return -(-depth // 32) * 32


def order_of(parts: Parts, end: str, depth: int, size: int) -> Array | None:
    """Features sorted by group (GPTQ's act-order); None if they already are, or there is no tensor."""
    if not parts.has(end):
        return None
    found = parts.integers(end, ("int32", "int64"), (depth,))
    in_order = np.arange(depth) // size
    if np.array_equal(found, in_order):
        return None
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], in_order):
        raise parts.wrong(end, f"does not put {size} features into each of {-(-depth // size)} groups")
    return order


_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def fp4(codes: Array, scales: Array, size: int) -> Matrix:
    """Floats of 4 bits (E2M1), two a byte, the first in the low half, with scales of `size` neighbours.

    Twice such a number is an integer, so that it is multiplied as one of 5 bits.

    Args:
        codes: uint8 (rows, depth / 2).
        scales: float32 (rows, groups).
    """
    depth = 2 * codes.shape[1]
    return Matrix("INT5", _FP4[unpacked(codes, 4, depth)], depth, Groups(size, scales * np.float32(0.5)))


def powers(exponents: Array) -> Array:
    """Scales stored as exponents of 2 with bias 127 (E8M0), as float32."""
    scales: Array = np.ldexp(np.float32(1), exponents.view(np.uint8).astype(np.int32) - 127)
    return scales
