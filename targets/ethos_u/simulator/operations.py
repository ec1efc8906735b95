"""Blocks of a command stream: windows, scaling, elementwise operations, pooling and convolutions.

The hardware's storage order of weights is undone: a stream holds the weights in blocks of output channels, then of
input channels, then of parts of the kernel, then in the micro-blocks that the multipliers process at once, with zeros
where a block exceeds an edge. See `weight_encoder` in Vela's sources (Apache-2.0).

A command stream emitted by Vela is executed operation by operation on the memory of a simulated device. It computes the
results specified by the hardware's interface, not the timing: results are exact, times are not modeled.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.simulator import memory as stream
from targets.ethos_u.simulator.memory import IFM, IFM2, OFM, FeatureMapCodes, Memory, Registers

# The kernel window that a block operation slides over its operand.


Array = np.ndarray
_NEAREST, _ZEROS = 1, 2


@dataclass(frozen=True)
class Window:
    """Sizes of the result and the kernel, dilation, strides, and padding."""

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
        """Window from the registers."""
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
        """Rows of the input including padding."""
        return (self.height - 1) * self.stride_y + (self.kernel_height - 1) * self.dilation_y + 1

    @property
    def padded_width(self) -> int:
        """Columns of the input including padding."""
        return (self.width - 1) * self.stride_x + (self.kernel_width - 1) * self.dilation_x + 1

    def part(self, data: Array, y: int, x: int) -> Array:
        """Input elements that the kernel element (y, x) is multiplied with at each position of the result."""
        y, x = y * self.dilation_y, x * self.dilation_x
        rows = slice(y, y + (self.height - 1) * self.stride_y + 1, self.stride_y)
        columns = slice(x, x + (self.width - 1) * self.stride_x + 1, self.stride_x)
        return data[rows, columns]


def operand(
    memory: Memory, registers: Registers, codes: FeatureMapCodes, window: Window, depth: int, zero: int, fill: int = 0
) -> Array:
    """The operand minus its zero point, upscaled, with padding of `fill` around it."""
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


# The hardware's multiplication by a fraction, and its rounding.


TFL, TRUNCATE, NATURAL = range(3)


def scaled(values: Array, multiplier: Array | int, shift: Array | int, rounding: int) -> Array:
    """values * multiplier / 2**shift in int64; products of 40-bit sums and 32-bit multipliers that do not fit raise.
    Raises OverflowError if a product does not fit 64 bits, although it would fit the hardware's 72."""
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
    """Round half away from zero after 31 bits, then again, like TensorFlow Lite and TOSA's DOUBLE_ROUND."""
    half = np.int64(1) << np.maximum(shift - 1, 0)
    nudge = np.where(shift > 31, np.where(product >= 0, np.int64(1) << 30, -(np.int64(1) << 30)), 0)
    return np.where(shift > 0, (product + half + nudge) >> shift, product)


def _in_python(values: Array, multiplier: Array, shift: Array, rounding: int) -> Array:
    """The same computed with Python's unbounded integers."""
    wide = values.astype(object) * multiplier.astype(object)
    shifts = np.broadcast_to(shift, wide.shape)
    result = np.empty(wide.shape, np.int64)
    for index in np.ndindex(wide.shape):
        product, bits = int(wide[index]), int(shifts[index])
        if rounding != TRUNCATE and bits > 0:
            product += 1 << (bits - 1)
            if rounding == TFL and bits > 31:
                product += (1 << 30) if int(wide[index]) >= 0 else -(1 << 30)
        result[index] = _wrapped(product >> bits)
    return result


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# Elementwise operations of a command stream.


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
    """Wrap results around at 32 bits."""
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
    """Operands of a sum at a common scale: both multiplied, or only one of them with the other shifted."""
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


# Pooling of a command stream: maxima, averages, and sums over channels.


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
        # The hardware counts the elements that are not padding at each position and divides by that; the scale register
        # is not used.
        return _divided(total, _counts(window))
    if registers[0x114] >> 8 & 1:
        multiplier, shift = registers.fraction(0x24)
        return scaled(total, multiplier, shift, rounding)
    return total


def _counts(window: Window) -> Array:
    """Number of elements that are not padding in each average."""
    inner = np.ones(
        (window.padded_height - window.top - window.bottom, window.padded_width - window.left - window.right, 1),
        np.int64,
    )
    inner = np.pad(inner, ((window.top, window.bottom), (window.left, window.right), (0, 0)))
    parts = [window.part(inner, y, x) for y in range(window.kernel_height) for x in range(window.kernel_width)]
    return np.asarray(np.sum(parts, 0))


