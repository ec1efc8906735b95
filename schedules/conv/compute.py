"""Tensor expressions of the convolution and pooling kernels in blocked layouts; rules schedule them.

Each function takes placeholders in the layouts that `conv_workload` documents and returns the output tensor. The stages
carry the workload as block attributes; compiled without a rule they return the same numbers, slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from schedules.annotations import TRANSFORM
from schedules.conv.tiling import padding_before
from schedules.conv.winograd_transforms import KERNEL, edge_of, transforms
from schedules.conv.workload import ConvWorkload, DepthwiseDotWorkload, PoolWorkload, WindowWorkload, WinogradWorkload
from schedules.ir.expression import number
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Index, te, tirx

Tensor: TypeAlias = te.Tensor

DIRECT = "conv-direct"
DEPTHWISE = "conv-depthwise"
WINOGRAD = "conv-winograd"
POOL = "pool"
GLOBAL_POOL = "global-pool"


def spatial_sizes(work: WindowWorkload, data: Tensor) -> list[Index]:
    """Spatial sizes of the input; ints if static."""
    return [size or each for size, each in zip(work.spatial, data.shape[2 : 2 + work.rank], strict=True)]


def output_sizes(work: WindowWorkload, sizes: Sequence[Index]) -> list[Index]:
    """Spatial sizes of the output; taken from `sizes` if dynamic."""
    return [known or given for known, given in zip(work.out_spatial, sizes or work.out_spatial, strict=True)]


class Windows:
    """The windows of a kernel over blocks, with the output's spatial sizes if the workload leaves some dynamic.

    Attributes:
        axes: the reduction axes of a window.
        before: padding before the input.
        shape: shape of the output in blocks.
    """

    def __init__(self, work: WindowWorkload, data: Tensor, sizes: Sequence[Index] = ()) -> None:
        out = output_sizes(work, sizes)
        self._work, self._sizes = work, spatial_sizes(work, data)
        self.axes = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(work.kernel)]
        self.before = padding_before(work, self._sizes, out)
        self.shape = (data.shape[0], work.out_blocks, *out, work.block)

    def value(
        self, out: Sequence[Expr], window: Sequence[Expr], element: Callable[[list[Expr]], Expr], outside: Expr
    ) -> Expr:
        """`element` at the input position of a tap of an output's window, or `outside` if it is outside the input."""
        work = self._work
        steps = zip(out, window, work.strides, work.dilations, self.before, strict=True)
        at = [o * stride + k * dilation - before for o, k, stride, dilation, before in steps]
        if not work.reaches_outside:
            return element(at)
        inside = tirx.all(*(tirx.all(each >= 0, each < size) for each, size in zip(at, self._sizes, strict=True)))
        return tirx.if_then_else(inside, element(at), outside)


def conv_direct(data: Tensor, weight: Tensor, work: ConvWorkload, sizes: Sequence[Index] = ()) -> Tensor:
    """A convolution as the sum over input channels and the window.

    `sizes`, here and below, are the output's spatial sizes; needed if the workload leaves some dynamic.
    """
    zero = tirx.const(0, work.dtype)
    channel = te.reduce_axis((0, work.group_channels), name="ci")
    windows = Windows(work, data, sizes)

    def point(n: Expr, co: Expr, *rest: Expr) -> Expr:
        block, lane = channel // work.in_block, channel % work.in_block
        source = block + co // work.group_out_blocks * work.in_blocks if work.groups > 1 else block
        lanes = (lane,) if work.in_block > 1 else ()
        value = windows.value(rest[:-1], windows.axes, lambda at: data[(n, source, *at, *lanes)], zero)
        if work.last_group_channels != work.group_channels:
            value = tirx.if_then_else(source * work.in_block + lane < work.channels, value, zero)
        return te.sum(value * weight[(co, block, *windows.axes, lane, rest[-1])], axis=[channel, *windows.axes])

    return te.compute(windows.shape, point, name="conv", attrs=work.annotation(DIRECT))


