"""MaxPool, AveragePool, LpPool and the global poolings."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.nn.pooling_kernels import (
    average_kernel,
    max_index_kernel,
    max_kernel,
    norm_kernel,
)
from compiler.frontends.onnx.operators.nn.spatial import (
    Window,
    auto_pad,
    kernel_attribute,
    padded,
    spatial_rank,
    spatial_sizes,
    starts_in_data,
    window_of,
)
from compiler.frontends.onnx.operators.precision import cast, compute_dtype, widened
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.passes.layout.average_windows import AVERAGE_WINDOW, AverageWindow

# Types of integers that TVM pools, from their lowest value on.
_BYTES = ("int8", "uint8")
_MAX_POOLS = {1: R.nn.max_pool1d, 2: R.nn.max_pool2d, 3: R.nn.max_pool3d}
_AVERAGE_POOLS = {1: R.nn.avg_pool1d, 2: R.nn.avg_pool2d, 3: R.nn.avg_pool3d}


def _window(context: NodeContext) -> Window:
    kernel = kernel_attribute(context, spatial_rank(context))
    _require_data(context)
    ceil_mode = bool(context.attribute("ceil_mode", 0))
    return window_of(context, kernel, context.shape(0)[2:], ceil_mode=ceil_mode)


def _require_data(context: NodeContext) -> None:
    """A window over nothing has no largest element and no mean; ONNX Runtime refuses it too."""
    for size in context.shape(0)[2:]:
        if not isinstance(size, int):
            require(context, size, "at least", 1)


def _overhang(context: NodeContext, window: Window) -> tuple[Dim, ...]:
    """How far the last window reaches beyond the padded input: not at all where output sizes are rounded down."""
    if not context.attribute("ceil_mode", 0):
        return (0,) * window.rank
    return window.overhang(context.arithmetic, spatial_sizes(context.input(0)))


def _flat(window: Window) -> list[Dim]:
    """The window as scalars, for a tensor expression function."""
    return [*window.before, *window.output]


@converter("MaxPool")
def max_pool(context: NodeContext) -> relax.Expr | list[relax.Expr]:
    """The largest element of each window and, when asked for, its index in the flattened input (int64)."""
    window = _window(context)
    largest = context.emit(_largest(context, window))
    if not context.output_used(1):
        return largest
    kernel = max_index_kernel(window, bool(context.attribute("storage_order", 0)))
    operands = context.input(0), largest, *window.before
    return [largest, context.emit_te(kernel, *operands, primfunc_name_hint="max_pool_indices")]


def _largest(context: NodeContext, window: Window) -> relax.Expr:
    """The largest element of each window, NaN where there is one."""
    data = context.input(0)
    overhang = _overhang(context, window)
    ceil_mode = not all(isinstance(each, int) for each in overhang) and _rounds_up(context, window)
    after = [a if ceil_mode else context.arithmetic.add(a, o) for a, o in zip(window.after, overhang, strict=True)]
    padding = [*window.before, *after]
    # A padding as wide as the window makes windows without data.
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
    """Whether the ceiling mode that Relax has, which never leaves out a window, gives the same output size: no window
    starts in the padding after the input, whatever its size."""
    if not context.attribute("ceil_mode", 0) or not window.has_static_padding():
        return False
    return all(map(starts_in_data, window.after, window.strides, window.extents))


@converter("AveragePool")
def average_pool(context: NodeContext) -> relax.Expr:
    """The mean of each window; its padding counts when count_include_pad is set, what lies beyond never does."""
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
        data,
        list(window.kernel),
        list(window.strides),
        [*window.before, *window.after],
        count_include_pad=include,
    )


def _described(context: NodeContext, window: Window, include: bool) -> AverageWindow:
    """The window as the layout pass wants it: padding that follows from symbolic sizes as the most of it."""
    mode = auto_pad(context)
    same = mode.removeprefix("SAME_").lower() if mode.startswith("SAME") else ""
    totals = [extent - 1 for extent in window.extents]
    halves = [total // 2 if same == "upper" else (total + 1) // 2 for total in totals]
    before = [p if isinstance(p, int) else half for p, half in zip(window.before, halves, strict=True)]
    rests = zip(window.after, totals, halves, strict=True)
    after = [p if isinstance(p, int) else total - half for p, total, half in rests]
    return AverageWindow(
        window.kernel, window.strides, window.dilations, tuple(before), tuple(after), same, count_pad=include
    )


@converter("LpPool")
def lp_pool(context: NodeContext) -> relax.Expr:
    """The p-norm of each window."""
    window = _window(context)
    order = float(context.attribute("p", 2))
    return context.emit_te(norm_kernel(window, order), context.input(0), *_flat(window), primfunc_name_hint="lp_pool")


@converter("GlobalMaxPool")
def global_max_pool(context: NodeContext) -> relax.Expr:
    """The largest element of each channel, or NaN where there is one."""
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
