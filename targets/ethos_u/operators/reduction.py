"""Means, sums, maxima and minima along axes.

The mean of all places of an image is a depthwise convolution with weights of 1; what is reduced else is moved to the
end and summed there, in 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from schedules.ir.tvm_types import Call
from targets.ethos_u.fixed_point import FixedPoint
from targets.ethos_u.images import LARGEST_KERNEL, TALLEST_KERNEL, Window, image
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.operators.pooling import averaged, has_strips, place_sums
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Form, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.view import View

# Sums of so many differences of two bytes fit 32 bits; the accelerator reduces as many.
_MOST = 65536


@operator("relax.mean", "relax.sum")
def total(view: View, call: Call, result: Result) -> Step:
    """mean or sum(dequantize(x))."""
    name = str(call.op.name).removeprefix("relax.")
    data, axes, size = _described(view, call)
    ratio = data.scale / result.output.scale / (size if name == "mean" else 1)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        rows, _ = emitter.rows(inputs[0], axes)
        sums = FixedPoint(graph).sums(graph.rescale(rows, [1.0], "int32", zero=data.zero))
        return emitter.made(graph.reshape(emitter.finished(sums, [ratio], result), result.output.shape), last=False)

    window = _places(data, axes) if name == "mean" else None
    if window is None:
        return Step(name, _sizes(data), (data,), result.output, 0, emit)

    def emit_pool(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        if len(data.shape) == 3 and not inputs[0].last:
            return emit(emitter, inputs)
        pooled = averaged(emitter, image(emitter, inputs[0]), data, window, result)
        kept = len(result.output.shape) == len(data.shape)
        shape = (data.shape[0], *(1,) * (len(data.shape) - 2), data.shape[1]) if kept else result.output.shape
        return emitter.made(emitter.graph.reshape(pooled, shape), last=kept)

    def emit_strips(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        if len(data.shape) == 3 and not inputs[0].last:
            return emit(emitter, inputs)
        sums = place_sums(emitter.graph, image(emitter, inputs[0]), data.zero)
        kept = len(result.output.shape) == len(data.shape)
        shape = (data.shape[0], *(1,) * (len(data.shape) - 2), data.shape[1]) if kept else result.output.shape
        return emitter.made(emitter.graph.reshape(emitter.finished(sums, [ratio], result), shape), last=kept)

    forms = {"channels in columns": Form(emit_strips)} if has_strips(data.shape) else {}
    return Step(name, _sizes(data), (data,), result.output, math.prod(data.shape), emit_pool, forms)


@operator("relax.max", "relax.min")
def extreme(view: View, call: Call, result: Result) -> Step:
    """max or min(dequantize(x))."""
    data, axes, _ = _described(view, call)
    return _extreme(str(call.op.name).removeprefix("relax."), data, axes, result)


@operator("kernel.reduce")
def reduced(view: View, call: Call, result: Result) -> Step:
    """The same by a kernel that propagates NaN."""
    data = view.quantized(call.args[1].fields[0])
    kernel = Kernel(view, call)
    numbers = np.random.default_rng(0).normal(size=data.shape).astype(np.float32)
    rank, found = len(data.shape), kernel(numbers)
    for count in range(1, rank + 1):
        for axes in combinations(range(rank), count):
            for name, function in (("max", np.max), ("min", np.min)):
                wanted = function(numbers, axis=axes)
                if wanted.size == found.size and np.array_equal(wanted.ravel(), found.ravel()):
                    return _extreme(name, data, axes, result)
    raise Unsupported("it reduces by a kernel that is neither a maximum nor a minimum")


def _extreme(name: str, data: Quantized, axes: Sequence[int], result: Result) -> Step:

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, _ = emitter.rows(inputs[0], axes)
        reduced = emitter.graph.reduce(f"REDUCE_{name.upper()}", rows)
        # Vela 5.2 gets a REDUCE_MIN of several rows wrong that nothing but a change of shape follows.
        found = (emitter.table if name == "min" else emitter.rescaled)(reduced, data, result)
        return emitter.made(emitter.graph.reshape(found, result.output.shape), last=False)

    return Step(name, _sizes(data), (data,), result.output, 0, emit)


def _described(view: View, call: Call) -> tuple[Quantized, list[int], int]:
    """The operand, the axes, and how many elements become one."""
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    given = call.attrs.axis
    axes = sorted(int(axis) % rank for axis in given) if given is not None else list(range(rank))
    size = math.prod(data.shape[axis] for axis in axes)
    if size > _MOST:
        raise Unsupported(f"it makes one of {size} elements, and the accelerator takes up to {_MOST}")
    return data, axes, size


def _places(data: Quantized, axes: Sequence[int]) -> Window | None:
    """The window that covers all places of images or sequences, if these are the axes."""
    rank = len(data.shape)
    if rank not in (3, 4) or list(axes) != list(range(2, rank)):
        return None
    height, width = (1, *data.shape[2:])[-2:]
    if height > TALLEST_KERNEL or height * width > LARGEST_KERNEL:
        return None
    return Window((height, width), (1, 1), (0, 0, 0, 0))


def _sizes(data: Quantized) -> str:
    return "x".join(map(str, data.shape))
