"""Convolutions and depthwise convolutions of a command stream."""

from __future__ import annotations

import numpy as np

from targets.ethos_u.simulator import weights
from targets.ethos_u.simulator.memory import IFM, Memory
from targets.ethos_u.simulator.registers import Registers
from targets.ethos_u.simulator.scaling import scaled
from targets.ethos_u.simulator.window import Window, operand

Array = np.ndarray
_SCALE_BYTES = 10
# Weight and scale streams: (base, length) of each core.
_WEIGHTS = ((0x20, 0x21), (0x90, 0x91))
_SCALES = ((0x22, 0x23), (0x92, 0x93))


def product(memory: Memory, registers: Registers, window: Window, depthwise: bool, macs: int, cores: int) -> Array:
    """The scaled sums of a block operation, (height, width, filters) int64, without the zero point of the result.

    With two cores each computes every other block of channels from streams of its own.
    """
    channels = window.depth if depthwise else registers[0x104] + 1
    data = operand(memory, registers, IFM, window, channels, registers.signed(0x109))
    block = registers[0x117] + 1
    result = np.zeros((window.height, window.width, window.depth), np.int64)
    for core in range(cores):
        # Core n has the filters n, n + cores, ... of the result.
        mine = np.arange(core, window.depth, cores)
        if len(mine) == 0:
            continue
        stream = _stream(memory, registers, registers[0x128], _WEIGHTS[core])
        shape = (len(mine), window.kernel_height, window.kernel_width, 1 if depthwise else channels)
        layout = weights.Layout(
            shape,
            -(-block // cores),
            macs,
            window.part_kernel,
            depthwise,
            weights.SUBKERNEL // window.dilation_y,
            weights.SUBKERNEL // window.dilation_x,
        )
        ordered = weights.filters(weights.decoded(stream), layout)
        sums = _depthwise(data[:, :, mine], ordered, window) if depthwise else _dense(data, ordered, window)
        bias, multiplier, shift = _scales(_stream(memory, registers, registers[0x129], _SCALES[core]), len(mine))
        result[:, :, mine] = scaled(sums + bias, multiplier, shift, registers[0x114] >> 14 & 3)
    return result


def _stream(memory: Memory, registers: Registers, region: int, codes: tuple[int, int]) -> bytes:
    base, length = registers.address(codes[0]), registers.address(codes[1])
    return bytes(memory.region(region)[base : base + length])


def _dense(data: Array, ordered: Array, window: Window) -> Array:
    """In float64, which is exact: sums stay below 2**53."""
    depth = data.shape[2]
    result = np.zeros((window.height * window.width, len(ordered)))
    for y in range(window.kernel_height):
        for x in range(window.kernel_width):
            part = window.part(data, y, x).reshape(-1, depth).astype(np.float64)
            result += part @ ordered[:, y, x].T.astype(np.float64)
    return result.astype(np.int64).reshape(window.height, window.width, -1)


def _depthwise(data: Array, ordered: Array, window: Window) -> Array:
    result = np.zeros((window.height, window.width, len(ordered)), np.int64)
    for y in range(window.kernel_height):
        for x in range(window.kernel_width):
            result += window.part(data, y, x) * ordered[:, y, x, 0]
    return result


def _scales(stream: bytes, count: int) -> tuple[Array, Array, Array]:
    """Biases (40 bits), multipliers and shifts of the filters."""
    if len(stream) < count * _SCALE_BYTES:
        raise ValueError(f"scales of {count} filters take {count * _SCALE_BYTES} bytes, and there are {len(stream)}")
    rows = [stream[place : place + _SCALE_BYTES] for place in range(0, count * _SCALE_BYTES, _SCALE_BYTES)]
    return (
        np.array([int.from_bytes(row[:5], "little", signed=True) for row in rows], np.int64),
        np.array([int.from_bytes(row[5:9], "little") for row in rows], np.int64),
        np.array([row[9] & 0x3F for row in rows], np.int64),
    )
