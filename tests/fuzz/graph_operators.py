"""Templates of nodes for random graphs. Each gets the builder and appends a node, or returns False to give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.graph_builder import MAX_ELEMENTS, GraphBuilder, Tensor

Template = Callable[[GraphBuilder], bool]
TEMPLATES: list[Template] = []


def template(function: Template) -> Template:
    TEMPLATES.append(function)
    return function


ANY_UNARY = [
    *("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus"),
    *("Selu", "Softsign", "Erf", "Sin", "Cos", "Atan", "Identity", "Celu", "Mish", "ThresholdedRelu"),
]
BOUNDED_UNARY = ["Exp", "Sinh", "Cosh", "Gelu"]
SQUASHING = {"Sigmoid", "Tanh", "HardSigmoid", "Softsign", "Erf", "Sin", "Cos", "Atan"}


@template
def unary(build: GraphBuilder) -> bool:
    operator = build.choice(ANY_UNARY + BOUNDED_UNARY)
    tensor = build.pick(bounded=operator in BOUNDED_UNARY)
    if tensor is None:
        return False
    bounded = operator in SQUASHING or (tensor.bounded and operator not in BOUNDED_UNARY)
    attributes: dict[str, Any] = (
        {"alpha": 0.3} if operator in {"LeakyRelu", "ThresholdedRelu"} and build.chance() else {}
    )
    if operator == "ThresholdedRelu" and not attributes:
        attributes = {"alpha": -9.0}
    build.node(operator, [tensor.name], [tensor.shape], bounded=bounded, **attributes)
    return True


@template
def positive_unary(build: GraphBuilder) -> bool:
    tensor = build.pick(bounded=True)
    if tensor is None:
        return False
    (absolute,) = build.node("Abs", [tensor.name], [tensor.shape])
    shift = build.constant(np.float32(0.5))
    (positive,) = build.node("Add", [absolute.name, shift], [tensor.shape])
    build.node(build.choice(["Sqrt", "Log", "Reciprocal"]), [positive.name], [tensor.shape])
    return True


@template
def clip(build: GraphBuilder) -> bool:
    tensor = build.pick()
    if tensor is None:
        return False
    low = build.constant(np.float32(-build.random.random())) if build.chance(0.8) else ""
    high = build.constant(np.float32(build.random.random())) if build.chance(0.8) else ""
    names = [tensor.name, low, high] if high else [tensor.name, low] if low else [tensor.name]
    build.node("Clip", names, [tensor.shape], bounded=tensor.bounded)
    return True


def _partner(build: GraphBuilder, tensor: Tensor) -> Tensor | None:
    """Another value whose shape broadcasts with the tensor's, or a constant with such a shape."""
    for _ in range(4):
        other = build.pick()
        if other is not None:
            try:
                shape = np.broadcast_shapes(tensor.shape, other.shape)
            except ValueError:
                continue
            if np.prod(shape) <= MAX_ELEMENTS:
                return other
    kept = build.integer(0, tensor.rank)
    shape = tuple(size if build.chance(0.7) else 1 for size in tensor.shape[kept:])
    return Tensor(build.constant(build.random.uniform(-1, 1, shape).astype(np.float32)), shape)


@template
def binary(build: GraphBuilder) -> bool:
    left = build.pick()
    if left is None:
        return False
    right = _partner(build, left)
    if right is None:
        return False
    if build.chance(0.3):
        left, right = right, left
    operator = build.choice(["Add", "Sub", "Mul", "Max", "Min", "Add", "Mul", "Sum", "Mean"])
    shape = np.broadcast_shapes(left.shape, right.shape)
    bounded = left.bounded and right.bounded and operator in {"Max", "Min", "Mean"}
    build.node(operator, [left.name, right.name], [shape], bounded=bounded)
    return True


@template
def divide(build: GraphBuilder) -> bool:
    left = build.pick()
    if left is None:
        return False
    divisor = build.constant((build.random.uniform(0.5, 2, left.shape[-1:]) * build.choice([-1, 1])).astype(np.float32))
    build.node("Div", [left.name, divisor], [left.shape], bounded=False)
    return True


@template
def power(build: GraphBuilder) -> bool:
    tensor = build.pick(bounded=True)
    if tensor is None:
        return False
    exponent = build.constant(np.float32(build.choice([2.0, 3.0, 1.0])))
    build.node("Pow", [tensor.name, exponent], [tensor.shape], bounded=False)
    return True


