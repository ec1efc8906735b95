"""Convolutions of 8-bit integers in blocked layouts, and the operators between them."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compiler.passes.layout.convolution import BlockedConv, Conv, float_convolution
from compiler.passes.layout.packing import merge_groups, pack_channels, pack_depthwise, pack_filter_groups
from compiler.passes.layout.values import BLOCKABLE, Blocked, LayoutBuilder, Value, can_block, handles
from compiler.passes.rewriting.matching import as_constant, dtype_of, rank_of, shape_of, static_shape
from schedules.conv import compute as conv_compute
from schedules.conv.choose import choose_integer
from schedules.conv.dot import conv_dot
from schedules.conv.winograd import conv_winograd_integer, pack_integer_filter
from schedules.conv.workload import DepthwiseDotWorkload, IntegerWinogradWorkload
from schedules.ir.tvm_types import Call, Expr, Index

_BYTES = ("int8", "uint8")


@handles("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
def convolution(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    if dtype_of(call) == "int32":
        return integer_convolution(builder, call)
    return float_convolution(builder, call)


def integer_convolution(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """An int32 convolution of 8-bit data and constant int8 weights; None for any other."""
    conv = Conv.of(call)
    data, weight = call.args
    if conv is None:
        return None
    weight = builder.plain(weight)
    filter_shape = static_shape(weight)
    if not isinstance(weight, GenericConst) or dtype_of(weight) != "int8" or filter_shape is None:
        return None
    if not can_block(data, conv.order, _BYTES) or not can_block(call, conv.out_order, ("int32",)):
        return None
    if any(amount < 0 for pair in conv.pad for amount in pair):
        return None
    padded = _padding_before(builder, data, conv)
    fill = 0
    if padded is not None:
        data, conv, fill = padded
    sizes = tuple(shape_of(call) or ())
    return _IntegerConv(builder, conv.long_last(sizes), data, weight, sizes, fill).build()


def _padding_before(builder: LayoutBuilder, data: Expr, conv: Conv) -> tuple[Expr, Conv, int] | None:
    """The operand of a padding with one value that feeds a convolution without, and the convolution with it."""
    call = builder.definitions.get(data)
    if not isinstance(call, relax.Call) or call.op.name != "relax.nn.pad" or str(call.attrs.pad_mode) != "constant":
        return None
    widths = [int(width) for width in call.attrs.pad_width]
    pairs = {axis: (widths[2 * axis], widths[2 * axis + 1]) for axis in range(len(widths) // 2)}
    if any(amount for pair in conv.pad for amount in pair) or min(widths) < 0:
        return None
    if any(amount for axis in conv.order[:2] for amount in pairs[axis]):
        return None
    pad = tuple(pairs[axis] for axis in conv.order[2:])
    changed = Conv(conv.order, conv.out_order, conv.filter_order, conv.strides, conv.dilations, pad, conv.groups)
    return call.args[0], changed, int(float(call.attrs.pad_value))


class _IntegerConv(BlockedConv):
    """One integer convolution being converted to a blocked layout; `fill` is the padding value."""

    def __init__(
        self, builder: LayoutBuilder, conv: Conv, data: Expr, weight: Expr, out_shape: tuple[Index, ...], fill: int
    ) -> None:
        super().__init__(builder, conv, data, weight, out_shape)
        self.operand, self.fill = dtype_of(data), fill

    def build(self) -> Blocked | None:
        if self.conv.groups == self.channels == self.filters and self.conv.groups > 1:
            return self._depthwise()
        groups, merged = self._merged_groups()
        values = merge_groups(self._filter_values(), self.conv.groups, merged) if merged > 1 else self._filter_values()
        plain = self._workload(groups, self._in_lanes(groups), merged)
        work = choose_integer(plain, self.operand, self.fill, values, self.builder.machine)
        if isinstance(work, IntegerWinogradWorkload):
            spread = pack_integer_filter(values, work.block, work.strides[0])
            return self._emit(lambda data, weight, _: conv_winograd_integer(data, weight, work), work, spread)
        packed = pack_filter_groups(values, work.in_block, work.panel, work.group)
        result = self._emit(lambda data, weight, sizes: conv_dot(data, weight, work, sizes), work, packed)
        if not work.shift:
            return result
        sums = values.astype(np.int32).sum(axis=tuple(range(1, values.ndim)), dtype=np.int32)
        return self._plus(result, sums * -work.shift)

    def _depthwise(self) -> Blocked:
        """The kernel takes `fill` off every element, so that the padding is zero; that is added back."""
        work = DepthwiseDotWorkload(**{**vars(self._window()), "dtype": "int32"}, operand=self.operand, fill=self.fill)
        values = self._filter_values()
        packed = pack_depthwise(values.astype(np.int16), work.block)
        result = self._emit(
            lambda data, weight, sizes: conv_compute.conv_depthwise(data, weight, work, sizes),
            work,
            packed,
            reads_half=True,
        )
        if not self.fill:
            return result
        sums = values.astype(np.int32).sum(axis=tuple(range(1, values.ndim)), dtype=np.int32)
        return self._plus(result, sums * self.fill)

    def _plus(self, result: Blocked, channels: np.ndarray) -> Blocked:
        """Plus one number per channel."""
        rank = len(self.kernel)
        constant = pack_channels(channels.reshape(1, -1, *[1] * rank), self.builder.lanes)
        total = self.builder.emit(relax.op.add(result.expr, as_constant(constant)), "corrected")
        return Blocked(total, result.shape, result.order)


@handles("relax.quantize", "relax.dequantize")
def quantization(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """By one scale and one zero point for all."""
    data = builder.blocked(call.args[0])
    if data is None or dtype_of(call) not in BLOCKABLE or any(rank_of(each) != 0 for each in call.args[1:3]):
        return None
    parameters = [builder.plain(each) for each in call.args[1:3]]
    result = builder.emit(relax.Call(call.op, [data.expr, *parameters], call.attrs, call.ty_args), "quantized")
    return Blocked(result, data.shape, data.order)


@handles("relax.astype")
def conversion(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Between the types that lie in blocks."""
    data = builder.blocked(call.args[0])
    if data is None or dtype_of(call) not in BLOCKABLE:
        return None
    return Blocked(builder.emit(relax.op.astype(data.expr, dtype_of(call)), "converted"), data.shape, data.order)
