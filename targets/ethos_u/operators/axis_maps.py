"""Resizing, mirrored and repeated borders, repetition: each axis is mapped separately.

A map that only moves elements is a concatenation of slices, or a repetition; one that mixes them is a product with a
constant matrix, exact if the weights are multiples of one number, as when doubling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedules.ir.tvm_types import Call
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Array, Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph
from targets.ethos_u.view import View, registered_name

_MAX_SLICES = 64
_LARGEST_WEIGHT = 127
_MAX_AXES = 5  # intermediate results have one more


_MAPS = (
    *(f"kernel.resize_{mode}" for mode in ("nearest", "linear", "cubic")),
    *(f"kernel.pad_{mode}" for mode in ("reflect", "edge", "wrap")),
    "kernel.slice",
)


@operator(*_MAPS)
def mapped(view: View, call: Call, result: Result) -> Step:
    """A kernel of dequantize(x) that maps axes, or several such kernels in sequence."""
    kernels = [Kernel(view, call)]
    operand = call.args[1].fields[0]
    while view.used_once(operand) and registered_name(view.definition(operand)) in _MAPS:
        producer = view.definition(operand)
        kernels.append(Kernel(view, producer))
        operand = producer.args[1].fields[0]
    maps: dict[int, Array] = {}
    for kernel in reversed(kernels):
        for axis, matrix in kernel.axis_matrices().items():
            maps[axis] = matrix @ maps[axis] if axis in maps else matrix
    name = registered_name(call).removeprefix("kernel.").replace("_", " ")
    return _step(name, maps, view.quantized(operand), result)


@operator("relax.tile", "relax.broadcast_to")
def repeated(view: View, call: Call, result: Result) -> Step:
    """Axes repeated."""
    data = view.quantized(call.args[0])
    padded_shape = (1,) * (len(result.output.shape) - len(data.shape)) + data.shape
    counts = [wanted // size for wanted, size in zip(result.output.shape, padded_shape, strict=True)]
    if len(padded_shape) > _MAX_AXES:
        raise Unsupported(f"it has more than {_MAX_AXES} axes")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = emitter.rescaled(emitter.first(inputs[0]), data, result)
        return emitter.made(emitter.graph.tile(emitter.graph.reshape(x, padded_shape), counts), last=False)

    return Step("repetition", "x".join(map(str, result.output.shape)), (data,), result.output, 0, emit)


def _step(name: str, maps: dict[int, Array], data: Quantized, result: Result) -> Step:
    if len(data.shape) > _MAX_AXES:
        raise Unsupported(f"it has more than {_MAX_AXES} axes")
    if data.shape[0] != 1 and 0 in maps:
        raise Unsupported("it maps the axis of the batch")
    order = sorted(maps, key=lambda axis: maps[axis].shape[0] / maps[axis].shape[1])

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x, last = inputs[0].tensor, inputs[0].last
        products = [axis for axis in order if _sources(maps[axis]) is None]
        if not products:
            x = emitter.rescaled(x, data, result)
        # The last product rounds to the result's scale, earlier ones to the operand's.
        scaled = Result(data, -128, 127, None, result.accelerator)
        for axis in order:
            position = inputs[0].position(axis)
            sources = _sources(maps[axis])
            if sources is not None:
                x = _taken(emitter.graph, x, position, sources)
            else:
                x = _mixed(emitter, x, position, maps[axis], data, result if axis == products[-1] else scaled)
        return emitter.made(x, last)

    return Step(name, "x".join(map(str, result.output.shape)), (data,), result.output, 0, emit)


def _sources(matrix: Array) -> list[int] | None:
    """Source element of each position of the result, if the map only moves elements, in few pieces."""
    if not np.all((matrix == 0) | (matrix == 1)) or not np.all(matrix.sum(1) == 1):
        return None
    sources = [int(each) for each in matrix.argmax(1)]
    return sources if _repetition(sources, matrix.shape[1]) or len(_runs(sources)) <= _MAX_SLICES else None


def _repetition(sources: Sequence[int], size: int) -> int | None:
    """Repetition count of each element, if all elements are repeated in order."""
    count = len(sources) // size
    return count if list(sources) == [index // max(count, 1) for index in range(size * count)] else None


def _runs(sources: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of runs of ascending neighbors."""
    runs: list[tuple[int, int]] = []
    for source in sources:
        if runs and source == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((source, 1))
    return runs


def _taken(graph: TosaGraph, x: Tensor, position: int, sources: Sequence[int]) -> Tensor:
    """Select elements of an axis unchanged."""
    shape = x.shape
    count = _repetition(sources, shape[position])
    if count is not None:
        apart = graph.reshape(x, (*shape[: position + 1], 1, *shape[position + 1 :]))
        tiled = graph.tile(apart, [count if axis == position + 1 else 1 for axis in range(len(shape) + 1)])
        return graph.reshape(tiled, (*shape[:position], shape[position] * count, *shape[position + 1 :]))
    parts = []
    for first, size in _runs(sources):
        starts, sizes = [0] * len(shape), list(shape)
        starts[position], sizes[position] = first, size
        parts.append(graph.slice(x, starts, sizes))
    return graph.concat(parts, position)


def _mixed(emitter: Emitter, x: Tensor, position: int, matrix: Array, data: Quantized, result: Result) -> Tensor:
    """Multiply an axis by a constant matrix (result, operand)."""
    graph, rank = emitter.graph, len(x.shape)
    order = [*(axis for axis in range(rank) if axis != position), position]
    moved = graph.transpose(x, order)
    rows = graph.reshape(moved, (1, int(np.prod(moved.shape[:-1])), 1, moved.shape[-1]))
    weight, unit = _integers(matrix)
    bias = np.zeros(len(weight), np.int32)
    sums = graph.convolution(rows, weight[:, None, None], bias, data.zero, padding=(0,) * 4, strides=(1, 1))
    finished = emitter.finished(sums, [data.scale / (unit * result.output.scale)], result)
    shaped = graph.reshape(finished, (*moved.shape[:-1], len(weight)))
    return graph.transpose(shaped, [order.index(axis) for axis in range(rank)])


def _integers(matrix: Array) -> tuple[Array, int]:
    """int8 weights and their divisor: the smallest that makes them integers, otherwise the largest that int8 allows.

    Row sums are preserved, so that constant inputs stay constant.
    """
    largest = int(_LARGEST_WEIGHT / max(float(np.abs(matrix).max()), 1e-9))
    for unit in range(1, largest + 1):
        if np.abs(matrix * unit - np.rint(matrix * unit)).max() < 1e-4:
            return np.rint(matrix * unit).astype(np.int8), unit
    integers = np.rint(matrix * largest)
    for row, wanted in zip(integers, np.rint(matrix.sum(1) * largest), strict=True):
        row[np.abs(row).argmax()] += wanted - row.sum()
    return np.clip(integers, -128, 127).astype(np.int8), largest
