"""Small arithmetic on sizes."""

from __future__ import annotations

QUAD = 4  # bytes of a word


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
