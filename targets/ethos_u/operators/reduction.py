"""Means, sums, maxima and minima along axes; pooling of images and sequences.

The mean of all positions of an image is a depthwise convolution with weights of 1; for other reductions the axes are
moved to the end and summed there, in 32 bits.

Pooling of images and sequences. Averages are depthwise convolutions with weights of 1 if every element has the same
weight: they scale and round once; averages that exclude padding use the hardware's averaging, and a second rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from schedules.ir.tvm_types import Call
from targets.ethos_u.fixed_point import FixedPoint
from targets.ethos_u.images import (
    LARGEST_KERNEL,
    TALLEST_KERNEL,
    Window,
    check_kernel,
    check_layout,
    check_strides,
    from_image,
    image,
)
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Form, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph
from targets.ethos_u.view import View

# Sums of this many differences of two bytes fit 32 bits; the accelerator reduces at most this many.
_MAX_SIZE = 65536


@operator("relax.mean", "relax.sum")
def total(view: View, call: Call, result: Result) -> Step:
    """mean or sum(dequantize(x))."""
    name = str(call.op.name).removeprefix("relax.")
    data, axes, size = _described(view, call)
    ratio = data.scale / result.output.scale / (size if name == "mean" else 1)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        rows, _ = emitter.rows(inputs[0], axes)
        sums = FixedPoint(graph).sums(graph.rescale(rows, [1.0], "int32", zero=data.zero))
        return emitter.made(graph.reshape(emitter.finished(sums, [ratio], result), result.output.shape), last=False)

    window = _positions(data, axes) if name == "mean" else None
    if window is None:
        return Step(name, data.sizes, (data,), result.output, 0, emit)

    def emit_pool(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        if len(data.shape) == 3 and not inputs[0].last:
            return emit(emitter, inputs)
        pooled = averaged(emitter, image(emitter, inputs[0]), data, window, result)
        keeps_axes = len(result.output.shape) == len(data.shape)
        shape = (data.shape[0], *(1,) * (len(data.shape) - 2), data.shape[1]) if keeps_axes else result.output.shape
        return emitter.made(emitter.graph.reshape(pooled, shape), last=keeps_axes)

    def emit_strips(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        if len(data.shape) == 3 and not inputs[0].last:
            return emit(emitter, inputs)
        sums = place_sums(emitter.graph, image(emitter, inputs[0]), data.zero)
        keeps_axes = len(result.output.shape) == len(data.shape)
        shape = (data.shape[0], *(1,) * (len(data.shape) - 2), data.shape[1]) if keeps_axes else result.output.shape
        return emitter.made(emitter.graph.reshape(emitter.finished(sums, [ratio], result), shape), last=keeps_axes)

    forms = {"channels in columns": Form(emit_strips)} if has_strips(data.shape) else {}
    return Step(name, data.sizes, (data,), result.output, math.prod(data.shape), emit_pool, forms)


@operator("relax.max", "relax.min")
def extreme(view: View, call: Call, result: Result) -> Step:
    """max or min(dequantize(x))."""
    data, axes, _ = _described(view, call)
    return _extreme(str(call.op.name).removeprefix("relax."), data, axes, result)


@operator("kernel.reduce")
def reduced(view: View, call: Call, result: Result) -> Step:
    """The same for a kernel that propagates NaN."""
    data = view.quantized(call.args[1].fields[0])
    kernel = Kernel(view, call)
    numbers = np.random.default_rng(0).normal(size=data.shape).astype(np.float32)
    rank, computed = len(data.shape), kernel(numbers)
    for count in range(1, rank + 1):
        for axes in combinations(range(rank), count):
            for name, function in (("max", np.max), ("min", np.min)):
                wanted = function(numbers, axis=axes)
                if wanted.size == computed.size and np.array_equal(wanted.ravel(), computed.ravel()):
                    return _extreme(name, data, axes, result)
    raise Unsupported("it reduces by a kernel that is neither a maximum nor a minimum")


def _extreme(name: str, data: Quantized, axes: Sequence[int], result: Result) -> Step:

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, _ = emitter.rows(inputs[0], axes)
        reduced = emitter.graph.reduce(f"REDUCE_{name.upper()}", rows)
        # Vela 5.2 miscompiles a REDUCE_MIN of several rows that is followed only by a reshape.
        found = (emitter.table if name == "min" else emitter.rescaled)(reduced, data, result)
        return emitter.made(emitter.graph.reshape(found, result.output.shape), last=False)

    return Step(name, data.sizes, (data,), result.output, 0, emit)


def _described(view: View, call: Call) -> tuple[Quantized, list[int], int]:
    """The operand, the axes, and the number of elements reduced to one."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    given = call.attrs.axis
    axes = sorted(int(axis) % rank for axis in given) if given is not None else list(range(rank))
    size = math.prod(data.shape[axis] for axis in axes)
    if size > _MAX_SIZE:
        raise Unsupported(f"it reduces {size} elements to one, and the accelerator takes up to {_MAX_SIZE}")
    return data, axes, size


