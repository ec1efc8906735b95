"""The kernel that a block operation slides over its operand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.ethos_u.simulator.memory import FeatureMapCodes, Memory
from targets.ethos_u.simulator.registers import Registers

Array = np.ndarray
_NEAREST, _ZEROS = 1, 2


@dataclass(frozen=True)
class Window:
    """Sizes of the result and the kernel, what lies between the kernel's elements, strides, and padding."""

    height: int
    width: int
    depth: int
    kernel_height: int
    kernel_width: int
    dilation_y: int
    dilation_x: int
    stride_y: int
    stride_x: int
    top: int
    left: int
    bottom: int
    right: int
    upscale: int
    part_kernel: bool

    @classmethod
    def of(cls, registers: Registers) -> Window:
        """As the registers say."""
        stride = registers[0x122]
        dilation_y, dilation_x = 1 + (stride >> 4 & 1), 1 + (stride >> 3 & 1)
        return cls(
            height=registers[0x112] + 1,
            width=registers[0x111] + 1,
            depth=registers[0x113] + 1,
            kernel_height=registers[0x121] // dilation_y + 1,
            kernel_width=registers[0x120] // dilation_x + 1,
            dilation_y=dilation_y,
            dilation_x=dilation_x,
            stride_y=1 + (stride >> 1 & 1) + ((stride >> 9 & 1) << 1),
            stride_x=1 + (stride & 1) + ((stride >> 6 & 1) << 1),
            top=registers[0x100],
            left=registers[0x101],
            right=registers[0x102],
            bottom=registers[0x103],
            upscale=registers[0x107],
            part_kernel=bool(stride >> 2 & 1),
        )

    @property
    def padded_height(self) -> int:
        """Rows that the kernel sees, with padding."""
        return (self.height - 1) * self.stride_y + (self.kernel_height - 1) * self.dilation_y + 1

    @property
    def padded_width(self) -> int:
        """Columns that the kernel sees, with padding."""
        return (self.width - 1) * self.stride_x + (self.kernel_width - 1) * self.dilation_x + 1

    def part(self, data: Array, y: int, x: int) -> Array:
        """What the place (y, x) of the kernel meets at each place of the result."""
        y, x = y * self.dilation_y, x * self.dilation_x
        rows = slice(y, y + (self.height - 1) * self.stride_y + 1, self.stride_y)
        columns = slice(x, x + (self.width - 1) * self.stride_x + 1, self.stride_x)
        return data[rows, columns]


def operand(
    memory: Memory, registers: Registers, codes: FeatureMapCodes, window: Window, depth: int, zero: int, fill: int = 0
) -> Array:
    """The operand less its zero point, upscaled, with padding of `fill` around it."""
    height = window.padded_height - window.top - window.bottom
    width = window.padded_width - window.left - window.right
    if not window.upscale:
        data = memory.read(registers, codes, height, width, depth) - zero
    else:
        small = memory.read(registers, codes, -(-height // 2), -(-width // 2), depth) - zero
        data = np.zeros((small.shape[0] * 2, small.shape[1] * 2, depth), np.int64)
        if window.upscale == _NEAREST:
            data[...] = small.repeat(2, 0).repeat(2, 1)
        else:
            data[::2, ::2] = small
        data = data[:height, :width]
    around = ((window.top, window.bottom), (window.left, window.right), (0, 0))
    return np.pad(data, around, constant_values=fill)
