"""Random nodes of operators that move, cut, repeat and pick elements."""

from __future__ import annotations

import numpy as np

from tests.compiler.frontends.onnx.random_cases import (
    Generator,
    axis_of,
    broadcastable,
    full_shape,
    makes,
    pick,
    shape,
    values,
)
from tests.compiler.frontends.onnx.support import Case


@makes("Concat")
def _concat(random: Generator, operator: str) -> Case:
    base, dtype = list(full_shape(random)), pick(random, "float32", "int64", "bool", "uint8", "float16")
    axis = axis_of(random, len(base))
    arrays = []
    for _ in range(int(random.integers(1, 4))):
        base[axis] = int(random.integers(0, 4))
        arrays.append(values(random, dtype, tuple(base)))
    return Case(operator, arrays, {"axis": axis})


@makes("Split")
def _split(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    axis = axis_of(random, len(data_shape))
    size = data_shape[axis]
    data = values(random, pick(random, "float32", "int32", "bool"), data_shape)
    if random.random() < 0.5 or size == 1:
        cut = int(random.integers(0, size + 1))
        lengths = np.array([cut, size - cut], np.int64)
        return Case(operator, [data, lengths], {"axis": axis}, pick(random, (1,), ()), outputs=2)
    return Case(operator, [data], {"axis": axis, "num_outputs": 2}, outputs=2)


@makes("Slice")
def _slice(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    rank = len(data_shape)
    axes = random.choice(rank, int(random.integers(1, rank + 1)), replace=False).astype(np.int64)
    starts = random.integers(-7, 7, len(axes)).astype(np.int64)
    ends = random.choice([-(2**62), -6, -2, -1, 0, 1, 2, 4, 2**31 - 1, 2**63 - 1], len(axes)).astype(np.int64)
    steps = random.choice([-2, -1, 1, 2, 3], len(axes)).astype(np.int64)
    # ONNX Runtime takes the largest integers for "to the start" here, which operands known at run time only do not.
    ends = np.where((steps < 0) & (ends >= 2**31 - 1), 4, ends)
    data = values(random, pick(random, "float32", "int64", "bool", "uint8"), data_shape)
    return Case(operator, [data, starts, ends, axes, steps], constants=pick(random, (1, 2, 3, 4), (3, 4), (2, 3, 4)))


@makes("Pad")
def _pad(random: Generator, operator: str) -> Case:
    data_shape = tuple(size + 2 for size in full_shape(random, 1, 3))
    mode = pick(random, "constant", "reflect", "edge", "wrap")
    rank = len(data_shape)
    low = 0 if mode != "constant" else -1
    pads = random.integers(low, 2, 2 * rank).astype(np.int64)
    dtype = pick(random, "float32", "int32", "int64", "uint8", "float64")
    value = np.array(3, dtype) if mode == "constant" and random.random() < 0.6 else None
    data = values(random, dtype, data_shape)
    constants = pick(random, (1, 2), (2,), (1,))
    return Case(operator, [data, pads, value], {"mode": mode}, [c for c in constants if c != 2 or value is not None])


@makes("Reshape")
def _reshape(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    order = random.permutation(data_shape)
    target = np.array(order, np.int64)
    if random.random() < 0.6:
        target[int(random.integers(len(target)))] = -1
    if target[0] == data_shape[0] and random.random() < 0.5:
        target[0] = 0
    data = values(random, pick(random, "float32", "bool", "int64"), data_shape)
    return Case(operator, [data, target], constants=pick(random, (1,), ()))


@makes("Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size")
def _views(random: Generator, operator: str) -> Case:
    data_shape = shape(random, 1, 4)
    rank = len(data_shape)
    data = values(random, pick(random, "float32", "int32", "bool"), data_shape)
    if operator == "Flatten":
        return Case(operator, [data], {"axis": int(random.integers(-rank, rank + 1))})
    if operator == "Transpose":
        return Case(operator, [data], pick(random, {}, {"perm": [int(p) for p in random.permutation(rank)]}))
    if operator == "Squeeze":
        ones = [axis for axis, size in enumerate(data_shape) if size == 1]
        return Case(operator, [data, np.array(ones, np.int64)] if ones else [data], constants=(1,) if ones else ())
    if operator == "Unsqueeze":
        axes = random.choice(rank + 2, 2, replace=False) - int(random.integers(2)) * (rank + 2)
        return Case(operator, [data, axes.astype(np.int64)], constants=(1,))
    if operator == "Shape":
        return Case(operator, [data], {"start": int(random.integers(-5, 5)), "end": int(random.integers(-5, 5))})
    return Case(operator, [data])


@makes("Expand", "Tile")
def _repeat(random: Generator, operator: str) -> Case:
    target = full_shape(random)
    dtype = pick(random, "float32", "int64", "bool", "int32", "float64")
    if operator == "Tile":
        counts = random.integers(0 if random.random() < 0.1 else 1, 4, len(target)).astype(np.int64)
        return Case(operator, [values(random, dtype, target), counts], constants=pick(random, (1,), ()))
    data = values(random, dtype, broadcastable(random, target))
    wanted = np.array([1 if random.random() < 0.2 else size for size in target], np.int64)
    return Case(operator, [data, wanted], constants=pick(random, (1,), ()))


@makes("Range")
def _range(random: Generator, operator: str) -> Case:
    dtype = pick(random, "int32", "int64", "float32", "int16")
    start, limit = random.integers(-9, 9, 2)
    delta = pick(random, -3, -2, -1, 1, 2, 3)
    arrays = [np.array(v, dtype) for v in (start, limit, delta)]
    return Case(
        operator, arrays, constants=(0, 1, 2) if dtype.startswith("float") else pick(random, (0, 1, 2), (2,), ())
    )


@makes("EyeLike", "Trilu")
def _matrices(random: Generator, operator: str) -> Case:
    offset = int(random.integers(-4, 5))
    if operator == "EyeLike":
        return Case(
            operator,
            [values(random, "float32", full_shape(random, 2, 2))],
            {"k": offset, "dtype": pick(random, 1, 7, 11)},
        )
    data = values(random, pick(random, "float32", "int64", "bool", "float64"), full_shape(random, 2, 4))
    return Case(operator, [data, np.array(offset)], {"upper": int(random.integers(2))}, pick(random, (1,), ()))


@makes("OneHot")
def _one_hot(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random, 1, 3)
    depth = int(random.integers(1, 6))
    indices = random.integers(-depth - 1, depth + 2, data_shape).astype(pick(random, np.int64, np.int32))
    inputs = [indices, np.array(depth, np.int64), np.array([-2, 3], pick(random, np.float32, np.int64))]
    return Case(
        operator,
        inputs,
        {"axis": int(random.integers(-len(data_shape) - 1, len(data_shape) + 1))},
        pick(random, (1,), ()),
    )


@makes("DepthToSpace", "SpaceToDepth")
def _depth(random: Generator, operator: str) -> Case:
    block = int(random.integers(1, 4))
    batch, channels, height, width = full_shape(random, 4, 4)
    if operator == "DepthToSpace":
        data = values(random, "float32", (batch, channels * block * block, height, width))
        return Case(operator, [data], {"blocksize": block, "mode": pick(random, "DCR", "CRD")})
    return Case(
        operator, [values(random, "float32", (batch, channels, height * block, width * block))], {"blocksize": block}
    )


@makes("ReverseSequence")
def _reverse(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random, 2, 4)
    time = int(random.integers(2))
    lengths = random.integers(1, data_shape[time] + 1, data_shape[1 - time]).astype(np.int64)
    return Case(operator, [values(random, "float32", data_shape), lengths], {"time_axis": time, "batch_axis": 1 - time})


@makes("Gather", "GatherElements", "GatherND")
def _gather(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    data = values(random, pick(random, "float32", "int64", "bool", "uint8", "float64"), data_shape)
    kind, constants = pick(random, np.int64, np.int32), pick(random, (), (1,))
    axis = axis_of(random, len(data_shape))
    size = data_shape[axis]
    if operator == "Gather":
        return Case(
            operator, [data, random.integers(-size, size, shape(random, 0, 2)).astype(kind)], {"axis": axis}, constants
        )
    if operator == "GatherElements":
        wanted = list(data_shape)
        wanted[axis] = int(random.integers(1, 4))
        return Case(operator, [data, random.integers(-size, size, wanted).astype(kind)], {"axis": axis}, constants)
    batch = int(random.integers(0, len(data_shape)))
    depth = int(random.integers(1, len(data_shape) - batch + 1))
    leading = (*data_shape[:batch], *full_shape(random, 1, 2))
    columns = [random.integers(-s, s, leading) for s in data_shape[batch : batch + depth]]
    return Case(operator, [data, np.stack(columns, -1).astype(np.int64)], {"batch_dims": batch}, constants)


@makes("ScatterElements", "ScatterND")
def _scatter(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    dtype = pick(random, "float32", "int64", "int32")
    data = np.clip(values(random, dtype, data_shape), -9, 9).astype(dtype)
    reduction, constants = pick(random, "none", "add", "mul", "max", "min"), pick(random, (), (1,))
    if operator == "ScatterElements":
        axis = axis_of(random, len(data_shape))
        wanted = [int(random.integers(1, size + 1)) for size in data_shape]
        indices = random.integers(-data_shape[axis], data_shape[axis], wanted)
        if reduction == "none":
            # Where two updates meet, which one is last is not said.
            order = np.argsort(random.random(wanted), axis)
            indices = order - int(random.integers(2)) * data_shape[axis]
        updates = np.clip(values(random, dtype, tuple(wanted), -1, 1), -3, 3).astype(dtype)
        return Case(operator, [data, indices, updates], {"axis": axis, "reduction": reduction}, constants)
    depth = int(random.integers(1, len(data_shape) + 1))
    places = int(np.prod(data_shape[:depth]))
    chosen = random.choice(places, min(places, 3), replace=False)
    indices = np.stack(np.unravel_index(chosen, data_shape[:depth]), -1).astype(np.int64)
    updates = np.clip(values(random, dtype, (len(chosen), *data_shape[depth:]), -1, 1), -3, 3).astype(dtype)
    return Case(operator, [data, indices, updates], {"reduction": reduction}, constants)
