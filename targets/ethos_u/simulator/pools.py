"""Pooling of a command stream: maxima, averages, and sums over channels."""

from __future__ import annotations

import numpy as np

from targets.ethos_u.simulator.memory import IFM, Memory
from targets.ethos_u.simulator.registers import Registers
from targets.ethos_u.simulator.scaling import NATURAL, scaled
from targets.ethos_u.simulator.window import Window, operand

Array = np.ndarray
_MAXIMUM, _AVERAGE, _SUM = range(3)
_LOWEST = -(1 << 40)


def pooled(memory: Memory, registers: Registers, window: Window, kind: int) -> Array:
    """The scaled result of a pooling operation, (height, width, channels) int64, without its zero point."""
    zero = registers.signed(0x109)
    rounding = registers[0x114] >> 14 & 3
    if kind == _SUM:
        data = operand(memory, registers, IFM, window, registers[0x104] + 1, zero)
        total = window.part(data, 0, 0).sum(-1, keepdims=True)
    else:
        fill = _LOWEST if kind == _MAXIMUM else 0
        data = operand(memory, registers, IFM, window, window.depth, zero, fill)
        parts = [window.part(data, y, x) for y in range(window.kernel_height) for x in range(window.kernel_width)]
        total = np.maximum.reduce(parts) if kind == _MAXIMUM else np.sum(parts, 0)
    padded = window.top or window.left or window.bottom or window.right
    if kind == _AVERAGE and padded:
        # The hardware counts the elements that are not padding at each place and divides by that; the scale says
        # nothing.
        return _divided(total, _counts(window))
    if registers[0x114] >> 8 & 1:
        multiplier, shift = registers.fraction(0x24)
        return scaled(total, multiplier, shift, rounding)
    return total


def _counts(window: Window) -> Array:
    """How many elements that are not padding each place of the result averages."""
    inner = np.ones(
        (window.padded_height - window.top - window.bottom, window.padded_width - window.left - window.right, 1),
        np.int64,
    )
    inner = np.pad(inner, ((window.top, window.bottom), (window.left, window.right), (0, 0)))
    parts = [window.part(inner, y, x) for y in range(window.kernel_height) for x in range(window.kernel_width)]
    return np.asarray(np.sum(parts, 0))


def _divided(total: Array, counts: Array) -> Array:
    """By reciprocals of 30 bits and a shift, rounded to the nearest: `reciprocal_scale` of the TOSA specification."""
    bits = np.ceil(np.log2(counts)).astype(np.int64)
    multiplier = (((np.int64(1) << 30) + 1) << bits) // counts
    return scaled(total, multiplier, 30 + bits, NATURAL)