@template
def squash(build: GraphBuilder) -> bool:
    """Limit large values, so that long chains stay comparable."""
    tensor = build.pick()
    if tensor is None or tensor.bounded:
        return False
    build.node("Tanh", [tensor.name], [tensor.shape])
    return True


@template
def select(build: GraphBuilder) -> bool:
    """Where with a condition on graph inputs: computed values may be on either side of a threshold."""
    candidates = [name for name, array in build.inputs.items() if array.dtype == np.float32]
    if not candidates:
        return False
    name = build.choice(candidates)
    shape = build.inputs[name].shape
    threshold = build.constant(np.float32(0.1))
    operator = build.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
    (condition,) = build.node(operator, [name, threshold], [shape], dtype="bool")
    if build.chance(0.3):
        (condition,) = build.node("Not", [condition.name], [shape], dtype="bool")
    left = next((t for t in reversed(build.tensors) if t.dtype == "float32" and t.shape == shape), None)
    if left is None:
        return False
    build.node("Where", [condition.name, left.name, threshold], [shape], bounded=left.bounded)
    return True


@template
def reduce(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    operator = build.choice(
        ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceL1"]
    )
    count = build.integer(1, tensor.rank)
    axes = sorted(int(axis) for axis in build.random.choice(tensor.rank, count, replace=False))
    keep = build.chance()
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape) if keep or axis not in axes)
    signed = [axis - tensor.rank if build.chance(0.3) else axis for axis in axes]
    names = [tensor.name, build.constant(np.array(signed, np.int64))]
    bounded = tensor.bounded and operator in {"ReduceMean", "ReduceMax", "ReduceMin"}
    build.node(operator, names, [shape], keepdims=int(keep), bounded=bounded)
    return True