def conv_depthwise(data: Tensor, weight: Tensor, work: WindowWorkload, sizes: Sequence[Index] = ()) -> Tensor:
    """Depthwise convolution. `weight`: (ceil(channels / block), *kernel, block), int16 for 8-bit input."""
    windows = Windows(work, data, sizes)

    def point(n: Expr, c: Expr, *rest: Expr) -> Expr:
        def element(at: list[Expr]) -> Expr:
            value = number(data(n, c, *at, rest[-1]), work.dtype)
            if isinstance(work, DepthwiseDotWorkload) and work.fill:
                value = value - tirx.const(work.fill, work.dtype)
            return value

        value = windows.value(rest[:-1], windows.axes, element, tirx.const(0, work.dtype))
        return te.sum(value * number(weight(c, *windows.axes, rest[-1]), work.dtype), axis=windows.axes)

    return te.compute(windows.shape, point, name="conv", attrs=work.annotation(DEPTHWISE))


def lowest(dtype: str) -> float:
    """Lower bound of all elements: -inf for floats."""
    return -math.inf if "float" in dtype else float(tirx.min_value(dtype).value)


def pool(data: Tensor, work: PoolWorkload, sizes: Sequence[Index] = ()) -> Tensor:
    """Maximum or average over windows."""
    windows = Windows(work, data, sizes)
    edge = tirx.const(lowest(work.dtype) if work.mode == "max" else 0, work.dtype)
    combine = te.max if work.mode == "max" else te.sum

    def point(n: Expr, c: Expr, *rest: Expr) -> Expr:
        def element(at: list[Expr]) -> Expr:
            return number(data(n, c, *at, rest[-1]), work.dtype)

        return combine(windows.value(rest[:-1], windows.axes, element, edge), axis=windows.axes)

    reduced = te.compute(windows.shape, point, name="pool", attrs=work.annotation(POOL))
    if work.mode == "max":
        return reduced

    def average(n: Expr, c: Expr, *rest: Expr) -> Expr:
        return reduced[(n, c, *rest)] / window_count(work, rest[:-1], spatial_sizes(work, data), windows.before)

    return te.compute(windows.shape, average, name="average", attrs=work.annotation(POOL))