def _divided(total: Array, counts: Array) -> Array:
    """Divide by 30-bit reciprocals and a shift, rounded to nearest: `reciprocal_scale` of the TOSA specification."""
    bits = np.ceil(np.log2(counts)).astype(np.int64)
    multiplier = (((np.int64(1) << 30) + 1) << bits) // counts
    return scaled(total, multiplier, 30 + bits, NATURAL)


# Convolutions and depthwise convolutions of a command stream.

_SCALE_BYTES = 10
# Weight and scale streams: (base, length) of each core.
_WEIGHTS = ((0x20, 0x21), (0x90, 0x91))
_SCALES = ((0x22, 0x23), (0x92, 0x93))


def product(memory: Memory, registers: Registers, window: Window, depthwise: bool, macs: int, cores: int) -> Array:
    """The scaled sums of a block operation, (height, width, filters) int64, without the zero point of the result.

    With two cores, each computes every other block of channels from its own streams.
    """
    channels = window.depth if depthwise else registers[0x104] + 1
    data = operand(memory, registers, IFM, window, channels, registers.signed(0x109))
    block = registers[0x117] + 1
    result = np.zeros((window.height, window.width, window.depth), np.int64)
    for core in range(cores):
        # Core n computes the filters n, n + cores, ... of the result.
        mine = np.arange(core, window.depth, cores)
        if len(mine) == 0:
            continue
        stream = _stream(memory, registers, registers[0x128], _WEIGHTS[core])
        shape = (len(mine), window.kernel_height, window.kernel_width, 1 if depthwise else channels)
        layout = Layout(
            shape,
            -(-block // cores),
            macs,
            window.part_kernel,
            depthwise,
            SUBKERNEL // window.dilation_y,
            SUBKERNEL // window.dilation_x,
        )
        ordered = filters(decoded(stream), layout)
        sums = _depthwise(data[:, :, mine], ordered, window) if depthwise else _dense(data, ordered, window)
        bias, multiplier, shift = _scales(_stream(memory, registers, registers[0x129], _SCALES[core]), len(mine))
        result[:, :, mine] = scaled(sums + bias, multiplier, shift, registers[0x114] >> 14 & 3)
    return result


def _stream(memory: Memory, registers: Registers, region: int, codes: tuple[int, int]) -> bytes:
    base, length = registers.address(codes[0]), registers.address(codes[1])
    return bytes(memory.region(region)[base : base + length])


def _dense(data: Array, ordered: Array, window: Window) -> Array:
    """Sums computed in float64, which is exact: they stay below 2**53."""
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
        raise ValueError(f"scales of {count} filters need {count * _SCALE_BYTES} bytes, and there are {len(stream)}")
    rows = [stream[index : index + _SCALE_BYTES] for index in range(0, count * _SCALE_BYTES, _SCALE_BYTES)]
    return (
        np.array([int.from_bytes(row[:5], "little", signed=True) for row in rows], np.int64),
        np.array([int.from_bytes(row[5:9], "little") for row in rows], np.int64),
        np.array([row[9] & 0x3F for row in rows], np.int64),
    )


# Depth of a micro-block of the result, by multiply-adds per cycle of one core; that of the operand is always 8.
_RESULT_DEPTH = {32: 4, 64: 8, 128: 8, 256: 8}
_OPERAND_DEPTH = 8
SUBKERNEL = 8


def decoded(stream: bytes) -> Array:
    """The weights of a compressed stream in the hardware's order: int16."""
    from ethosu import mlw_codec

    return np.asarray(mlw_codec.decode(bytearray(stream)), np.int64)


@dataclass(frozen=True)
class Layout:
    """Parameters that determine the order.

    Attributes:
        shape: (filters, height, width, channels); one channel for a depthwise convolution.
        block_depth: filters per block.
        part_kernel: whether parts of the kernel come before blocks of channels.
        rows, columns: size of a part of the kernel.
    """

    shape: tuple[int, int, int, int]
    block_depth: int
    macs: int
    part_kernel: bool
    depthwise: bool
    rows: int
    columns: int


def filters(stream: Array, layout: Layout) -> Array:
    """Weights from a stream, in the layout's shape."""
    order = _order(layout)
    used = min(len(order), len(stream))
    real = order[:used] >= 0
    result = np.zeros(int(np.prod(layout.shape)), np.int64)
    result[order[:used][real]] = stream[:used][real]
    return result.reshape(layout.shape)


@lru_cache(maxsize=64)
def _order(layout: Layout) -> Array:
    """For each position of the stream, the index of its weight, or -1 for padding."""
    count, height, width, channels = layout.shape
    depth_step = 16 if layout.part_kernel else 32
    parts = []
    for first in range(0, count, layout.block_depth):
        last = min(first + layout.block_depth, count)
        for channel in range(0, 1 if layout.depthwise else channels, depth_step):
            if layout.depthwise:
                depth = _OPERAND_DEPTH
            elif layout.part_kernel:
                depth = min(depth_step, channels - channel)
            else:
                depth = depth_step
            for y in range(0, height, layout.rows):
                for x in range(0, width, layout.columns):
                    parts.append(_block(layout, (first, last), (channel, depth), (y, x)))
    return np.concatenate(parts)


def _block(layout: Layout, outputs: tuple[int, int], inputs: tuple[int, int], corner: tuple[int, int]) -> Array:
    _, height, width, channels = layout.shape
    rows, columns = min(height - corner[0], layout.rows), min(width - corner[1], layout.columns)
    elements = rows * columns
    if layout.part_kernel or layout.depthwise:
        elements = -(-elements // 4) * 4
    step = _RESULT_DEPTH[layout.macs]
    outer, inner = (inputs[1], 1) if layout.part_kernel else (1, inputs[1])
    grid = np.ix_(
        np.arange(0, outer, _OPERAND_DEPTH),
        np.arange(0, outputs[1] - outputs[0], step),
        np.arange(elements),
        np.arange(0, inner, _OPERAND_DEPTH),
        np.arange(step),
        np.arange(1 if layout.depthwise else _OPERAND_DEPTH),
    )
    outer_channel, block, element, inner_channel, filter_step, channel_step = grid
    channel = inputs[0] + outer_channel + inner_channel + channel_step
    chosen = outputs[0] + block + filter_step
    y, x = corner[0] + element // columns, corner[1] + element % columns
    inside = (channel < channels) & (chosen < outputs[1]) & (element < rows * columns)
    index = ((chosen * height + y) * width + x) * channels + channel
    return np.asarray(np.where(inside, index, -1)).ravel()


NAMES = {
    stream.CONV: "convolution",
    stream.DEPTHWISE: "depthwise convolution",
    stream.POOL: "pooling",
    stream.ELEMENTWISE: "elementwise",
    stream.DMA_START: "copy",
}
_TABLE_BYTES = 256
_FIRST_TABLE = 16
_INTERNAL = 1 << 8


class Executor:
    """Runs programs for one accelerator. `counts`: number of operations run of each kind, by name."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._scratchpad = np.zeros(accelerator.scratchpad_bytes, np.uint8)
        self.counts: Counter[str] = Counter()

    def run(self, program: bytes, memory: Memory) -> None:
        """Execute a command stream on `memory`.

        Raises:
            ValueError: the program is damaged, or reaches memory that it does not have.
            NotImplementedError: an operation that Vela is not known to emit.
        """
        for code, parameter, registers in stream.operations(program):
            if code in NAMES:
                self.counts[NAMES[code]] += 1
            if code == stream.DMA_START:
                self._copy(memory, registers)
            elif code in NAMES:
                self._block(code, parameter, memory, registers)

    def _copy(self, memory: Memory, registers: Registers) -> None:
        source, target = registers[0x130], registers[0x131]
        start, offset, length = (registers.address(each) for each in (0x30, 0x31, 0x32))
        data = memory.region(source)[start : start + length]
        if len(data) < length:
            raise ValueError(f"a copy of {length} bytes from {start} leaves its region")
        to = self._scratchpad if target & _INTERNAL else memory.region(target)
        if offset + length > len(to):
            raise ValueError(f"a copy of {length} bytes to {offset} leaves a region of {len(to)}")
        to[offset : offset + length] = data

    def _block(self, code: int, parameter: int, memory: Memory, registers: Registers) -> None:
        window = Window.of(registers)
        if code == stream.ELEMENTWISE:
            values = elementwise(memory, registers, window, parameter)
        elif code == stream.POOL:
            values = pooled(memory, registers, window, parameter)
        else:
            values = product(
                memory, registers, window, code == stream.DEPTHWISE, self._accelerator.macs, self._accelerator.cores
            )
        memory.write(registers, OFM, self._activated(values + registers.signed(0x118), registers))

    def _activated(self, values: Array, registers: Registers) -> Array:
        """Clamp to the range of the activation, and look up in its table if it has one."""
        activation = registers[0x125] & 0x1F
        if registers[0x114] >> 1 & 3 == _INT32 and activation < _FIRST_TABLE:
            return values
        limited = np.clip(values, registers.signed(0x126), registers.signed(0x127))
        if activation < _FIRST_TABLE:
            return limited
        start = self._accelerator.table_address + (activation - _FIRST_TABLE) * _TABLE_BYTES
        table = self._scratchpad[start : start + _TABLE_BYTES].view(np.int8)
        index = limited + 128 if registers[0x114] & 1 else limited
        return table[np.clip(index, 0, 255)].astype(np.int64)
