"""Products with a constant matrix: fully connected layers, as convolutions of 1x1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.ethos_u.operators.convolution import check_weight, integer_bias
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

_DEPTH = 65536


@operator("relax.matmul", bias=True)
def fully_connected(view: View, call: Any, result: Result) -> Step:
    """matmul(dequantize(x), dequantize(w)) + bias, w (depth, filters)."""
    if len(call.args[1].ty.shape) != 2:
        raise Unsupported("its second operand is no matrix")
    data = view.quantized(call.args[0])
    weight = view.weight(call.args[1], 1)
    check_weight(weight)
    depth, filters = weight.values.shape
    if depth > _DEPTH or filters > _DEPTH:
        raise Unsupported(f"it multiplies by {depth}x{filters}, and the accelerator takes up to {_DEPTH}")
    bias = integer_bias(result.bias, data.scale * weight.scale, filters, 0)
    scales = [float(each) for each in data.scale * weight.scale / result.output.scale]
    ordered = np.ascontiguousarray(weight.values.T).reshape(filters, 1, 1, depth)
    rows = math.prod(data.shape[:-1])

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        # One row is a batch of one; more rows are places of one image.
        x = graph.reshape(emitter.first(inputs[0]), (1, rows, 1, depth))
        sums = graph.convolution(x, ordered, bias, data.zero, padding=(0, 0, 0, 0), strides=(1, 1))
        return emitter.made(graph.reshape(emitter.finished(sums, scales, result), result.output.shape), last=False)

    return Step("fully connected", f"{rows}x{depth}x{filters}", (data,), result.output, rows * depth * filters, emit)
