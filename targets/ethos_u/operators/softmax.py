"""Softmax along one axis: exponentials of the distance to the maximum out of tables, divided by their sum.

Everything between is 32-bit integers, rounded at 15 bits or more, and once more to the steps of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.ethos_u.fixed_point import LARGEST, FixedPoint
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

_MOST = 65536


@operator("relax.nn.softmax")
def softmax(view: View, call: Any, result: Result) -> Step:
    """softmax(dequantize(x))."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    axis = int(call.attrs.axis) % rank
    depth = data.shape[axis]
    if depth > _MOST:
        raise Unsupported(f"it divides by sums of {depth}, and 32 bits hold those of {_MOST}")
    exponentials = np.rint(LARGEST * np.exp((np.arange(256) - 255) * data.scale))

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], [axis])
        graph, fixed = emitter.graph, FixedPoint(emitter.graph)
        most = graph.reduce("REDUCE_MAX", rows)
        wide = [graph.rescale(each, [1.0], "int32") for each in (rows, most)]
        distance = graph.rescale(fixed.subtract(*wide), [1.0], "int8", output_zero=127)
        powers = fixed.looked_up(distance, exponentials)
        inverse, shift = fixed.reciprocal(fixed.sums(powers))
        # powers * inverse * 2**(shift - 45), and shift is 16 at most.
        share = fixed.shift_right(fixed.multiply(powers, inverse), fixed.minus_from(16, shift))
        return put_back(emitter.finished(share, [2.0**-29 / result.output.scale], result))

    sizes = "x".join(map(str, data.shape))
    return Step("softmax", sizes, (data,), result.output, 0, emit)
