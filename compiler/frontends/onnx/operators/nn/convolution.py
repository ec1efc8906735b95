"""Conv and ConvTranspose in one to three spatial dimensions.

DeformConv: a convolution whose taps are shifted by data-dependent offsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require, require_entries, require_multiple, require_shape, with_size
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.nn.resize_kernels import linear_taps, sampled, tap_tables
from compiler.frontends.onnx.operators.nn.spatial import (
    Window,
    auto_pad,
    integers_attribute,
    padded,
    per_channel,
    spatial_rank,
    spatial_sizes,
    window_of,
)
from compiler.frontends.onnx.operators.precision import compute_dtype
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from schedules.ir.tvm_types import Expr, Tensor

_CONVOLUTIONS = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}
_TRANSPOSED = {1: R.nn.conv1d_transpose, 2: R.nn.conv2d_transpose, 3: R.nn.conv3d_transpose}
_NARROW = ("float16", "bfloat16")


def accumulator(dtype: str) -> str:
    """Return the accumulator type for products of `dtype`: float32 for 16-bit floats, which would lose digits."""
    return "float32" if dtype in _NARROW else dtype


@converter("Conv")
def conv(context: NodeContext) -> relax.Expr:
    """Convolution of (N, C, D1...) with weights (M, C / group, k1...), plus a bias (M,)."""
    rank = checked_rank(context)
    kernel = checked_kernel(context, rank)
    group = _group(context)
    filters = context.shape(1)
    data = _with_channels(context, context.arithmetic.multiply(filters[1], group))
    weight = context.input(1)
    require_multiple(context, filters[0], group)
    window = window_of(context, kernel, spatial_sizes(data))
    for size in window.output if auto_pad(context) in ("NOTSET", "VALID") else ():
        require(context, size, "at least", 1)
    padding = [*window.before, *window.after]
    if not window.has_static_padding():
        data = padded(context, data, window.before, window.after, 0, auto_pad(context))
        padding = [0] * (2 * rank)
    dtype = context.dtype(0)
    result = _CONVOLUTIONS[rank](
        data,
        weight,
        strides=list(window.strides),
        padding=padding,
        dilation=list(window.dilations),
        groups=group,
        out_dtype=accumulator(dtype),
    )
    return _with_bias(context, context.emit(result), dtype, filters[0])


def checked_rank(context: NodeContext) -> int:
    rank = spatial_rank(context)
    if rank not in _CONVOLUTIONS:
        context.refuse(f"{rank} spatial dimensions; 1 to 3 are supported")
    if context.rank(1) != rank + 2:
        context.invalid(f"weights of rank {context.rank(1)} for data of rank {rank + 2}")
    return rank


def checked_kernel(context: NodeContext, rank: int) -> tuple[int, ...]:
    sizes = context.shape(1)[2:]
    if not all(isinstance(size, int) for size in sizes):
        context.refuse("the kernel's size is not known when compiling")
    attribute = context.attribute("kernel_shape", list(sizes))
    if list(attribute) != list(sizes):
        context.invalid(f"kernel_shape is {list(attribute)}, the weights' {list(sizes)}")
    if len(sizes) != rank or any(size < 1 for size in sizes):
        context.invalid(f"a kernel of shape {list(sizes)}")
    return tuple(sizes)


def _group(context: NodeContext) -> int:
    group = context.attribute("group", 1)
    if group < 1:
        context.invalid(f"group must be at least 1, not {group}")
    return group


def _with_channels(context: NodeContext, expected: Dim) -> relax.Expr:
    """Return the data, checked to have as many channels as the weights require."""
    channels = context.shape(0)[1]
    if isinstance(channels, int) and isinstance(expected, int) and channels != expected:
        context.invalid(f"the data have {channels} channels, the weights ask for {expected}")
    return with_size(context, context.input(0), 1, expected)


def _with_bias(context: NodeContext, result: relax.Expr, dtype: str, filters: Dim) -> relax.Expr:
    wide = str(result.ty.dtype)
    if context.has_input(2):
        require_shape(context, context.shape(2), [filters], "its bias")
        bias = per_channel(context, 2, int(result.ty.ndim))
        if wide != dtype:
            bias = context.emit(R.astype(bias, wide))
        result = context.emit(R.add(result, bias))
    return result if wide == dtype else R.astype(result, dtype)


@converter("ConvTranspose")
def conv_transpose(context: NodeContext) -> relax.Expr:
    """Transposed convolution of (N, C, D1...) with weights (C, M / group, k1...), plus a bias (M,)."""
    rank = checked_rank(context)
    kernel = checked_kernel(context, rank)
    group = _group(context)
    channels, filters = context.shape(1)[0], context.arithmetic.multiply(context.shape(1)[1], group)
    data, weight = _with_channels(context, channels), context.input(1)
    require_multiple(context, channels, group)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    crops = _crops(context, spatial_sizes(data), kernel, strides, dilations)
    # Cropping is static padding of the operator if possible; the rest is cropped or padded afterwards.
    inside = [(max(b, 0), max(a, 0)) if isinstance(b, int) and isinstance(a, int) else (0, 0) for b, a in crops]
    dtype = context.dtype(0)
    result = context.emit(
        _TRANSPOSED[rank](
            data,
            weight,
            strides=list(strides),
            padding=[*(b for b, _ in inside), *(a for _, a in inside)],
            output_padding=[0] * rank,
            dilation=list(dilations),
            groups=group,
            out_dtype=accumulator(dtype),
        )
    )
    negate = context.arithmetic.negative
    outside = [
        (negate(context.arithmetic.subtract(b, i)), negate(context.arithmetic.subtract(a, j)))
        for (b, a), (i, j) in zip(crops, inside, strict=True)
    ]
    result = padded(context, result, [b for b, _ in outside], [a for _, a in outside], 0)
    return _with_bias(context, result, dtype, filters)


def _crops(
    context: NodeContext, sizes: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[Dim, Dim]]:
    """Amounts to crop from the full result, (size - 1) * stride + extent, at both ends of each axis; negative adds
    zeros."""
    rank = len(kernel)
    arithmetic = context.arithmetic
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    extra = integers_attribute(context, "output_padding", rank, 0, 0)
    mode = auto_pad(context)
    shape = _output_shape(context, sizes, strides, mode)
    crops: list[tuple[Dim, Dim]] = []
    for axis, size in enumerate(sizes):
        if shape is None:
            begin, end = (pads[axis], pads[axis + rank]) if mode == "NOTSET" else (0, 0)
            crops.append((begin, end - extra[axis]))
            continue
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        full = arithmetic.add(arithmetic.multiply(arithmetic.subtract(size, 1), strides[axis]), extent)
        total = arithmetic.subtract(arithmetic.add(full, extra[axis]), shape[axis])
        half = arithmetic.floor_divide(total, 2)
        rest = arithmetic.subtract(total, half)
        begin, end = (half, rest) if mode == "SAME_UPPER" else (rest, half)
        crops.append((begin, arithmetic.subtract(end, extra[axis])))
    return crops


def _output_shape(
    context: NodeContext, sizes: Sequence[Dim], strides: Sequence[int], mode: str
) -> Sequence[Dim] | None:
    """Return the spatial output sizes if prescribed: by output_shape, or by SAME padding."""
    rank = len(sizes)
    shape: list[int] = context.attribute("output_shape", [])
    if shape:
        # Some exporters include batch and channels.
        if len(shape) not in (rank, rank + 2) or any(size < 1 for size in shape[-rank:]):
            context.invalid(f"output_shape must hold {rank} positive sizes, not {list(shape)}")
        return [int(size) for size in shape[-rank:]]
    if mode.startswith("SAME"):
        return [context.arithmetic.multiply(size, stride) for size, stride in zip(sizes, strides, strict=True)]
    return None


_OFFSETS, _BIAS, _MASK = 2, 3, 4


@converter("DeformConv", since=19)
def deform_conv(context: NodeContext) -> relax.Expr:
    """Sample the data at the shifted taps, multiply by the mask, and by the weights (M, C / group, k1...)."""
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
    flat = context.reshape(context.input(0), [batch, channels, context.arithmetic.product(sizes)])
    operands = [context.input(index) for index in (_OFFSETS, _MASK) if context.has_input(index)]
    lengths = [expression(size) for size in sizes]
    compute = _columns(window, channels // offset_group)
    columns = context.emit_te(compute, flat, *operands, *lengths, primfunc_name_hint="deform_columns")
    inner = channels // group * math.prod(kernel)
    positions = context.arithmetic.product(output)
    columns = context.reshape(columns, [batch, group, inner, positions])
    weights = context.reshape(context.input(1), [1, group, filters // group, inner])
    product = matrix_product(context, weights, columns)
    result = context.reshape(product, [batch, filters, *output])
    if context.has_input(_BIAS):
        result = context.emit(R.add(result, per_channel(context, _BIAS, rank + 2)))
    return result


def _check_operands(context: NodeContext, window: Window, offset_group: int, group: int) -> None:
    """Check that offsets, mask, weights and bias have the sizes implied by data and attributes."""
    batch, channels, *spatial = context.shape(0)
    taps = offset_group * math.prod(window.kernel)
    positions = []
    for axis, size in enumerate(spatial):
        free = context.arithmetic.add(size, window.before[axis] + window.after[axis] - window.extents[axis])
        positions.append(context.arithmetic.add(context.arithmetic.floor_divide(free, window.strides[axis]), 1))
    require_shape(context, context.shape(_OFFSETS), [batch, taps * window.rank, *positions], "the offset")
    if context.has_input(_MASK):
        require_shape(context, context.shape(_MASK), [batch, taps, *positions], "the mask")
    if context.has_input(_BIAS):
        require_shape(context, context.shape(_BIAS), context.shape(1)[:1], "the bias")
    require(context, context.arithmetic.multiply(context.shape(1)[1], group), "equal", channels)
    for size in spatial:
        require_entries(context, size, context.arithmetic.product(positions))


def _window(context: NodeContext, kernel: tuple[int, ...]) -> Window:
    rank = len(kernel)
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    return Window(kernel, strides, dilations, pads[:rank], pads[rank:], context.shape(_OFFSETS)[2:])


def _columns(window: Window, group_channels: int) -> Callable[..., Tensor]:
    """Return the kernel of the sampled data (N, C, taps, E1...), zero outside the data.

    Operands: data (N, C, product of the sizes), offsets, the mask if there is one, and the sizes.
    """
    rank, count = window.rank, math.prod(window.kernel)

    def compute(data: Tensor, offsets: Tensor, *rest: Tensor | Expr) -> Tensor:
        masks, lengths = rest[:-rank], rest[-rank:]
        wide = compute_dtype(data.dtype)

        def coordinate(axis: int, indices: Sequence[Expr]) -> Expr:
            sample, group_tap, *position = indices
            moved = offsets(sample, group_tap * rank + axis, *position).astype(wide)
            start = position[axis] * window.strides[axis] - window.before[axis]
            tap = tirx.floormod(group_tap, count)
            step = tirx.floordiv(tap, math.prod(window.kernel[axis + 1 :])) % window.kernel[axis]
            return (start + step * window.dilations[axis]).astype(wide) + moved

        # All channels of a group share them.
        shape = (data.shape[0], tirx.floordiv(offsets.shape[1], rank), *offsets.shape[2:])
        tables = tap_tables(shape, lengths, lambda *at: linear_taps(coordinate(*at)), zeros=True)

        def element(sample: Expr, channel: Expr, tap: Expr, *indices: Expr) -> Expr:
            group_tap = tirx.floordiv(channel, group_channels) * count + tap

            def read(offset: Expr) -> Expr:
                return data(sample, channel, offset).astype(wide)

            value = sampled(tables, [sample, group_tap, *indices], read, zeros=True)
            if masks:
                value = value * masks[0](sample, group_tap, *indices).astype(wide)
            return value.astype(data.dtype)

        return te.compute((*data.shape[:2], count, *offsets.shape[2:]), element, name="columns")

    return compute
