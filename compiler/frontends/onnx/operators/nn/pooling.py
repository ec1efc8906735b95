"""MaxPool, AveragePool, LpPool and global pooling.

MaxUnpool and Col2Im: elements moved back to where a window took them from.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx import broadcasting, dtypes
from compiler.frontends.onnx.bounds import require, require_multiple, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.nn.spatial import (
    Window,
    auto_pad,
    integers_attribute,
    kernel_attribute,
    padded,
    spatial_rank,
    spatial_sizes,
    starts_in_data,
    window_of,
)
from compiler.frontends.onnx.operators.precision import cast, compute_dtype, widened
from compiler.frontends.onnx.operators.tensor.sort_kernels import for_each, in_sequence, in_vectors, shared_tasks
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.passes.layout.windows import AVERAGE_WINDOW, PoolWindow
from schedules.ir.tvm_types import Buffer, Expr, Index, Stmt, Tensor

# Poolings without a Relax operator, as tensor expressions.
#
# Each function takes the window and returns a tensor expression function of the data (N, C, D1...), the padding before
# each axis, and the number of windows along each axis; the last two may be symbolic.


Kernel: TypeAlias = "Callable[..., Tensor | list[Tensor]]"
_MAX_PRODUCT = 8  # the largest power computed by multiplication
_MAX_UNROLLED = 16  # taps of a window; larger windows are loops


def _const(value: float, dtype: str) -> Expr:
    return tirx.const(value, dtype)


def _conjunction(conditions: Sequence[Expr]) -> Expr:
    return tirx.all(*conditions) if len(conditions) > 1 else conditions[0]


class _Windows:
    """Positions of a window over a tensor."""

    def __init__(self, window: Window, data: Tensor, sizes: Sequence[Index]) -> None:
        self.window, self.data = window, data
        self.rank = window.rank
        self.before, self.output = sizes[: self.rank], sizes[self.rank : 2 * self.rank]
        self.shape = (data.shape[0], data.shape[1], *self.output)
        self.taps = [te.reduce_axis((0, k), name=f"tap{axis}") for axis, k in enumerate(window.kernel)]

    def positions(self, output: Sequence[Expr], taps: Sequence[Expr]) -> list[Expr]:
        """Return the input indices of a window's tap at an output position; out of range in the padding."""
        window = self.window
        return [
            o * window.strides[axis] + t * window.dilations[axis] - self.before[axis]
            for axis, (o, t) in enumerate(zip(output, taps, strict=True))
        ]

    def inside(self, positions: Sequence[Expr]) -> Expr:
        """True if a position is in the data."""
        sizes = self.data.shape[2:]
        return _conjunction([c for p, size in zip(positions, sizes, strict=True) for c in (p >= 0, p < size)])

    def load(self, leading: Sequence[Expr], positions: Sequence[Expr], fill: Expr) -> Expr:
        """Return the data at a position, or `fill` in the padding."""
        return tirx.if_then_else(self.inside(positions), self.data(*leading, *positions), fill)


def max_kernel(window: Window) -> Kernel:
    """Return the largest element, or NaN if there is one; windows without data give the type's smallest value."""

    def compute(data: Tensor, *sizes: Expr) -> Tensor:
        windows = _Windows(window, data, sizes)
        lowest = _const(broadcasting.lowest(str(data.dtype)), data.dtype)
        largest = (
            broadcasting.extremum_reducer(str(data.dtype), greatest=True)
            if dtypes.is_float(str(data.dtype))
            else te.max
        )

        def element(*indices: Expr) -> Expr:
            positions = windows.positions(indices[2:], windows.taps)
            return largest(windows.load(indices[:2], positions, lowest), axis=windows.taps)

        return te.compute(windows.shape, element, name="max_pool")

    return compute


