"""The command stream: words to operations, each with the state of the registers as it starts.

Codes from the Ethos-U55 and U65 interface that Arm publishes with its driver (`ethosu55_interface.h`, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

STOP, CONV, DEPTHWISE, POOL, ELEMENTWISE = 0x0, 0x2, 0x3, 0x5, 0x6
DMA_START, DMA_WAIT, KERNEL_WAIT, PMU_MASK = 0x10, 0x11, 0x12, 0x13
_OPERATIONS = {STOP, CONV, DEPTHWISE, POOL, ELEMENTWISE, DMA_START, DMA_WAIT, KERNEL_WAIT, PMU_MASK}
_FIRST_SETTING = 0x100
# Words of the header that a driver reads.
_OPTIMIZER_CONFIG, _COMMAND_STREAM, _NOP = 1, 2, 5


@dataclass
class Registers:
    """What has been set so far: `short` holds 16 bits by code, `wide` up to 48."""

    short: dict[int, int] = field(default_factory=dict)
    wide: dict[int, int] = field(default_factory=dict)

    def __getitem__(self, code: int) -> int:
        return self.short.get(code, 0)

    def signed(self, code: int) -> int:
        """A 16-bit setting with a sign."""
        value = self[code]
        return value - 0x10000 if value & 0x8000 else value

    def address(self, code: int) -> int:
        """A setting of up to 40 bits."""
        return self.wide.get(code, 0)

    def stride(self, code: int) -> int:
        """An address difference, which may be negative."""
        value = self.wide.get(code, 0)
        return value - (1 << 40) if value >> 39 & 1 else value

    def fraction(self, code: int) -> tuple[int, int]:
        """A multiplier and a shift."""
        value = self.wide.get(code, 0)
        return value & 0xFFFFFFFF, value >> 32 & 0x3F


def operations(program: bytes) -> Iterator[tuple[int, int, Registers]]:
    """(code, parameter, registers) of each operation, in order, until the program stops.

    Raises:
        ValueError: it is not a program, or has a command that the hardware does not have.
    """
    words = _commands(program)
    registers = Registers()
    position = 0
    while position < len(words):
        word = int(words[position])
        code, parameter = word & 0x3FF, word >> 16
        if word >> 14 & 3:
            registers.wide[code] = int(words[position + 1]) | parameter << 32
            position += 2
            continue
        position += 1
        if code >= _FIRST_SETTING:
            registers.short[code] = parameter
        elif code == STOP:
            return
        elif code in _OPERATIONS:
            yield code, parameter, registers
        else:
            raise ValueError(f"command {code:#x} is unknown to the hardware")
    raise ValueError("the program does not stop")


def _commands(program: bytes) -> np.ndarray:
    if program[:4] != b"COP1":
        raise ValueError("this is not a command stream of an Ethos-U")
    words = np.frombuffer(program, "<u4")
    position = 1
    while position < len(words):
        action = int(words[position])
        kind = action & 0xFF
        if kind == _COMMAND_STREAM:
            length = action >> 16 | (action >> 8 & 0xFF) << 16
            return words[position + 1 : position + 1 + length]
        if kind not in (_OPTIMIZER_CONFIG, _NOP):
            raise ValueError(f"the header has the action {kind}, which is unknown")
        position += 3 if kind == _OPTIMIZER_CONFIG else 1
    raise ValueError("the header has no commands behind it")
