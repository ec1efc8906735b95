"""Slopes of ALiBi (attention with linear biases)."""

from __future__ import annotations


def alibi_slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """The slope of each head: what its scores gain per position; the last of a power of two of heads has 2 ** -most."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-most * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-most / 2 * (2 * head + 1) / power) for head in range(heads - power)]
    return tuple(slopes)