def max_index_kernel(window: Window, column_major: bool) -> Kernel:
    """Return the flat index, int64, of the first largest element of each window, in row-major order.

    Operands: the data, the largest elements (NaN if there is one) and the padding before each axis.
    """

    def compute(data: Tensor, largest: Tensor, *before: Expr) -> Tensor:
        windows = _Windows(window, data, [*before, *largest.shape[2:]])
        number = math.prod(window.kernel)

        def found(output: Sequence[Expr], taps: Sequence[Expr]) -> Expr:
            """Return the number of a tap that holds the largest element; `number` for any other."""
            positions = windows.positions(output[2:], taps)
            value, wanted = data(*output[:2], *positions), largest(*output)
            same = value == wanted
            if dtypes.is_float(str(data.dtype)):
                same = tirx.any(same, broadcasting.is_nan(value))
            flat = _flatten(taps, window.kernel).astype("int32")
            none = _const(number, "int32")
            return tirx.if_then_else(windows.inside(positions), tirx.Select(same, flat, none), none)

        def first(*output: Expr) -> Expr:
            if number > _MAX_UNROLLED:
                return te.min(found(output, windows.taps), axis=windows.taps)
            taps = itertools.product(*map(range, window.kernel))
            candidates = [found(output, [_const(tap, "int64") for tap in each]) for each in taps]
            return functools.reduce(tirx.min, candidates)

        taps = te.compute(windows.shape, first, name="tap")

        def index(*output: Expr) -> Expr:
            tap = taps(*output).astype("int64")
            parts: list[Expr] = []
            for k in reversed(window.kernel):
                parts.insert(0, tirx.floormod(tap, _const(k, "int64")))
                tap = tirx.floordiv(tap, _const(k, "int64"))
            positions = windows.positions(output[2:], parts)
            spatial = data.shape[2:]
            within = _flatten(positions[::-1], spatial[::-1]) if column_major else _flatten(positions, spatial)
            channel = _flatten(output[:2], data.shape[:2])
            return channel * _product(spatial) + within

        return te.compute(windows.shape, index, name="index")

    return compute


def _flatten(indices: Sequence[Expr], sizes: Sequence[Index]) -> Expr:
    """Return the row-major position, int64."""
    flat: Expr = _const(0, "int64")
    for index, size in zip(indices, sizes, strict=True):
        flat = flat * size + index.astype("int64")
    return flat


def _product(sizes: Sequence[Expr]) -> Expr:
    result: Expr = _const(1, "int64")
    for size in sizes:
        result = result * size
    return result


def average_kernel(window: Window, include_padding: bool) -> Kernel:
    """Mean over each window's data, or over data and padding; takes the padding after each axis last."""

    def compute(data: Tensor, *sizes: Index) -> Tensor:
        windows = _Windows(window, data, sizes)
        pads_after = sizes[2 * windows.rank :]
        wide = compute_dtype(data.dtype)

        def total(*indices: Expr) -> Expr:
            positions = windows.positions(indices[2:], windows.taps)
            value = windows.load(indices[:2], positions, _const(0, data.dtype))
            return te.sum(value.astype(wide), axis=windows.taps)

        sums = te.compute(windows.shape, total, name="sum")

        def mean(*indices: Expr) -> Expr:
            count: Expr = _const(1, "int64")
            for axis, position in enumerate(indices[2:]):
                start = position * window.strides[axis] - windows.before[axis]
                low, high = _const(0, "int64"), data.shape[2 + axis]
                if include_padding:
                    low, high = -windows.before[axis], high + pads_after[axis]
                count = count * _taps_between(start, window.kernel[axis], window.dilations[axis], low, high)
            return (sums(*indices) / tirx.max(count, 1).astype(wide)).astype(data.dtype)

        return te.compute(windows.shape, mean, name="mean")

    return compute


def _taps_between(start: Expr, kernel: int, dilation: int, low: Expr, high: Expr) -> Expr:
    """Return the number of taps start, start + dilation, ... (`kernel` of them) in [low, high)."""
    step = _const(dilation, "int64")
    skipped = tirx.max(tirx.floordiv(low - start + step - 1, step), 0)
    reached = tirx.min(tirx.floordiv(high - 1 - start, step) + 1, kernel)
    return tirx.max(reached - skipped, 0)


def norm_kernel(window: Window, order: float) -> Kernel:
    """p-norm of each window."""

    def compute(data: Tensor, *sizes: Expr) -> Tensor:
        windows = _Windows(window, data, sizes)
        wide = compute_dtype(data.dtype)

        def total(*indices: Expr) -> Expr:
            positions = windows.positions(indices[2:], windows.taps)
            value = tirx.abs(windows.load(indices[:2], positions, _const(0, data.dtype)).astype(wide))
            return te.sum(_power(value, order), axis=windows.taps)

        sums = te.compute(windows.shape, total, name="sum")
        return te.compute(windows.shape, lambda *i: _root(sums(*i), order).astype(data.dtype), name="norm")

    return compute


def _power(value: Expr, order: float) -> Expr:
    """Raise a non-negative value to a positive power."""
    if order != int(order) or order > _MAX_PRODUCT:
        return tirx.pow(value, _const(order, value.ty.dtype))
    result = value
    for _ in range(int(order) - 1):
        result = result * value
    return result


def _root(value: Expr, order: float) -> Expr:
    if order == 1:
        return value
    return tirx.sqrt(value) if order == 2 else tirx.pow(value, _const(1.0 / order, value.ty.dtype))