@template
def softmax(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    operator = build.choice(["Softmax", "Softmax", "LogSoftmax"])
    build.node(
        operator,
        [tensor.name],
        [tensor.shape],
        axis=build.integer(-tensor.rank, tensor.rank - 1),
        bounded=operator == "Softmax",
    )
    return True


@template
def layer_normalization(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2)
    if tensor is None or tensor.shape[-1] < 2:
        return False
    scale = build.constant(build.random.uniform(0.5, 1.5, tensor.shape[-1:]).astype(np.float32))
    names = [tensor.name, scale]
    if build.chance():
        names.append(build.constant(build.random.uniform(-1, 1, tensor.shape[-1:]).astype(np.float32)))
    # A large epsilon: otherwise rows that are constant except for rounding become noise.
    build.node("LayerNormalization", names, [tensor.shape], axis=-1, epsilon=0.1)
    return True


@template
def transpose(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2)
    if tensor is None:
        return False
    order = [int(axis) for axis in build.random.permutation(tensor.rank)]
    build.node(
        "Transpose", [tensor.name], [tuple(tensor.shape[axis] for axis in order)], perm=order, bounded=tensor.bounded
    )
    return True


@template
def reshape(build: GraphBuilder) -> bool:
    tensor = build.pick()
    if tensor is None:
        return False
    factors = _factors(tensor.size)
    count = build.integer(1, 4)
    shape = [1] * count
    for factor in factors:
        shape[build.integer(0, count - 1)] *= factor
    target = list(shape)
    if build.chance():
        target[build.integer(0, count - 1)] = -1
    names = [tensor.name, build.constant(np.array(target, np.int64))]
    build.node("Reshape", names, [tuple(shape)], bounded=tensor.bounded)
    return True


def _factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


@template
def squeeze_unsqueeze(build: GraphBuilder) -> bool:
    tensor = build.pick(max_rank=4)
    if tensor is None:
        return False
    ones = [axis for axis, size in enumerate(tensor.shape) if size == 1]
    if ones and build.chance():
        axis = build.choice(ones)
        names = [tensor.name, build.constant(np.array([axis], np.int64))]
        shape = tensor.shape[:axis] + tensor.shape[axis + 1 :]
        build.node("Squeeze", names, [shape], bounded=tensor.bounded)
        return True
    axis = build.integer(0, tensor.rank)
    names = [tensor.name, build.constant(np.array([axis], np.int64))]
    shape = (*tensor.shape[:axis], 1, *tensor.shape[axis:])
    build.node("Unsqueeze", names, [shape], bounded=tensor.bounded)
    return True


@template
def slice_(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    size = tensor.shape[axis]
    start, stop = sorted((build.integer(0, size - 1), build.integer(1, size)))
    if stop == start:
        stop = start + 1
    step = build.integer(1, 2)
    begin, end, stride = start, stop, step
    if build.chance(0.25):
        begin, end, stride = stop - 1, start - 1 - size if start == 0 else start - 1, -step
        if start == 0:
            end = -size - 1
    length = len(range(start, stop, step))
    names = [tensor.name, *(build.constant(np.array([value], np.int64)) for value in (begin, end, axis, stride))]
    build.node("Slice", names, [tensor.shape[:axis] + (length,) + tensor.shape[axis + 1 :]], bounded=tensor.bounded)
    return True


@template
def concat(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    others = [
        other
        for other in build.tensors
        if other.dtype == "float32"
        and other.rank == tensor.rank
        and all(other.shape[k] == tensor.shape[k] for k in range(tensor.rank) if k != axis)
    ]
    chosen = [tensor, *(build.choice(others) for _ in range(build.integer(1, 2)))]
    length = sum(other.shape[axis] for other in chosen)
    shape = tensor.shape[:axis] + (length,) + tensor.shape[axis + 1 :]
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    build.node("Concat", [other.name for other in chosen], [shape], axis=axis, bounded=all(o.bounded for o in chosen))
    return True


@template
def split(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    size = tensor.shape[axis]
    if size < 2:
        return False
    first = build.integer(1, size - 1)
    shapes = [tensor.shape[:axis] + (part,) + tensor.shape[axis + 1 :] for part in (first, size - first)]
    names = [tensor.name, build.constant(np.array([first, size - first], np.int64))]
    build.node("Split", names, shapes, axis=axis, bounded=tensor.bounded)
    return True


@template
def pad(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    mode = build.choice(["constant", "edge", "reflect"])
    limits = [min(2, size - 1) if mode == "reflect" else 2 for size in tensor.shape]
    before = [build.integer(0, limit) for limit in limits]
    after = [build.integer(0, limit) for limit in limits]
    shape = tuple(size + low + high for size, low, high in zip(tensor.shape, before, after, strict=True))
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    names = [tensor.name, build.constant(np.array(before + after, np.int64))]
    if mode == "constant" and build.chance():
        names.append(build.constant(np.float32(0.5)))
    build.node("Pad", names, [shape], mode=mode, bounded=tensor.bounded)
    return True


@template
def gather(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    indices_shape = tuple(build.integer(1, 3) for _ in range(build.integer(0, 2)))
    indices = build.random.integers(-tensor.shape[axis], tensor.shape[axis], indices_shape)
    shape = tensor.shape[:axis] + indices_shape + tensor.shape[axis + 1 :]
    if len(shape) > 5 or np.prod(shape) > MAX_ELEMENTS:
        return False
    names = [tensor.name, build.constant(np.asarray(indices, np.int64))]
    build.node("Gather", names, [shape], axis=axis, bounded=tensor.bounded)
    return True


@template
def expand(build: GraphBuilder) -> bool:
    tensor = build.pick(max_rank=4)
    if tensor is None:
        return False
    shape = tuple(build.integer(2, 4) if size == 1 and build.chance(0.7) else size for size in tensor.shape)
    if build.chance(0.3):
        shape = (2, *shape)
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    build.node("Expand", [tensor.name, build.constant(np.array(shape, np.int64))], [shape], bounded=tensor.bounded)
    return True


@template
def tile(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1, max_rank=4)
    if tensor is None:
        return False
    repeats = [build.integer(1, 2) for _ in tensor.shape]
    shape = tuple(size * count for size, count in zip(tensor.shape, repeats, strict=True))
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    build.node("Tile", [tensor.name, build.constant(np.array(repeats, np.int64))], [shape], bounded=tensor.bounded)
    return True


@template
def cumulative_sum(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    axis = build.constant(np.array(build.integer(-tensor.rank, tensor.rank - 1), np.int64))
    attributes: dict[str, Any] = {"exclusive": build.integer(0, 1), "reverse": build.integer(0, 1)}
    build.node("CumSum", [tensor.name, axis], [tensor.shape], bounded=False, **attributes)
    return True
