"""Pooling. Averages are depthwise convolutions with weights of 1 where every element counts the same: they scale and
round once; those that leave out their padding use the averaging of the hardware, and a second rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.ethos_u.operators.convolution import check_kernel
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

_WIDEST_STRIDE = 3
_TALLEST, _LARGEST = 256, 65536
_LARGEST_PADDED = 8


@operator("relax.nn.max_pool2d")
def maximum(view: View, call: Any, result: Result) -> Step:
    """max_pool2d(dequantize(x))."""
    data = view.quantized(call.args[0])
    kernel, strides, padding = _window(call, data, result)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        pooled = emitter.graph.pool("MAX_POOL2D", emitter.last(inputs[0]), kernel, strides, padding)
        return emitter.made(rescaled(emitter, pooled, data, result))

    return Step("max pooling", _sizes(kernel, strides), (data,), result.output, 0, emit)


@operator("relax.nn.avg_pool2d")
def average(view: View, call: Any, result: Result) -> Step:
    """avg_pool2d(dequantize(x))."""
    data = view.quantized(call.args[0])
    kernel, strides, padding = _window(call, data, result)
    name, sizes = "average pooling", _sizes(kernel, strides)
    ceiled = any(
        (out - 1) * stride + extent > size + before + after
        for out, stride, extent, size, before, after in zip(
            result.output.shape[2:], strides, kernel, data.shape[2:], padding[::2], padding[1::2], strict=True
        )
    )
    if not ceiled and (not any(padding) or bool(call.attrs.count_include_pad)):
        check_kernel(kernel)
        macs = int(np.prod(result.output.shape)) * kernel[0] * kernel[1]

        def emit_sum(emitter: Emitter, inputs: Sequence[Value]) -> Value:
            return emitter.made(averaged(emitter, inputs[0], data, kernel, strides, padding, result))

        return Step(name, sizes, (data,), result.output, macs, emit_sum)
    if ceiled and bool(call.attrs.count_include_pad):
        raise Unsupported("its last windows reach past the padding that it counts")
    if max(kernel) > _LARGEST_PADDED:
        raise Unsupported(f"its kernel is {sizes}, and with padding the accelerator averages up to 8x8")
    if data.shape[0] != 1:
        raise Unsupported(f"its batch is {data.shape[0]}, and the accelerator averages one image")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        pooled = emitter.graph.pool("AVG_POOL2D", emitter.last(inputs[0]), kernel, strides, padding, data.zero)
        return emitter.made(rescaled(emitter, pooled, data, result))

    return Step(name, sizes, (data,), result.output, 0, emit)


@operator("relax.mean")
def mean(view: View, call: Any, result: Result) -> Step:
    """mean(dequantize(x)) of the height and width of images, or of the last axis."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    given = call.attrs.axis
    axes = sorted(int(axis) % rank for axis in given) if given is not None else list(range(rank))
    if rank == 4 and axes == [2, 3]:
        kernel = (data.shape[2], data.shape[3])
    elif axes == [rank - 1]:
        kernel = (1, data.shape[-1])
    else:
        raise Unsupported(f"it averages the axes {axes} of {rank}; the accelerator does height and width, or the last")
    check_kernel(kernel)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        value = inputs[0]
        if axes != [2, 3]:
            rows = int(np.prod(data.shape[:-1]))
            value = Value(emitter.graph.reshape(emitter.first(value), (1, rows, data.shape[-1], 1)), True)
        pooled = averaged(emitter, value, data, kernel, (1, 1), (0, 0, 0, 0), result)
        if axes == [2, 3] and len(result.output.shape) == 4:
            return emitter.made(pooled)
        return emitter.made(emitter.graph.reshape(pooled, result.output.shape), last=False)

    return Step("mean", _sizes(kernel, (1, 1)), (data,), result.output, int(np.prod(data.shape)), emit)


def averaged(
    emitter: Emitter,
    value: Value,
    data: Quantized,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    result: Result,
) -> Any:
    """Sums of windows by weights of 1, divided as they are rescaled."""
    x = emitter.last(value)
    ones = np.ones((*kernel, x.shape[3], 1), np.int8)
    bias = np.zeros(x.shape[3], np.int32)
    sums = emitter.graph.convolution(x, ones, bias, data.zero, padding=padding, strides=strides, depthwise=True)
    return emitter.finished(sums, [data.scale / (result.output.scale * kernel[0] * kernel[1])], result)


def rescaled(emitter: Emitter, x: Any, data: Quantized, result: Result) -> Any:
    """int8 integers of `data` as those of the result, limited."""
    if not data.same_numbers(result.output):
        ratio = data.scale / result.output.scale
        x = emitter.graph.rescale(x, [ratio], "int8", zero=data.zero, output_zero=result.output.zero)
    return emitter.graph.clamp(x, result.low, result.high)


def _window(call: Any, data: Quantized, result: Result) -> tuple[tuple[int, int], list[int], tuple[int, ...]]:
    """(kernel, strides, padding as top, bottom, left, right) within the limits of pooling."""
    if str(call.attrs.layout) != "NCHW":
        raise Unsupported(f"its layout is {call.attrs.layout}")
    height, width = (int(each) for each in call.attrs.pool_size)
    strides = [int(each) for each in call.attrs.strides]
    top, left, bottom, right = (int(each) for each in call.attrs.padding)
    if any(int(each) != 1 for each in call.attrs.dilation):
        raise Unsupported("its window is dilated")
    if max(strides) > _WIDEST_STRIDE:
        raise Unsupported(f"its strides are {strides}, and the accelerator takes up to {_WIDEST_STRIDE}")
    if height > _TALLEST or height * width > _LARGEST:
        raise Unsupported(f"its window is {height}x{width}, and the accelerator takes up to {_TALLEST} rows")
    if bool(call.attrs.ceil_mode):
        rows, columns = result.output.shape[2:]
        bottom = max(bottom, (rows - 1) * strides[0] + height - data.shape[2] - top)
        right = max(right, (columns - 1) * strides[1] + width - data.shape[3] - left)
    if max(top, bottom) >= height or max(left, right) >= width:
        raise Unsupported("its padding is as wide as its window")
    return (height, width), strides, (top, bottom, left, right)


def _sizes(kernel: Sequence[int], strides: Sequence[int]) -> str:
    return f"{kernel[0]}x{kernel[1]}/{strides[0]}x{strides[1]}"