# Integer types that TVM pools, starting from their lowest value.
_BYTES = ("int8", "uint8")
_MAX_POOLS = {1: R.nn.max_pool1d, 2: R.nn.max_pool2d, 3: R.nn.max_pool3d}
_AVERAGE_POOLS = {1: R.nn.avg_pool1d, 2: R.nn.avg_pool2d, 3: R.nn.avg_pool3d}


def _window(context: NodeContext) -> Window:
    kernel = kernel_attribute(context, spatial_rank(context))
    _require_data(context)
    ceil_mode = bool(context.attribute("ceil_mode", 0))
    return window_of(context, kernel, context.shape(0)[2:], ceil_mode=ceil_mode)


def _require_data(context: NodeContext) -> None:
    """Check that no axis is empty: a window over nothing has no maximum and no mean; ONNX Runtime refuses it too."""
    for size in context.shape(0)[2:]:
        if not isinstance(size, int):
            require(context, size, "at least", 1)


def _overhang(context: NodeContext, window: Window) -> tuple[Dim, ...]:
    """Return the distance by which the last window extends beyond the padded input; 0 if output sizes are rounded
    down."""
    if not context.attribute("ceil_mode", 0):
        return (0,) * window.rank
    return window.overhang(context.arithmetic, spatial_sizes(context.input(0)))


def _flat(window: Window) -> list[Dim]:
    """Return the window as scalars, for a tensor expression function."""
    return [*window.before, *window.output]


@converter("MaxPool")
def max_pool(context: NodeContext) -> relax.Expr | list[relax.Expr]:
    """Maximum of each window and, if requested, its index in the flattened input (int64)."""
    window = _window(context)
    largest = context.emit(_largest(context, window))
    if not context.output_used(1):
        return largest
    kernel = max_index_kernel(window, bool(context.attribute("storage_order", 0)))
    operands = context.input(0), largest, *window.before
    return [largest, context.emit_te(kernel, *operands, primfunc_name_hint="max_pool_indices")]


def _largest(context: NodeContext, window: Window) -> relax.Expr:
    """Return the maximum of each window, NaN if it contains NaN."""
    data = context.input(0)
    overhang = _overhang(context, window)
    ceil_mode = not all(isinstance(each, int) for each in overhang) and _rounds_up(context, window)
    after = [a if ceil_mode else context.arithmetic.add(a, o) for a, o in zip(window.after, overhang, strict=True)]
    padding = [*window.before, *after]
    # Padding as wide as the window creates windows without data.
    plain = all(isinstance(p, int) and p < e for p, e in zip(padding, window.extents * 2, strict=True))
    dtype = context.dtype(0)
    known = window.rank in _MAX_POOLS and (dtypes.is_float(dtype) or dtype in _BYTES)
    if known and auto_pad(context).startswith("SAME") and not window.has_static_padding():
        lowest = -np.inf if dtypes.is_float(dtype) else np.iinfo(dtype).min
        data = padded(context, data, window.before, window.after, lowest, auto_pad(context))
        padding, plain = [0] * (2 * window.rank), True
    if not known or not plain:
        return context.emit_te(max_kernel(window), data, *_flat(window), primfunc_name_hint="max_pool")
    sizes = list(window.kernel), list(window.strides), padding, list(window.dilations)
    return _MAX_POOLS[window.rank](data, *sizes, ceil_mode=ceil_mode)


def _rounds_up(context: NodeContext, window: Window) -> bool:
    """True if Relax's ceiling mode, which never omits a window, gives the same output size: no window starts in the
    padding after the input, for any size."""
    if not context.attribute("ceil_mode", 0) or not window.has_static_padding():
        return False
    return all(map(starts_in_data, window.after, window.strides, window.extents))


@converter("AveragePool")
def average_pool(context: NodeContext) -> relax.Expr:
    """Mean of each window; padding counts with count_include_pad, positions beyond it never do."""
    window = _window(context)
    data = context.input(0)
    dtype = context.dtype(0)
    include = bool(context.attribute("count_include_pad", 0))
    overhang = _overhang(context, window)
    plain = window.has_static_padding() and all(isinstance(o, int) and o == 0 for o in overhang)
    if (
        window.rank not in _AVERAGE_POOLS
        or not plain
        or any(d != 1 for d in window.dilations)
        or compute_dtype(dtype) != dtype
    ):
        marked = {AVERAGE_WINDOW: _described(context, window, include).text()}
        kernel, sizes = average_kernel(window, include), (*_flat(window), *window.after)
        return context.emit_te(kernel, data, *sizes, primfunc_name_hint="avg_pool", primfunc_attrs=marked)
    return _AVERAGE_POOLS[window.rank](
        data, list(window.kernel), list(window.strides), [*window.before, *window.after], count_include_pad=include
    )


