"""Elementwise operations of a command stream."""

from __future__ import annotations

import numpy as np

from targets.ethos_u.simulator.memory import IFM, IFM2, Memory
from targets.ethos_u.simulator.registers import Registers
from targets.ethos_u.simulator.scaling import NATURAL, scaled
from targets.ethos_u.simulator.window import Window

Array = np.ndarray
MUL, ADD, SUB, MIN, MAX, LRELU, ABS, CLZ, SHR, SHL = range(10)
_UNARY = (LRELU, ABS, CLZ)
_BROADCAST_HEIGHT, _BROADCAST_WIDTH, _BROADCAST_DEPTH, _SWAPPED, _SCALAR = 1, 2, 4, 64, 128
_SHIFT_LEFT = {0: 20, 1: 15}
_INT32 = 2


def elementwise(memory: Memory, registers: Registers, window: Window, kind: int) -> Array:
    """The scaled result (height, width, channels) int64, without its zero point."""
    shape = (window.height, window.width, window.depth)
    left = memory.read(registers, IFM, *shape) - registers.signed(0x109)
    rounding = registers[0x114] >> 14 & 3
    is_global = bool(registers[0x114] >> 8 & 1)
    multiplier, shift = registers.fraction(0x24)
    if kind in _UNARY:
        return _unary(left, kind, multiplier, shift, is_global, rounding)
    right = _second(memory, registers, shape)
    if registers[0x180] & _SWAPPED:
        left, right = np.broadcast_to(right, shape), left
    if kind in (MIN, MAX):
        result = np.minimum(left, right) if kind == MIN else np.maximum(left, right)
        return scaled(result, multiplier, shift, rounding) if is_global else result
    if kind in (SHR, SHL):
        return _shifted(left, right, kind, rounding)
    if kind == MUL:
        result = left * right
        return scaled(result, multiplier, shift, rounding) if is_global else _int32(result, registers)
    a, b = _operands(left, right, registers)
    result = a + b if kind == ADD else a - b
    return scaled(result, multiplier, shift, rounding) if is_global else _int32(result, registers)


def _int32(values: Array, registers: Registers) -> Array:
    """32-bit results wrap around."""
    return values.astype(np.int32).astype(np.int64) if registers[0x114] >> 1 & 3 == _INT32 else values


def _second(memory: Memory, registers: Registers, shape: tuple[int, int, int]) -> Array:
    broadcast = registers[0x180]
    zero = registers.signed(0x189)
    if broadcast & _SCALAR:
        unsigned = not registers[0x185] & 1
        return np.asarray((registers[0x181] if unsigned else registers.signed(0x181)) - zero, np.int64)
    sizes = [
        1 if broadcast & flag else size
        for flag, size in zip((_BROADCAST_HEIGHT, _BROADCAST_WIDTH, _BROADCAST_DEPTH), shape, strict=True)
    ]
    return memory.read(registers, IFM2, *sizes) - zero


def _operands(left: Array, right: Array, registers: Registers) -> tuple[Array, Array]:
    """Operands of a sum, brought to a common scale: both multiplied, or one of them with a shift of the other."""
    precision = registers[0x105]
    width = precision >> 2 & 3
    if width == _INT32:
        return left, right
    mode = precision >> 8 & 3
    if mode == 0:
        return left * registers.fraction(0x25)[0], right * (registers.address(0x26) & 0xFFFFFFFF)
    multiplier, shift = registers.fraction(0x25)
    bits = _SHIFT_LEFT[width] - 1
    if mode == 1:
        return scaled(left, multiplier, shift, NATURAL), right << bits
    return left << bits, scaled(right, multiplier, shift, NATURAL)


def _unary(left: Array, kind: int, multiplier: int, shift: int, is_global: bool, rounding: int) -> Array:
    if kind == ABS:
        result = np.abs(left)
        return scaled(result, multiplier, shift, rounding) if is_global else result
    if kind == CLZ:
        return np.asarray([32 - int(value & 0xFFFFFFFF).bit_length() for value in left.ravel()]).reshape(left.shape)
    return np.where(left >= 0, left, scaled(left, multiplier, shift, rounding))


def _shifted(left: Array, right: Array, kind: int, rounding: int) -> Array:
    if kind == SHL:
        return (left << right).astype(np.int32).astype(np.int64)
    if rounding == NATURAL:
        return np.where(right > 0, (left + (np.int64(1) << np.maximum(right - 1, 0))) >> right, left)
    return left >> right