def _positions(data: Quantized, axes: Sequence[int]) -> Window | None:
    """The window that covers all positions of images or sequences, if these are the axes."""
    rank = len(data.shape)
    if rank not in (3, 4) or list(axes) != list(range(2, rank)):
        return None
    height, width = (1, *data.shape[2:])[-2:]
    if height > TALLEST_KERNEL or height * width > LARGEST_KERNEL:
        return None
    return Window((height, width), (1, 1), (0, 0, 0, 0))


_TALLEST, _LARGEST = 256, 65536
_LARGEST_PADDED = 8


@operator("relax.nn.max_pool2d", "relax.nn.max_pool1d")
def maximum(view: View, call: Call, result: Result) -> Step:
    """max_pool(dequantize(x))."""
    data = view.quantized(call.args[0])
    _, window = _windows(call, data, result)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = image(emitter, inputs[0])
        pooled = emitter.graph.pool("MAX_POOL2D", x, window.kernel, window.strides, window.padding)
        return from_image(emitter, emitter.rescaled(pooled, data, result), len(data.shape))

    return Step("max pooling", _window_sizes(window), (data,), result.output, 0, emit)


@operator("relax.nn.avg_pool2d", "relax.nn.avg_pool1d")
def average(view: View, call: Call, result: Result) -> Step:
    """avg_pool(dequantize(x))."""
    data = view.quantized(call.args[0])
    plain, window = _windows(call, data, result)
    name, rank = "average pooling", len(data.shape)
    sides = [int(each) for each in call.attrs.padding]
    ceiled = plain != window
    if not ceiled and (not any(sides) or bool(call.attrs.count_include_pad)):
        check_kernel(window.kernel)
        macs = int(np.prod(result.output.shape)) * window.kernel[0] * window.kernel[1]

        def emit_sum(emitter: Emitter, inputs: Sequence[Value]) -> Value:
            return from_image(emitter, averaged(emitter, image(emitter, inputs[0]), data, window, result), rank)

        return Step(name, _window_sizes(window), (data,), result.output, macs, emit_sum)
    if ceiled and bool(call.attrs.count_include_pad):
        raise Unsupported("its last windows reach past the padding that it counts")
    if max(window.kernel) > _LARGEST_PADDED:
        raise Unsupported(f"its kernel is {_window_sizes(window)}, and with padding the accelerator averages up to 8x8")
    if data.shape[0] != 1:
        raise Unsupported(f"its batch is {data.shape[0]}, and the accelerator averages one image")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = image(emitter, inputs[0])
        pooled = emitter.graph.pool("AVG_POOL2D", x, window.kernel, window.strides, window.padding, data.zero)
        return from_image(emitter, emitter.rescaled(pooled, data, result), rank)

    return Step(name, _window_sizes(window), (data,), result.output, 0, emit)


