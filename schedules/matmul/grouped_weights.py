"""The layout of 4-bit and 8-bit weights with one scale per group of neighbours along the depth.

Columns lie in panels of a few vectors. Of 8 bits: int8 (panels, depth, width). Of 4: int32 (panels, ceil(depth / 8),
width), eight neighbours along the depth per word. The first of each pair of neighbours is in the low half of the word,
the second in the high one, so that a shift gives the pair as two 16-bit lanes, too. Scales and zero points:
(panels, groups, width).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schedules.machine import Machine

PER_WORD = 8
# Registers from which on a tile of four vectors leaves room for enough rows.
_MANY_REGISTERS = 32


def panel_width(columns: int, machine: Machine) -> int:
    """Columns per panel: for a single row, the accumulators of four vectors hide the latency of an addition."""
    lanes = machine.lanes("float32")
    most = 4 if machine.vector_registers >= _MANY_REGISTERS else 2
    return lanes * max(1, min(most, -(-columns // lanes)))


def shift_of(place: int) -> int:
    """The lowest bit of neighbour `place` (0 to 7) within its word."""
    return 4 * (place // 2) + 16 * (place % 2)


def pack_words(weight: NDArray[np.int8], width: int) -> NDArray[np.int32]:
    """Pack a (depth, columns) weight with values -8 to 7 into words, zero-padded."""
    depth, columns = weight.shape
    steps, panels = -(-depth // PER_WORD), -(-columns // width)
    padded = np.zeros((steps, PER_WORD, panels, width), np.uint32)
    rows = np.zeros((steps * PER_WORD, panels * width), np.uint8)
    rows[:depth, :columns] = weight.view(np.uint8) & 15
    padded[:] = rows.reshape(steps, PER_WORD, panels, width)
    words = np.zeros((steps, panels, width), np.uint32)
    for place in range(PER_WORD):
        words |= padded[:, place] << np.uint32(shift_of(place))
    return np.ascontiguousarray(words.transpose(1, 0, 2)).view(np.int32)


def pack_groups(numbers: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    """Scales or zero points (groups, columns) as (panels, groups, width)."""
    groups, columns = numbers.shape
    panels = -(-columns // width)
    padded = np.zeros((groups, panels * width), numbers.dtype)
    padded[:, :columns] = numbers
    return np.ascontiguousarray(padded.reshape(groups, panels, width).transpose(1, 0, 2))