def _described(context: NodeContext, window: Window, include: bool) -> PoolWindow:
    """Return the window for the layout pass: padding that depends on symbolic sizes as its maximum."""
    mode = auto_pad(context)
    same = mode.removeprefix("SAME_").lower() if mode.startswith("SAME") else ""
    totals = [extent - 1 for extent in window.extents]
    halves = [total // 2 if same == "upper" else (total + 1) // 2 for total in totals]
    pads_before = [p if isinstance(p, int) else half for p, half in zip(window.before, halves, strict=True)]
    rests = zip(window.after, totals, halves, strict=True)
    pads_after = [p if isinstance(p, int) else total - half for p, total, half in rests]
    return PoolWindow(
        window.kernel, window.strides, window.dilations, tuple(pads_before), tuple(pads_after), same, count_pad=include
    )


@converter("LpPool")
def lp_pool(context: NodeContext) -> relax.Expr:
    """The p-norm of each window."""
    window = _window(context)
    order = float(context.attribute("p", 2))
    return context.emit_te(norm_kernel(window, order), context.input(0), *_flat(window), primfunc_name_hint="lp_pool")


@converter("GlobalMaxPool")
def global_max_pool(context: NodeContext) -> relax.Expr:
    """Maximum of each channel, or NaN if it contains NaN."""
    return R.max(context.input(0), axis=_spatial_axes(context), keepdims=True)


@converter("GlobalAveragePool")
def global_average_pool(context: NodeContext) -> relax.Expr:
    """The mean of each channel."""
    mean = context.emit(R.mean(widened(context, context.input(0)), axis=_spatial_axes(context), keepdims=True))
    return cast(context, mean, context.dtype(0))


@converter("GlobalLpPool")
def global_lp_pool(context: NodeContext) -> relax.Expr:
    """The p-norm of each channel."""
    order = float(context.attribute("p", 2))
    data = widened(context, context.input(0))
    wide = str(data.ty.dtype)
    powers = context.emit(R.power(R.abs(data), context.literal(order, wide)))
    total = context.emit(R.sum(powers, axis=_spatial_axes(context), keepdims=True))
    norm = context.emit(R.power(total, context.literal(1.0 / order, wide)))
    return cast(context, norm, context.dtype(0))


def _spatial_axes(context: NodeContext) -> list[int]:
    _require_data(context)
    return list(range(2, spatial_rank(context) + 2))


@converter("MaxUnpool", since=9)
def max_unpool(context: NodeContext) -> relax.Expr:
    """Place elements at the flat indices of the second input, zeros elsewhere; a larger output_shape adds zeros."""
    rank = spatial_rank(context)
    kernel = kernel_attribute(context, rank)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    arithmetic = context.arithmetic
    shape: list[Dim] = [*context.shape(0)[:2]]
    for axis, size in enumerate(context.shape(0)[2:]):
        moved = arithmetic.multiply(arithmetic.subtract(size, 1), strides[axis])
        shape.append(arithmetic.add(moved, kernel[axis] - pads[axis] - pads[axis + rank]))
    require_shape(context, context.shape(1), context.shape(0), "its indices")
    require_values(context, 1, 0, arithmetic.product(shape))
    sizes = [expression(size) for size in shape]
    result = context.emit_te(_scatter, context.input(0), context.input(1), *sizes, primfunc_name_hint="max_unpool")
    if not context.has_input(2):
        return result
    output_shape = context.shape_values(2)
    if len(output_shape) != rank + 2:
        context.invalid(f"output_shape has {len(output_shape)} elements for data of rank {rank + 2}")
    added = [arithmetic.subtract(size, own) for size, own in zip(output_shape[2:], shape[2:], strict=True)]
    return padded(context, result, [0] * rank, added, 0)


def _scatter(data: Tensor, indices: Tensor, *sizes: Expr) -> Tensor:
    """Return a tensor of those sizes: data[i] at the flat position indices[i], zero elsewhere."""

    def body(ins: Sequence[Expr], outs: Sequence[Expr]) -> Stmt:
        source, positions, out = (FlatBuffer(buffer) for buffer in (ins[0], ins[1], outs[0]))
        zero = tirx.const(0, str(data.dtype))
        with IRBuilder() as builder:
            with T.seq_scope():
                for_each(_product(sizes), data.dtype, lambda i: out.__setitem__(i, zero))
                with in_sequence(_product(data.shape), "values of one place, in order") as element:
                    known = tirx.all(positions[element] >= 0, positions[element] < _product(sizes))
                    with T.If(known), T.Then():
                        out[positions[element]] = source[element]
            return builder.get().body

    return te.extern([list(sizes)], [data, indices], body, dtype=str(data.dtype), name="max_unpool")


@converter("Col2Im", since=18)
def col2im(context: NodeContext) -> relax.Expr:
    """Sum blocks (N, C * taps, blocks) into images (N, C, D1...), each at its original position."""
    image, block = context.shape_values(1), context.integers(2)
    rank = len(block)
    if len(image) != rank or context.rank(0) != 3 or any(size < 1 for size in block):
        context.invalid(f"blocks of shape {block} for images of rank {len(image)}")
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    taps = math.prod(block)
    arithmetic = context.arithmetic
    counts = []
    for axis, size in enumerate(image):
        free = arithmetic.add(size, pads[axis] + pads[axis + rank] - dilations[axis] * (block[axis] - 1) - 1)
        counts.append(arithmetic.add(arithmetic.floor_divide(free, strides[axis]), 1))
        require(context, counts[-1], "at least", 0)
    require_multiple(context, context.shape(0)[1], taps)
    require(context, context.shape(0)[2], "equal", arithmetic.product(counts))

    window = _Window(block, pads[:rank], strides, dilations)

    def compute(data: Tensor, *operands: Expr) -> Tensor:
        sizes, counts = list(operands[:rank]), list(operands[rank:])
        shape = [data.shape[0], tirx.floordiv(data.shape[1], taps), *sizes]
        wide = compute_dtype(data.dtype)

        def body(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            with IRBuilder() as builder:
                images = shape[0] * shape[1]
                with shared_tasks(images, _product(data.shape), _WORTH_THREADS) as image:
                    _add_blocks(window, FlatBuffer(ins[0]), FlatBuffer(outs[0]), image, sizes, counts, wide)
                return builder.get()

        total = te.extern([shape], [data], body, dtype=wide, name="col2im")
        if wide == str(data.dtype):
            return total
        return te.compute(shape, lambda *i: total(*i).astype(data.dtype), name="cast")

    sizes = [expression(size) for size in (*image, *counts)]
    return context.emit_te(compute, context.input(0), *sizes, primfunc_name_hint="col2im")


_WORTH_THREADS = 1 << 15  # elements, some 10 microseconds


@dataclass(frozen=True)
class _Window:
    """The blocks of Col2Im, by axis."""

    block: Sequence[int]
    before: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]


def _add_blocks(
    window: _Window, source: Buffer, out: Buffer, image: Expr, sizes: list[Expr], counts: list[Expr], dtype: str
) -> None:
    """Emit one channel of one sample: zeros, plus each tap of all blocks at its original position."""
    rank, area, blocks = len(sizes), _product(sizes), _product(counts)

    def tap(axis: int, taps: list[Expr]) -> None:
        if axis == rank:
            number = tirx.const(0, "int64")
            for extent, index in zip(window.block, taps, strict=True):
                number = number * extent + index
            first = (image * math.prod(window.block) + number) * blocks
            line(0, taps, first, image * area)
            return
        with T.serial(0, tirx.const(window.block[axis], "int64")) as index:
            tap(axis + 1, [*taps, index])

    def line(axis: int, taps: list[Expr], first: Expr, to: Expr) -> None:
        """Emit the blocks along an axis whose tap is in the image; the last axis is vectorized."""
        stride, moved = window.strides[axis], taps[axis] * window.dilations[axis] - window.before[axis]
        low = tirx.max(tirx.floordiv(stride - 1 - moved, tirx.const(stride, "int64")), tirx.const(0, "int64"))
        high = tirx.min(tirx.floordiv(sizes[axis] - 1 - moved, tirx.const(stride, "int64")) + 1, counts[axis])
        extent = tirx.max(high - low, tirx.const(0, "int64"))
        if axis == rank - 1:
            begin, target = first + low, to + low * stride + moved

            def add(i: Expr) -> None:
                out[target + i * stride] = out[target + i * stride] + source[begin + i].astype(dtype)

            in_vectors(extent, dtype if stride == 1 else None, add)
            return
        inner, lines = _product(sizes[axis + 1 :]), _product(counts[axis + 1 :])
        with T.serial(0, extent) as i:
            line(axis + 1, taps, first + (low + i) * lines, to + ((low + i) * stride + moved) * inner)

    with T.seq_scope():
        in_vectors(area, dtype, lambda i: out.__setitem__(image * area + i, tirx.const(0, dtype)))
        tap(0, [])
