"""Powers with positive integer exponents as few products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def by_squaring(base: T, exponent: int, multiply: Callable[[T, T], T]) -> T:
    """Return base**exponent for an exponent of 1 or more, by at most 2 log2(exponent) products."""
    if exponent == 1:
        return base
    root = by_squaring(base, exponent // 2, multiply)
    square = multiply(root, root)
    return multiply(square, base) if exponent % 2 else square
