"""Pooling of images and sequences. Averages are depthwise convolutions with weights of 1 where every element counts the
same: they scale and round once; those that leave out their padding use the averaging of the hardware, and a second
rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from targets.ethos_u.images import Window, check_kernel, check_layout, check_strides, from_image, image
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor
from targets.ethos_u.view import View

_TALLEST, _LARGEST = 256, 65536
_LARGEST_PADDED = 8


@operator("relax.nn.max_pool2d", "relax.nn.max_pool1d")
def maximum(view: View, call: Any, result: Result) -> Step:
    """max_pool(dequantize(x))."""
    data = view.quantized(call.args[0])
    _, window = _windows(call, data, result)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = image(emitter, inputs[0])
        pooled = emitter.graph.pool("MAX_POOL2D", x, window.kernel, window.strides, window.padding)
        return from_image(emitter, emitter.rescaled(pooled, data, result), len(data.shape))

    return Step("max pooling", _sizes(window), (data,), result.output, 0, emit)


@operator("relax.nn.avg_pool2d", "relax.nn.avg_pool1d")
def average(view: View, call: Any, result: Result) -> Step:
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

        return Step(name, _sizes(window), (data,), result.output, macs, emit_sum)
    if ceiled and bool(call.attrs.count_include_pad):
        raise Unsupported("its last windows reach past the padding that it counts")
    if max(window.kernel) > _LARGEST_PADDED:
        raise Unsupported(f"its kernel is {_sizes(window)}, and with padding the accelerator averages up to 8x8")
    if data.shape[0] != 1:
        raise Unsupported(f"its batch is {data.shape[0]}, and the accelerator averages one image")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = image(emitter, inputs[0])
        pooled = emitter.graph.pool("AVG_POOL2D", x, window.kernel, window.strides, window.padding, data.zero)
        return from_image(emitter, emitter.rescaled(pooled, data, result), rank)

    return Step(name, _sizes(window), (data,), result.output, 0, emit)


def averaged(emitter: Emitter, x: Tensor, data: Quantized, window: Window, result: Result) -> Tensor:
    """Sums of windows by weights of 1, divided as they are rescaled."""
    ones = np.ones((*window.kernel, x.shape[3], 1), np.int8)
    bias = np.zeros(x.shape[3], np.int32)
    sums = emitter.graph.convolution(
        x, ones, bias, data.zero, padding=window.padding, strides=window.strides, depthwise=True
    )
    return emitter.finished(sums, [data.scale / (result.output.scale * window.kernel[0] * window.kernel[1])], result)


def _windows(call: Any, data: Quantized, result: Result) -> tuple[Window, Window]:
    """As it is given, and as it is where a pool that rounds its sizes up pads to the end of the last window."""
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


def _sizes(window: Window) -> str:
    return "{}x{}/{}x{}".format(*window.kernel, *window.strides)
