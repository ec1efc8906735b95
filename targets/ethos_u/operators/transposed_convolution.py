"""Transposed convolutions; strides as `vela --supported-ops-report` (5.2.0) lists them for TOSA's TRANSPOSE_CONV2D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from targets.ethos_u.images import check_kernel
from targets.ethos_u.operators.convolution import check_weight, fitted
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call

_STRIDES = ((1, 1), (2, 2))


@operator("relax.nn.conv2d_transpose", bias=True)
def transposed_convolution(view: View, call: Call, result: Result) -> Step:
    """conv2d_transpose(dequantize(x), dequantize(w)) + bias, w (channels, filters, height, width)."""
    if str(call.attrs.data_layout) != "NCHW" or str(call.attrs.kernel_layout) != "IOHW":
        raise Unsupported(f"its layouts are {call.attrs.data_layout} and {call.attrs.kernel_layout}")
    if int(call.attrs.groups) != 1 or any(int(step) != 1 for step in call.attrs.dilation):
        raise Unsupported("it has groups or a dilated kernel")
    data, weight = view.quantized(call.args[0]), view.weight(call.args[1], 1)
    _, filters, height, width = weight.values.shape
    strides = tuple(int(step) for step in call.attrs.strides)
    if strides not in _STRIDES:
        raise Unsupported(f"its strides are {list(strides)}, and the accelerator takes 1 or 2 for both axes")
    check_kernel((height, width))
    check_weight(weight)
    weight, bias = fitted(weight, data, result, 2)
    top, left, bottom, right = (int(each) for each in call.attrs.padding)
    extra = [int(each) for each in call.attrs.output_padding]
    # What TOSA adds at the edges of the result.
    edges = [-top, extra[0] - bottom, -left, extra[1] - right]
    if min(edges[:2]) <= -height or min(edges[2:]) <= -width:
        raise Unsupported("its padding is as wide as its kernel")
    ordered = np.ascontiguousarray(weight.values.transpose(1, 2, 3, 0))
    scales = [float(each) for each in data.scale * weight.scale / result.output.scale]
    sizes = result.output.shape

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        sums = emitter.graph.transposed_convolution(
            emitter.last(inputs[0]), ordered, bias, data.zero, edges, strides, (sizes[0], *sizes[2:], filters)
        )
        return emitter.made(emitter.finished(sums, scales, result))

    macs = int(np.prod(data.shape)) * filters * height * width
    sized = "x".join(map(str, weight.values.shape))
    return Step("transposed convolution", sized, (data,), result.output, macs, emit)
