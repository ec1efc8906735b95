"""Registers of a command stream, memory regions, and the layouts of feature maps in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# The command stream: words decoded to operations, each with the state of the registers at its start.
#
# Codes from the Ethos-U55 and U65 interface that Arm publishes with its driver (`ethosu55_interface.h`, Apache-2.0).


STOP, CONV, DEPTHWISE, POOL, ELEMENTWISE = 0x0, 0x2, 0x3, 0x5, 0x6
DMA_START, DMA_WAIT, KERNEL_WAIT, PMU_MASK = 0x10, 0x11, 0x12, 0x13
_OPERATIONS = {STOP, CONV, DEPTHWISE, POOL, ELEMENTWISE, DMA_START, DMA_WAIT, KERNEL_WAIT, PMU_MASK}
_FIRST_SETTING = 0x100
# Words of the header read by a driver.
_OPTIMIZER_CONFIG, _COMMAND_STREAM, _NOP = 1, 2, 5


@dataclass
class Registers:
    """Register values set so far: `short` holds 16-bit values by code, `wide` up to 48 bits."""

    short: dict[int, int] = field(default_factory=dict)
    wide: dict[int, int] = field(default_factory=dict)

    def __getitem__(self, code: int) -> int:
        return self.short.get(code, 0)

    def signed(self, code: int) -> int:
        """A signed 16-bit setting."""
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
    """(code, parameter, registers) of each operation, in order, until the program stops. Raises ValueError if it is not
    a program, or has a command that the hardware lacks."""
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
    raise ValueError("the header has no commands after it")


# Memory regions, and the layouts of feature maps in them.

Array = np.ndarray
_TYPES = {0: "i1", 1: "i2", 2: "i4"}
_BRICK = 16


@dataclass(frozen=True)
class FeatureMapCodes:
    """Registers that describe a feature map."""

    base: int
    stride_x: int
    stride_y: int
    stride_c: int
    region: int
    precision: int
    precision_shift: int
    width0: int
    height0: int
    height1: int


IFM = FeatureMapCodes(0x00, 0x04, 0x05, 0x06, 0x10F, 0x105, 2, 0x10A, 0x10B, 0x10C)
IFM2 = FeatureMapCodes(0x80, 0x84, 0x85, 0x86, 0x18F, 0x185, 2, 0x18A, 0x18B, 0x18C)
OFM = FeatureMapCodes(0x10, 0x14, 0x15, 0x16, 0x11F, 0x114, 1, 0x11A, 0x11B, 0x11C)


class Memory:
    """The regions that a program addresses, by number, as bytes."""

    def __init__(self, regions: dict[int, Array]) -> None:
        self.regions = regions

    def region(self, number: int) -> Array:
        """The bytes of a region. Raises ValueError if the program has no such region."""
        found = self.regions.get(number & 7)
        if found is None:
            raise ValueError(f"the program uses region {number & 7}, which it does not have")
        return found

    def read(self, registers: Registers, codes: FeatureMapCodes, height: int, width: int, depth: int) -> Array:
        """A feature map (height, width, depth) as int64."""
        positions, dtype = _positions(registers, codes, height, width, depth)
        region = self.region(registers[codes.region])
        _check(positions, dtype, region)
        parts = np.stack([region[positions + byte] for byte in range(dtype.itemsize)], -1)
        return np.ascontiguousarray(parts).view(dtype)[..., 0].astype(np.int64)

    def write(self, registers: Registers, codes: FeatureMapCodes, values: Array) -> None:
        """Store a feature map (height, width, depth)."""
        height, width, depth = values.shape
        positions, dtype = _positions(registers, codes, height, width, depth)
        region = self.region(registers[codes.region])
        _check(positions, dtype, region)
        stored = np.ascontiguousarray(values.astype(dtype)[..., None]).view(np.uint8)
        for byte in range(dtype.itemsize):
            region[positions + byte] = stored[..., byte]


def _positions(
    registers: Registers, codes: FeatureMapCodes, height: int, width: int, depth: int
) -> tuple[Array, np.dtype]:
    """The address of each element and its type. A feature map consists of up to four tiles, each with its own base."""
    precision = registers[codes.precision]
    dtype = np.dtype("<" + _TYPES[precision >> codes.precision_shift & 3])
    if not precision & 1:
        dtype = np.dtype(dtype.str.replace("i", "u"))
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    channel = np.arange(depth)[None, None]
    height0, height1 = registers[codes.height0] + 1, registers[codes.height1] + 1
    width0 = registers[codes.width0] + 1
    is_left = x < width0
    top = np.where(is_left, y < height0, y < height1)
    bases = [registers.address(codes.base + tile) for tile in range(4)]
    base = np.where(is_left, np.where(top, bases[0], bases[2]), np.where(top, bases[1], bases[3]))
    row = np.where(top, y, np.where(is_left, y - height0, y - height1))
    column = np.where(is_left, x, x - width0)
    if precision >> 6 & 3:  # bricks of 16 channels
        inner = channel // _BRICK * registers.stride(codes.stride_c) + channel % _BRICK * dtype.itemsize
        across = dtype.itemsize * _BRICK
    else:
        inner, across = channel * dtype.itemsize, registers.stride(codes.stride_x)
    return base + row * registers.stride(codes.stride_y) + column * across + inner, dtype


def _check(positions: Array, dtype: np.dtype[Any], region: Array) -> None:
    if positions.size and (positions.min() < 0 or positions.max() + dtype.itemsize > len(region)):
        raise ValueError(
            f"the program reaches bytes {positions.min()} to {positions.max() + dtype.itemsize}"
            f" of a region of {len(region)}"
        )
