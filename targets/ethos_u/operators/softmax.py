"""Softmax and its logarithm along one axis: exponentials of the distance to the maximum out of tables, and their sum.

Everything between is 32-bit integers, rounded at 15 bits or more, and once more to the steps of the result. The
logarithm of the sum comes out of a table of its leading 8 bits, to 0.002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from targets.ethos_u.fixed_point import LARGEST, FixedPoint
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor
from targets.ethos_u.view import View

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call

_MOST = 65536
_POINT = 20  # binary places of logarithms
_LEAST_STEP = 2.0**-7  # of a result, beside which an error of 2**-9 in the logarithm is small
_LARGEST_STEP = 8.0  # of an operand: 255 of them fit 31 bits with the binary places


@operator("relax.nn.softmax")
def softmax(view: View, call: Call, result: Result) -> Step:
    """softmax(dequantize(x))."""
    data, axis = _described(view, call)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], [axis])
        fixed = FixedPoint(emitter.graph)
        _, powers = _powers(emitter, fixed, rows, data)
        inverse, shift = fixed.reciprocal(fixed.sums(powers))
        # powers * inverse * 2**(shift - 45), and shift is 16 at most.
        share = fixed.shift_right(fixed.multiply(powers, inverse), fixed.minus_from(16, shift))
        return put_back(emitter.finished(share, [2.0**-29 / result.output.scale], result))

    return Step("softmax", _sizes(data), (data,), result.output, 0, emit)


@operator("relax.nn.log_softmax")
def log_softmax(view: View, call: Call, result: Result) -> Step:
    """log(softmax(dequantize(x))): the distance to the maximum, less the logarithm of the sum."""
    data, axis = _described(view, call)
    if result.output.scale < _LEAST_STEP:
        raise Unsupported(f"its result has steps of {result.output.scale:.3g}, and a logarithm is exact to 2**-9")
    if data.scale > _LARGEST_STEP:
        raise Unsupported(f"its operand has steps of {data.scale:.3g}, and 32 bits hold those of {_LARGEST_STEP:g}")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], [axis])
        fixed = FixedPoint(emitter.graph)
        distance, powers = _powers(emitter, fixed, rows, data)
        logarithm = fixed.logarithm(fixed.sums(powers), _POINT)
        # The powers are LARGEST times what is meant.
        logarithm = fixed.subtract(logarithm, round(math.log(LARGEST) * 2.0**_POINT))
        found = fixed.subtract(fixed.times(distance, round(data.scale * 2.0**_POINT)), logarithm)
        return put_back(emitter.finished(found, [2.0**-_POINT / result.output.scale], result))

    return Step("log_softmax", _sizes(data), (data,), result.output, 0, emit)


def _described(view: View, call: Call) -> tuple[Quantized, int]:
    """The operand and the axis."""
    data = view.quantized(call.args[0])
    axis = int(call.attrs.axis) % len(data.shape)
    if data.shape[axis] > _MOST:
        raise Unsupported(f"it divides by sums of {data.shape[axis]}, and 32 bits hold those of {_MOST}")
    return data, axis


def _powers(emitter: Emitter, fixed: FixedPoint, rows: Tensor, data: Quantized) -> tuple[Tensor, Tensor]:
    """The distances to the maximum of each row, in steps, and LARGEST times their exponentials."""
    graph = emitter.graph
    wide = [graph.rescale(each, [1.0], "int32") for each in (rows, graph.reduce("REDUCE_MAX", rows))]
    distance = fixed.subtract(*wide)
    exponentials = np.rint(LARGEST * np.exp((np.arange(256) - 255) * data.scale))
    return distance, fixed.looked_up(graph.rescale(distance, [1.0], "int8", output_zero=127), exponentials)


def _sizes(data: Quantized) -> str:
    return "x".join(map(str, data.shape))