def window_count(work: PoolWorkload, out: Sequence[Expr], sizes: Sequence[Index], padding: Sequence[Index]) -> Expr:
    """Divisor of average pooling at an output position; `sizes` are the input's spatial sizes, `padding` is the padding
    before it."""
    if work.count_pad or not work.reaches_outside:
        return tirx.const(math.prod(work.kernel), work.dtype)
    count: Expr = None
    for o, size, window, stride, dilation, pad_before, (max_before, _) in zip(
        out, sizes, work.kernel, work.strides, work.dilations, padding, work.pad, strict=True
    ):
        start = o * stride - pad_before
        first = tirx.max(0, (dilation - 1 - start) // dilation) if max_before > 0 else 0
        last = tirx.min(window, (size - start + dilation - 1) // dilation)
        extent = last - first
        count = extent if count is None else count * extent
    return tirx.Cast(work.dtype, tirx.max(count, 1))


def global_pool(data: Tensor, work: PoolWorkload) -> Tensor:
    """Global max or average pooling; the spatial dimensions are kept with size 1."""
    sizes = spatial_sizes(work, data)
    axes = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(sizes)]
    combine = te.max if work.mode == "max" else te.sum
    ones = (1,) * work.rank
    shape = (data.shape[0], work.out_blocks, *ones, work.block)
    attrs = work.annotation(GLOBAL_POOL)

    def point(n: Expr, c: Expr, *rest: Expr) -> Expr:
        return combine(number(data(n, c, *axes, rest[-1]), work.dtype), axis=axes)

    reduced = te.compute(shape, point, name="pool", attrs=attrs)
    if work.mode == "max":
        return reduced
    share = share_of_image(sizes, work.dtype)
    return te.compute(shape, lambda *at: reduced[at] * share, name="average", attrs=attrs)


def share_of_image(sizes: Sequence[Index], dtype: str) -> Expr:
    """Reciprocal of the number of spatial positions."""
    total = math.prod(sizes)
    if isinstance(total, int):
        return tirx.const(1.0 / total, dtype)
    return tirx.const(1.0, dtype) / tirx.Cast(dtype, total)


def conv_winograd(
    data: Tensor,
    weight: Tensor,
    work: WinogradWorkload,
    sizes: Sequence[Index] = (),
    *,
    attrs: Mapping[str, str] | None = None,
    fill: int = 0,
) -> Tensor:
    """A 3x3 convolution of stride 1 or 2 through F(tile x tile, 3 x 3).

    `attrs` are the block attributes of another rule's kernel, `fill` is the padding value.
    """
    tile, stride = work.tile, work.strides[0]
    matrices, edge = transforms(tile, stride), edge_of(tile, stride)
    out = output_sizes(work, sizes)
    rows, columns = (ceil_div(size, tile) for size in out)
    batch = data.shape[0]
    block = work.block
    attrs = attrs if attrs is not None else work.annotation(WINOGRAD)
    if work.transforms_filters:
        weight = te.compute(
            (work.out_blocks, edge * edge, work.channels, block),
            _transformed_filter(weight, work),
            name="winograd_filter",
            attrs={**attrs, TRANSFORM: "filter"},
        )
    transformed = te.compute(
        (batch, ceil_div(work.channels, block), rows * columns, edge * edge, block),
        _transformed_input(data, work, sizes, fill),
        name="winograd_input",
        attrs={**attrs, TRANSFORM: "input"},
    )
    channel = te.reduce_axis((0, work.channels), name="ci")
    product = te.compute(
        (batch, work.out_blocks, rows * columns, edge * edge, block),
        lambda n, co, t, f, lane: te.sum(
            transformed[n, channel // block, t, f, channel % block] * weight(co, f, channel, lane), axis=[channel]
        ),
        name="winograd_product",
        attrs=attrs,
    )

    def out_of(row: Expr, column: Expr) -> Expr:
        return _entry(matrices.output, row, column, work.dtype)

    p, q = te.reduce_axis((0, edge), name="p"), te.reduce_axis((0, edge), name="q")
    return te.compute(
        (batch, work.out_blocks, *out, block),
        lambda n, co, y, x, lane: te.sum(
            product[n, co, y // tile * columns + x // tile, p * edge + q, lane]
            * out_of(y % tile, p)
            * out_of(x % tile, q),
            axis=[p, q],
        ),
        name="conv",
        attrs={**attrs, TRANSFORM: "output"},
    )


def _transformed_input(data: Tensor, work: WinogradWorkload, sizes: Sequence[Index], fill: int) -> Callable[..., Expr]:
    """An element of the transformed input: (n, channel block, tile, element of the tile, lane)."""
    tile, stride = work.tile, work.strides[0]
    matrix, edge, step = transforms(tile, stride).input, edge_of(tile, stride), tile * stride
    columns = ceil_div(output_sizes(work, sizes)[1], tile)
    height, width = spatial_sizes(work, data)
    top, left = Windows(work, data, sizes).before
    outside = tirx.const(fill, work.dtype)
    a, b = te.reduce_axis((0, edge), name="a"), te.reduce_axis((0, edge), name="b")

    def padded(n: Expr, c: Expr, y: Expr, x: Expr, lane: Expr) -> Expr:
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
        return tirx.if_then_else(inside, number(data(n, c, y, x, lane), work.dtype), outside)

    def into(row: Expr, column: Expr) -> Expr:
        return _entry(matrix, row, column, work.dtype)

    def element(n: Expr, c: Expr, t: Expr, f: Expr, lane: Expr) -> Expr:
        value = padded(n, c, t // columns * step + a - top, t % columns * step + b - left, lane)
        return te.sum(value * into(f // edge, a) * into(f % edge, b), axis=[a, b])

    return element


def _transformed_filter(weight: Tensor, work: WinogradWorkload) -> Callable[..., Expr]:
    """An element of the transformed filters: (output block, element of the tile, channel, lane)."""
    matrix, edge = transforms(work.tile, work.strides[0]).weight, edge_of(work.tile, work.strides[0])
    a, b = te.reduce_axis((0, KERNEL), name="a"), te.reduce_axis((0, KERNEL), name="b")

    def element(co: Expr, f: Expr, channel: Expr, lane: Expr) -> Expr:
        value = weight(co, channel, a * KERNEL + b, lane)
        factors = _entry(matrix, f // edge, a, work.dtype), _entry(matrix, f % edge, b, work.dtype)
        return te.sum(value * factors[0] * factors[1], axis=[a, b])

    return element


def _entry(matrix: Sequence[Sequence[float]], row: Expr, column: Expr, dtype: str) -> Expr:
    """matrix[row][column] for indices given as expressions."""
    value: Expr = tirx.const(0, dtype)
    for i, entries in enumerate(matrix):
        for j, entry in enumerate(entries):
            if entry != 0:
                number_of = tirx.const(entry if dtype.startswith("float") else int(entry), dtype)
                value = tirx.Select(tirx.all(row == i, column == j), number_of, value)
    return value
