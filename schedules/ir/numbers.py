"""Small arithmetic on sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from schedules.ir.tir import Index

WORD_BYTES = 4  # bytes of a word
SIGN_BITS = 0x80808080 - (1 << 32)  # an int32 whose XOR converts four bytes between signed and unsigned


@overload
def ceil_div(a: int, b: int) -> int: ...
@overload
def ceil_div(a: Index, b: Index) -> Index: ...
def ceil_div(a: Index, b: Index) -> Index:
    """a / b, rounded up."""
    return (a + b - 1) // b


def falling_halves(size: int) -> list[int]:
    """Decreasing powers of two below `size`; the remainder of a dynamic extent is split into these."""
    return [1 << power for power in reversed(range((size - 1).bit_length()))]