def averaged(emitter: Emitter, x: Tensor, data: Quantized, window: Window, result: Result) -> Tensor:
    """Sums of windows with weights of 1, divided by rescaling."""
    ones = np.ones((*window.kernel, x.shape[3], 1), np.int8)
    bias = np.zeros(x.shape[3], np.int32)
    sums = emitter.graph.convolution(
        x, ones, bias, data.zero, padding=window.padding, strides=window.strides, depthwise=True
    )
    return emitter.finished(sums, [data.scale / (result.output.scale * window.kernel[0] * window.kernel[1])], result)


_STRIP = 8  # channels summed together


def has_strips(shape: Sequence[int]) -> bool:
    """True if `place_sums` supports images (1, C, H, W) of that shape."""
    height, width = (1, *shape[2:])[-2:]
    return shape[0] == 1 and shape[1] % _STRIP == 0 and height <= TALLEST_KERNEL and width <= TALLEST_KERNEL


def place_sums(graph: TosaGraph, x: Tensor, zero: int) -> Tensor:
    """int32 sums (1, 1, C / 8, 8) of all positions of an image (1, H, W, C).

    Channels become columns, so that one weight of 1 serves many of them: with one column, reading weights takes eight
    times as long as multiplying.
    """
    _, height, width, channels = x.shape
    rows = height * width if height * width <= TALLEST_KERNEL else height
    columns = height * width * channels // (rows * _STRIP)
    ones, bias = np.ones((rows, 1, _STRIP, 1), np.int8), np.zeros(_STRIP, np.int32)
    sums = graph.convolution(
        graph.reshape(x, (1, rows, columns, _STRIP)), ones, bias, zero, padding=(0,) * 4, strides=(1, 1), depthwise=True
    )
    return _folded_sums(graph, sums, channels // _STRIP)


def _folded_sums(graph: TosaGraph, sums: Tensor, columns: int) -> Tensor:
    """The sum of each `columns` columns of int32 (1, 1, n * columns, C), by repeated halving."""
    count = sums.shape[2] // columns
    if count == 1:
        return sums
    half = count // 2 * columns
    parts = [graph.slice(sums, (0, 0, start, 0), (1, 1, half, sums.shape[3])) for start in (0, half)]
    added = graph.emit("ADD", parts, parts[0].shape, "int32", "AddAttribute")
    if count % 2:
        last = graph.slice(sums, (0, 0, 2 * half, 0), (1, 1, columns, sums.shape[3]))
        return graph.emit("ADD", [_folded_sums(graph, added, columns), last], last.shape, "int32", "AddAttribute")
    return _folded_sums(graph, added, columns)


def _windows(call: Call, data: Quantized, result: Result) -> tuple[Window, Window]:
    """The given window, and the window padded to the end of the last position for a pool with ceil mode."""
    check_layout(call.attrs.layout)
    sizes = result.output.shape[2:]
    window = Window.of(call.attrs, call.attrs.pool_size).single(data.shape[2:], sizes)
    if max(window.dilation) > 1:
        raise Unsupported("its window is dilated")
    check_strides(window.strides)
    height, width = window.kernel
    if height > _TALLEST or height * width > _LARGEST:
        raise Unsupported(f"its window is {height}x{width}, and the accelerator takes up to {_TALLEST} rows")
    top, bottom, left, right = window.padding
    if bool(call.attrs.ceil_mode):
        (rows, columns), (down, across) = ((1, *each)[-2:] for each in (sizes, data.shape[2:]))
        bottom = max(bottom, (rows - 1) * window.strides[0] + height - down - top)
        right = max(right, (columns - 1) * window.strides[1] + width - across - left)
    if max(top, bottom) >= height or max(left, right) >= width:
        raise Unsupported("its padding is as wide as its window")
    return window, replace(window, padding=(top, bottom, left, right))


def _window_sizes(window: Window) -> str:
    return "{}x{}/{}x{}".format(*window.kernel, *window.strides)
