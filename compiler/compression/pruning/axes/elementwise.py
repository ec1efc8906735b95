"""Operators that keep positions: elementwise ones, and those that work inside of other axes."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.compression.pruning.axes.registry import Axes, Trace, Value, axis_rule
from compiler.passes.rewriting.elementwise_operators import BINARY, UNARY
from compiler.passes.rewriting.graph import Call
from compiler.passes.rewriting.matching import rank_of, shape_of


def broadcast(trace: Trace, shapes: Sequence[Sequence[object]], values: Sequence[Axes]) -> Axes:
    """The axes of an elementwise result; an axis of size 1 that is repeated is not part of it."""
    rank = max(len(shape) for shape in shapes)
    result: Axes = []
    for place in range(-rank, 0):
        present = [
            (shape[place], value[place]) for shape, value in zip(shapes, values, strict=True) if -place <= len(shape)
        ]
        full = [axis for size, axis in present if size != 1] or [axis for _, axis in present]
        for size, axis in present:
            if size == 1 and len(full) < len(present):
                trace.nodes.fix(axis)
        joined = full[0]
        for axis in full[1:]:
            joined = trace.nodes.unite(joined, axis)
        result.append(joined)
    return result


@axis_rule(*UNARY)
def unary(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    return values[0]


@axis_rule(*BINARY, "relax.where")
def binary(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    shapes = [shape_of(argument) or [None] * (rank_of(argument) or 0) for argument in call.args]
    return broadcast(trace, shapes, list(values))


def keep_but(trace: Trace, axes: Axes, fixed: Sequence[int]) -> Axes:
    """The axes with those of the indices `fixed` bound to stay."""
    result = list(axes)
    for index in {each % len(axes) for each in fixed}:
        trace.nodes.fix(result[index])
        result[index] = None
    return result


@axis_rule("relax.nn.softmax", "relax.nn.log_softmax")
def softmax(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    return keep_but(trace, values[0], [int(call.attrs.axis)])


@axis_rule("relax.nn.layer_norm", "relax.nn.rms_norm", "relax.nn.instance_norm")
def layer_norm(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    for value in values[1:]:
        keep_but(trace, value, range(len(value)))
    return keep_but(trace, values[0], [int(each) for each in call.attrs.axes])


@axis_rule("relax.nn.batch_norm")
def batch_norm(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    axis = int(call.attrs.axis) % len(values[0])
    channels = values[0][axis]
    for value in values[1:]:
        channels = trace.nodes.unite(channels, value[0])
    return [values[0], [channels], [channels]]


@axis_rule(*(f"relax.{name}" for name in ("mean", "sum", "max", "min", "prod", "std", "variance")))
def reduction(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    rank = len(values[0])
    axes = range(rank) if call.attrs.axis is None else [int(each) % rank for each in call.attrs.axis]
    kept = keep_but(trace, values[0], list(axes))
    return kept if bool(call.attrs.keepdims) else [axis for index, axis in enumerate(kept) if index not in axes]


@axis_rule(
    *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)),
    "relax.image.resize2d",
)
def window(trace: Trace, call: Call, values: Sequence[Value]) -> Value:
    layout = str(call.attrs.layout)
    if not layout.startswith("NC"):
        return keep_but(trace, values[0], range(len(values[0])))
    return keep_but(trace, values[0], range(2, len(values[0])))
