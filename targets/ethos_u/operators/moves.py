"""What moves elements: reshape, transpose, slice, pad, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from targets.ethos_u.operators.pooling import rescaled
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

# Where the axes N, C, H, W lie in a tensor with its channels last.
_PLACES = (0, 3, 1, 2)
_MOST_AXES = 6


def _step(name: str, inputs: Sequence[Quantized], result: Result, emit: Callable[..., Value]) -> Step:
    if max(len(each.shape) for each in (*inputs, result.output)) > _MOST_AXES:
        raise Unsupported(f"it has more than {_MOST_AXES} axes")
    return Step(name, "x".join(map(str, result.output.shape)), tuple(inputs), result.output, 0, emit)


@operator("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")
def reshape(view: View, call: Any, result: Result) -> Step:
    """The same elements with other axes."""
    data = view.quantized(call.args[0])

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        moved = emitter.graph.reshape(emitter.first(inputs[0]), result.output.shape)
        return emitter.made(rescaled(emitter, moved, data, result), last=False)

    return _step("reshape", [data], result, emit)


@operator("relax.permute_dims")
def transpose(view: View, call: Any, result: Result) -> Step:
    """Axes in another order."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    axes = [int(axis) % rank for axis in call.attrs.axes] if call.attrs.axes is not None else [*range(rank)][::-1]

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        places = _PLACES if inputs[0].last else range(rank)
        moved = emitter.graph.transpose(inputs[0].tensor, [places[axis] for axis in axes])
        return emitter.made(rescaled(emitter, moved, data, result), last=False)

    return _step("transpose", [data], result, emit)


@operator("relax.concat")
def concatenation(view: View, call: Any, result: Result) -> Step:
    """concat(dequantize(a), ...), each brought to the scale of the result."""
    fields = view.definition(call.args[0])
    if not isinstance(fields, relax.Tuple):
        raise Unsupported("what it joins is no list of tensors")
    data = [view.quantized(each) for each in fields.fields]
    rank = len(result.output.shape)
    axis = int(call.attrs.axis) % rank if call.attrs.axis is not None else 0

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        tensors, last = emitter.together(inputs)
        parts = [rescaled(emitter, part, each, result) for part, each in zip(tensors, data, strict=True)]
        place = _PLACES[axis] if last else axis
        shape = list(parts[0].shape)
        shape[place] = sum(part.shape[place] for part in parts)
        joined = emitter.graph.emit("CONCAT", parts, tuple(shape), "int8", "ConcatAttribute", place)
        return emitter.made(joined, last)

    return _step("concatenation", data, result, emit)


@operator("relax.nn.pad")
def pad(view: View, call: Any, result: Result) -> Step:
    """A constant around the elements."""
    data = view.quantized(call.args[0])
    widths = [int(width) for width in call.attrs.pad_width]
    if str(call.attrs.pad_mode) != "constant":
        raise Unsupported(f"it pads by {call.attrs.pad_mode}, and the accelerator with a constant")
    if min(widths) < 0:
        raise Unsupported("it cuts off elements")
    number = float(getattr(call.attrs, "pad_value", 0.0))
    value = int(np.clip(np.rint(number / data.scale) + data.zero, -128, 127))

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph, x = emitter.graph, inputs[0].tensor
        order = (0, 2, 3, 1) if inputs[0].last else range(len(data.shape))
        around = [width for axis in order for width in widths[2 * axis : 2 * axis + 2]]
        shape = tuple(
            size + before + after for size, before, after in zip(x.shape, around[::2], around[1::2], strict=True)
        )
        filling = graph.constant(np.array([value], np.int8))
        padded = graph.emit("PAD", [x, graph.shape(around), filling], shape, "int8", "PadAttribute")
        return emitter.made(rescaled(emitter, padded, data, result), inputs[0].last)

    return _step("pad", [data], result, emit)


@operator("relax.strided_slice")
def strided_slice(view: View, call: Any, result: Result) -> Step:
    """A part of the elements, without steps."""
    data = view.quantized(call.args[0])
    axes, begins = (_numbers(argument) for argument in call.args[1:3])
    steps = _numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
    if any(step != 1 for step in steps):
        raise Unsupported(f"it takes elements in steps of {steps}")
    starts = [0] * len(data.shape)
    for axis, begin in zip(axes, begins, strict=True):
        size = data.shape[axis]
        starts[axis] = min(max(begin + size if begin < 0 else begin, 0), size)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        order = (0, 2, 3, 1) if inputs[0].last else range(len(data.shape))
        first, sizes = [starts[axis] for axis in order], [result.output.shape[axis] for axis in order]
        part = emitter.graph.slice(inputs[0].tensor, first, sizes)
        return emitter.made(rescaled(emitter, part, data, result), inputs[0].last)

    return _step("slice", [data], result, emit)


def _numbers(argument: Any) -> list[int]:
    """A tuple of constant integers."""
    values = [getattr(each, "value", each) for each in getattr(argument, "fields", ())]
    if not values or not all(isinstance(value, int | tvm.tirx.IntImm) for value in values):
        raise Unsupported("where it begins and ends is computed")
    return [int(value) for value in values]
