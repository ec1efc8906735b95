"""Resize of a region that is computed at run time (`tf_crop_and_resize`, as TensorFlow's detectors use it)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.nn.resize_sampling import Sampling
from compiler.frontends.onnx.values import TensorValue

_ROI, _SIZES = 1, 3
_ROUNDED = {
    "round_prefer_floor": ("Ceil", -0.5),
    "round_prefer_ceil": ("Floor", 0.5),
    "floor": ("Floor", 0.0),
    "ceil": ("Ceil", 0.0),
}


def resize_computed_region(context: NodeContext, axes: Sequence[int], sampling: Sampling) -> TensorValue:
    """Nearest or linear sampling, one axis after the other; elements outside of the input are the extrapolation value.

    The sizes are given, as an input of the node.
    """
    op, rank = Composer(context), context.rank(0)
    shape, dtype = op("Shape", context.value(0)), context.dtype(0)
    region = op("Cast", context.value(_ROI), to=op.number("float32"))
    result = op("Cast", context.value(0), to=op.number("float32"))
    for place, axis in enumerate(axes):
        last = op("Sub", op("Cast", op("Gather", shape, np.int64(axis)), to=op.number("float32")), 1.0)
        ends = (op("Gather", region, np.int64(each)) for each in (place, place + len(axes)))
        coordinate = _coordinates(op, op("Gather", context.value(_SIZES), np.int64(place)), last, *ends)
        wide = int64s(-1, *[1] * (rank - 1 - axis))
        result = _sampled(op, result, coordinate, last, axis, wide, sampling)
        outside = op("Or", op("Less", coordinate, 0.0), op("Greater", coordinate, last))
        result = op("Where", op("Reshape", outside, wide), np.float32(sampling.extrapolation), result)
    return result if dtype == "float32" else op("Cast", result, to=op.number(dtype))


def _coordinates(
    op: Composer, count: TensorValue, last: TensorValue, start: TensorValue, end: TensorValue
) -> TensorValue:
    """(count,) places from `start` to `end`, which are shares of the last place; the middle of them for one."""
    positions = op("Cast", op("Range", np.int64(0), op("Cast", count, to=7), np.int64(1)), to=1)
    steps = op("Sub", op("Cast", count, to=1), 1.0)
    spread = op("Div", op("Mul", op("Mul", positions, op("Sub", end, start)), last), op("Max", steps, 1.0))
    middle = op("Mul", op("Mul", op("Add", start, end), last), 0.5)
    return op("Where", op("Equal", steps, 0.0), middle, op("Add", op("Mul", start, last), spread))


def _sampled(
    op: Composer,
    data: TensorValue,
    coordinate: TensorValue,
    last: TensorValue,
    axis: int,
    wide: np.ndarray,
    sampling: Sampling,
) -> TensorValue:
    def at(place: TensorValue) -> TensorValue:
        inside = op("Min", op("Max", place, 0.0), last)
        return op("Gather", data, op("Cast", inside, to=7), axis=axis)

    if sampling.mode == "nearest":
        function, shift = _ROUNDED[sampling.nearest]
        return at(op(function, op("Add", coordinate, shift)))
    low = op("Floor", coordinate)
    share = op("Reshape", op("Sub", coordinate, low), wide)
    return op("Add", op("Mul", at(low), op("Sub", 1.0, share)), op("Mul", at(op("Add", low, 1.0)), share))
