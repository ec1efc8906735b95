"""How the hardware multiplies by a fraction and rounds."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
TFL, TRUNCATE, NATURAL = range(3)


def scaled(values: Array, multiplier: Array | int, shift: Array | int, rounding: int) -> Array:
    """values * multiplier / 2**shift in int64; products of 40-bit sums and 32-bit multipliers that do not fit raise.

    Raises:
        OverflowError: a product does not fit 64 bits, which the hardware's 72-bit one would.
    """
    multiplier, shift = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    largest = float(np.abs(values.astype(np.float64)).max(initial=0.0)) * float(np.abs(multiplier).max())
    if largest >= 2.0**62:
        return _in_python(values, multiplier, shift, rounding)
    product = values.astype(np.int64) * multiplier
    if rounding == TRUNCATE:
        return product >> shift
    if rounding == TFL:
        return _double_rounded(product, shift)
    return np.where(shift > 0, (product + (np.int64(1) << np.maximum(shift - 1, 0))) >> shift, product)


def _double_rounded(product: Array, shift: Array) -> Array:
    """Round half away from zero after 31 bits, then again: what TensorFlow Lite does; TOSA's DOUBLE_ROUND."""
    half = np.int64(1) << np.maximum(shift - 1, 0)
    nudge = np.where(shift > 31, np.where(product >= 0, np.int64(1) << 30, -(np.int64(1) << 30)), 0)
    return np.where(shift > 0, (product + half + nudge) >> shift, product)


def _in_python(values: Array, multiplier: Array, shift: Array, rounding: int) -> Array:
    """With integers of any size."""
    wide = values.astype(object) * multiplier.astype(object)
    shifts = np.broadcast_to(shift, wide.shape)
    result = np.empty(wide.shape, np.int64)
    for place in np.ndindex(wide.shape):
        product, bits = int(wide[place]), int(shifts[place])
        if rounding != TRUNCATE and bits > 0:
            product += 1 << (bits - 1)
            if rounding == TFL and bits > 31:
                product += (1 << 30) if int(wide[place]) >= 0 else -(1 << 30)
        result[place] = _wrapped(product >> bits)
    return result


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
