"""Convolutions and depthwise convolutions.

Limits of U55 and U65 as `vela --supported-ops-report` (5.2.0) lists them for TOSA's CONV2D; a U85 has the strides of
the same report for TensorFlow Lite's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Array, Emitter, Result, Step, Unsupported, Value
from targets.ethos_u.view import View, Weight

LARGEST_KERNEL = 4096
TALLEST_KERNEL = 64
_WIDEST_STRIDE = 3
_LARGEST_SUM = 127 * 65536
_DEPTH = 65536


@operator("relax.nn.conv2d", bias=True)
def convolution(view: View, call: Any, result: Result) -> Step:
    """conv2d(dequantize(x), dequantize(w)) + bias."""
    if str(call.attrs.data_layout) != "NCHW" or str(call.attrs.kernel_layout) != "OIHW":
        raise Unsupported(f"its layouts are {call.attrs.data_layout} and {call.attrs.kernel_layout}")
    data, weight = view.quantized(call.args[0]), view.weight(call.args[1], 0)
    filters, depth, height, width = weight.values.shape
    groups, channels = int(call.attrs.groups), data.shape[1]
    strides, dilation = ([int(each) for each in values] for values in (call.attrs.strides, call.attrs.dilation))
    top, left, bottom, right = (int(each) for each in call.attrs.padding)
    depthwise = groups == channels and groups > 1
    if groups not in (1, channels):
        raise Unsupported(f"it has {groups} groups of {depth} channels")
    check_kernel((height, width), dilation)
    check_weight(weight)
    if max(strides) > _WIDEST_STRIDE:
        raise Unsupported(f"its strides are {strides}, and the accelerator takes up to {_WIDEST_STRIDE}")
    if channels > _DEPTH or filters > _DEPTH:
        raise Unsupported(f"it has {max(channels, filters)} channels, and the accelerator takes up to {_DEPTH}")
    if depthwise:
        # (C * M, 1, h, w) to (h, w, C, M)
        ordered = weight.values[:, 0].reshape(channels, filters // channels, height, width).transpose(2, 3, 0, 1)
    else:
        ordered = weight.values.transpose(0, 2, 3, 1)
    bias = integer_bias(result.bias, data.scale * weight.scale, filters, 2)
    scales = [float(each) for each in data.scale * weight.scale / result.output.scale]

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        sums = emitter.graph.convolution(
            emitter.last(inputs[0]),
            np.ascontiguousarray(ordered),
            bias,
            data.zero,
            padding=(top, bottom, left, right),
            strides=strides,
            dilation=dilation,
            depthwise=depthwise,
        )
        return emitter.made(emitter.finished(sums, scales, result))

    name = "depthwise convolution" if depthwise else "convolution"
    macs = int(np.prod(result.output.shape)) * depth * height * width
    return Step(name, "x".join(map(str, weight.values.shape)), (data,), result.output, macs, emit)


def check_kernel(kernel: tuple[int, int], dilation: Sequence[int] = (1, 1)) -> None:
    """Raises Unsupported where the kernel, with what lies between its elements, is too large."""
    height, width = ((extent - 1) * step + 1 for extent, step in zip(kernel, dilation, strict=True))
    if height > TALLEST_KERNEL or height * width > LARGEST_KERNEL:
        raise Unsupported(
            f"its kernel covers {height}x{width}, and the accelerator takes {LARGEST_KERNEL} elements in up to"
            f" {TALLEST_KERNEL} rows"
        )


def check_weight(weight: Weight) -> None:
    """Raises Unsupported where a filter could overflow the accumulators."""
    others = tuple(axis for axis in range(weight.values.ndim) if axis != weight.axis)
    if np.abs(weight.values.astype(np.int64)).sum(axis=others).max() > _LARGEST_SUM:
        raise Unsupported(f"the weights of a filter sum up to more than {_LARGEST_SUM}")


def integer_bias(bias: Array | None, step: Array, filters: int, behind: int) -> Array:
    """A bias in steps of the sums: int32 (filters); `behind` is how many axes follow that of the filters.

    Raises:
        Unsupported: it is not one number a filter.
    """
    if bias is None:
        return np.zeros(filters, np.int32)
    places = (1,) * (bias.ndim - 1 - behind) + (filters,) + (1,) * behind
    if bias.size != 1 and bias.shape != places:
        raise Unsupported(f"what is added to it has the shape {list(bias.shape)}, and is no bias")
    integers = np.rint(np.broadcast_to(bias.reshape(-1), filters).astype(np.float64) / step)
    if np.abs(integers).max(initial=0) >= 2.0**31:
        raise Unsupported("its bias is too large for the steps of its sums")
    return integers.astype(np.int32)
