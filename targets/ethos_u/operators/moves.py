"""Operators that move elements: reshape, transpose, slice, pad, concatenation.

Elements are rescaled to the result's scale before they move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from schedules.ir.tvm_types import Call, Expr
from targets.ethos_u.layout import channels_last
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph
from targets.ethos_u.view import View

_MAX_AXES = 6


def _step(name: str, inputs: Sequence[Quantized], result: Result, emit: Callable[..., Value]) -> Step:
    if max(len(each.shape) for each in (*inputs, result.output)) > _MAX_AXES:
        raise Unsupported(f"it has more than {_MAX_AXES} axes")
    return Step(name, "x".join(map(str, result.output.shape)), tuple(inputs), result.output, 0, emit)


@operator("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")
def reshape(view: View, call: Call, result: Result) -> Step:
    """The same elements in another shape."""
    data = view.quantized(call.args[0])

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = emitter.rescaled(emitter.first(inputs[0]), data, result)
        made = emitter.made(emitter.graph.reshape(x, result.output.shape), last=False)
        return Value(emitter.last(made), True) if emitter.turns_early and len(result.output.shape) == 4 else made

    return _step("reshape", [data], result, emit)


@operator("relax.permute_dims")
def transpose(view: View, call: Call, result: Result) -> Step:
    """Axes in another order."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    axes = [int(axis) % rank for axis in call.attrs.axes] if call.attrs.axes is not None else [*range(rank)][::-1]

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = emitter.rescaled(inputs[0].tensor, data, result)
        return emitter.made(emitter.graph.transpose(x, [inputs[0].position(axis) for axis in axes]), last=False)

    return _step("transpose", [data], result, emit)


@operator("relax.concat")
def concatenation(view: View, call: Call, result: Result) -> Step:
    """concat(dequantize(a), ...), each rescaled to the result's scale; constants are rounded to it."""
    fields = view.definition(call.args[0])
    if not isinstance(fields, relax.Tuple):
        raise Unsupported("its operands are not a list of tensors")
    numbers = [view.number(each) for each in fields.fields]
    data = [view.quantized(each) for each, there in zip(fields.fields, numbers, strict=True) if there is None]
    rank = len(result.output.shape)
    axis = int(call.attrs.axis) % rank if call.attrs.axis is not None else 0
    integers = [None if each is None else result.integers(each) for each in numbers]

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        tensors, last = emitter.together(inputs)
        rescaled = iter([emitter.looked_up(part, each, result) for part, each in zip(tensors, data, strict=True)])
        order = channels_last(rank) if last else range(rank)
        parts = [
            next(rescaled) if each is None else emitter.graph.constant(np.ascontiguousarray(each.transpose(order)))
            for each in integers
        ]
        joined = emitter.graph.concat(parts, Value(parts[0], last).position(axis))
        return emitter.made(joined, last)

    return _step("concatenation", data, result, emit)


@operator("relax.nn.pad")
def pad(view: View, call: Call, result: Result) -> Step:
    """A constant around the elements."""
    data = view.quantized(call.args[0])
    widths = [int(width) for width in call.attrs.pad_width]
    if str(call.attrs.pad_mode) != "constant":
        raise Unsupported(f"its padding mode is {call.attrs.pad_mode}, and the accelerator pads with a constant")
    if min(widths) < 0:
        raise Unsupported("its padding is negative")
    number = float(getattr(call.attrs, "pad_value", 0.0))
    value = int(result.integers(np.array(number)))

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        order = channels_last(len(data.shape)) if inputs[0].last else range(len(data.shape))
        around = [width for axis in order for width in widths[2 * axis : 2 * axis + 2]]
        x = emitter.rescaled(inputs[0].tensor, data, result)
        return emitter.made(emitter.graph.pad(x, around, value), inputs[0].last)

    return _step("pad", [data], result, emit)


@operator("relax.strided_slice")
def strided_slice(view: View, call: Call, result: Result) -> Step:
    """A part of the elements."""
    data = view.quantized(call.args[0])
    axes, begins = (_numbers(argument) for argument in call.args[1:3])
    given = _numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
    if any(step < 1 for step in given):
        raise Unsupported(f"it takes elements in steps of {given}")
    if max(given) > 1 and len(data.shape) > _MAX_AXES - len([step for step in given if step > 1]):
        raise Unsupported(f"it has {len(data.shape)} axes, and takes elements in steps of {given}")
    starts, steps = [0] * len(data.shape), [1] * len(data.shape)
    for axis, begin, step in zip(axes, begins, given, strict=True):
        size = data.shape[axis]
        starts[axis], steps[axis] = min(max(begin + size if begin < 0 else begin, 0), size), step

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        order = channels_last(len(data.shape)) if inputs[0].last else tuple(range(len(data.shape)))
        first, strides, sizes = ([values[axis] for axis in order] for values in (starts, steps, result.output.shape))
        x = emitter.rescaled(inputs[0].tensor, data, result)
        return emitter.made(_stepped(emitter.graph, x, first, strides, sizes), inputs[0].last)

    return _step("slice", [data], result, emit)


def _stepped(graph: TosaGraph, x: Tensor, starts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Every `step`-th element of each axis: the first of each group of `step`, the last group padded."""
    reach = [size * step for size, step in zip(sizes, steps, strict=True)]
    present = [min(each, size - start) for each, size, start in zip(reach, x.shape, starts, strict=True)]
    around = [width for wanted, there in zip(reach, present, strict=True) for width in (0, wanted - there)]
    x = graph.pad(graph.slice(x, starts, present), around, 0)
    groups, chosen = [], []
    for size, step in zip(sizes, steps, strict=True):
        groups += [size] if step == 1 else [size, step]
        chosen += [size] if step == 1 else [size, 1]
    return graph.reshape(graph.slice(graph.reshape(x, tuple(groups)), [0] * len(groups), chosen), tuple(sizes))


def _numbers(argument: Expr) -> list[int]:
    """A tuple of constant integers."""
    values = [getattr(each, "value", each) for each in getattr(argument, "fields", ())]
    if not values or not all(isinstance(value, int | tvm.tirx.IntImm) for value in values):
        raise Unsupported("its bounds are not constant")
    return [int(value) for value in values]
