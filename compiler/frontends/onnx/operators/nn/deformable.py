"""DeformConv: a convolution whose taps are moved by offsets that are data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require, require_entries, require_shape
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.nn.convolution import checked_kernel, checked_rank
from compiler.frontends.onnx.operators.nn.resize_kernels import linear_taps, sampled, tap_tables
from compiler.frontends.onnx.operators.nn.spatial import Window, integers_attribute, per_channel
from compiler.frontends.onnx.operators.precision import compute_dtype
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Tensor

_OFFSETS, _BIAS, _MASK = 2, 3, 4


@converter("DeformConv", since=19)
def deform_conv(context: NodeContext) -> relax.Expr:
    """Samples the data at the moved taps, times the mask, and multiplies by the weights (M, C / group, k1...)."""
    rank = checked_rank(context)
    kernel = checked_kernel(context, rank)
    group, offset_group = context.attribute("group", 1), context.attribute("offset_group", 1)
    channels, filters = context.shape(0)[1], context.shape(1)[0]
    if not isinstance(channels, int) or not isinstance(filters, int):
        context.refuse("the number of channels is not known when compiling")
    if min(group, offset_group) < 1 or channels % group or filters % group or channels % offset_group:
        context.invalid(f"{channels} channels and {filters} filters in {group} and {offset_group} groups")
    if context.shape(_OFFSETS)[1] != offset_group * math.prod(kernel) * rank:
        context.invalid(f"offsets of shape {context.shape(_OFFSETS)} for a kernel of shape {list(kernel)}")
    window = _window(context, kernel)
    _check_operands(context, window, offset_group, group)
    batch, *output = context.shape(_OFFSETS)[0], *context.shape(_OFFSETS)[2:]
    sizes = context.shape(0)[2:]
    flat = context.emit(R.reshape(context.input(0), [batch, channels, context.arithmetic.product(sizes)]))
    operands = [context.input(index) for index in (_OFFSETS, _MASK) if context.has_input(index)]
    lengths = [expression(size) for size in sizes]
    compute = _columns(window, channels // offset_group)
    columns = context.emit_te(compute, flat, *operands, *lengths, primfunc_name_hint="deform_columns")
    inner = channels // group * math.prod(kernel)
    places = context.arithmetic.product(output)
    columns = context.emit(R.reshape(columns, [batch, group, inner, places]))
    weights = context.emit(R.reshape(context.input(1), [1, group, filters // group, inner]))
    product = matrix_product(context, weights, columns)
    result = context.emit(R.reshape(product, [batch, filters, *output]))
    if context.has_input(_BIAS):
        result = context.emit(R.add(result, per_channel(context, _BIAS, rank + 2)))
    return result


def _check_operands(context: NodeContext, window: Window, offset_group: int, group: int) -> None:
    """Offsets, mask, weights and bias must have the sizes that the data and the attributes give them."""
    batch, channels, *spatial = context.shape(0)
    taps = offset_group * math.prod(window.kernel)
    places = []
    for axis, size in enumerate(spatial):
        free = context.arithmetic.add(size, window.before[axis] + window.after[axis] - window.extents[axis])
        places.append(context.arithmetic.add(context.arithmetic.floor_divide(free, window.strides[axis]), 1))
    require_shape(context, context.shape(_OFFSETS), [batch, taps * window.rank, *places], "the offset")
    if context.has_input(_MASK):
        require_shape(context, context.shape(_MASK), [batch, taps, *places], "the mask")
    if context.has_input(_BIAS):
        require_shape(context, context.shape(_BIAS), context.shape(1)[:1], "the bias")
    require(context, context.arithmetic.multiply(context.shape(1)[1], group), "equal", channels)
    for size in spatial:
        require_entries(context, size, context.arithmetic.product(places))


def _window(context: NodeContext, kernel: tuple[int, ...]) -> Window:
    rank = len(kernel)
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    return Window(kernel, strides, dilations, pads[:rank], pads[rank:], context.shape(_OFFSETS)[2:])


def _columns(window: Window, group_channels: int) -> Callable[..., Tensor]:
    """The sampled data (N, C, taps, E1...), zero outside of the data.

    Its operands: data (N, C, product of the sizes), offsets, the mask where there is one, and the sizes.
    """
    rank, count = window.rank, math.prod(window.kernel)

    def compute(data: Tensor, offsets: Tensor, *rest: Tensor | Expr) -> Tensor:
        masks, lengths = rest[:-rank], rest[-rank:]
        wide = compute_dtype(data.dtype)

        def coordinate(axis: int, place: Sequence[Expr]) -> Expr:
            sample, group_tap, *position = place
            moved = offsets(sample, group_tap * rank + axis, *position).astype(wide)
            start = position[axis] * window.strides[axis] - window.before[axis]
            tap = tirx.floormod(group_tap, count)
            step = tirx.floordiv(tap, math.prod(window.kernel[axis + 1 :])) % window.kernel[axis]
            return (start + step * window.dilations[axis]).astype(wide) + moved

        # Those of a group of channels are the same.
        shape = (data.shape[0], tirx.floordiv(offsets.shape[1], rank), *offsets.shape[2:])
        tables = tap_tables(shape, lengths, lambda *at: linear_taps(coordinate(*at)), zeros=True)

        def element(sample: Expr, channel: Expr, tap: Expr, *place: Expr) -> Expr:
            group_tap = tirx.floordiv(channel, group_channels) * count + tap

            def read(offset: Expr) -> Expr:
                return data(sample, channel, offset).astype(wide)

            value = sampled(tables, [sample, group_tap, *place], read, zeros=True)
            if masks:
                value = value * masks[0](sample, group_tap, *place).astype(wide)
            return value.astype(data.dtype)

        return te.compute((*data.shape[:2], count, *offsets.shape[2:]), element, name="columns")

    return compute
