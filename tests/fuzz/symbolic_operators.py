"""Templates of elementwise nodes, reductions and matmuls for graphs with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.symbolic_builder import Shape, SymbolicBuilder, Tensor

Template = Callable[[SymbolicBuilder], bool]
TEMPLATES: list[Template] = []


def template(function: Template) -> Template:
    """Register a template, which appends nodes or returns False to give up."""
    TEMPLATES.append(function)
    return function


_ANY = [
    *("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Selu"),
    *("Softsign", "Erf", "Sin", "Cos", "Atan", "Identity", "Celu", "Mish", "Asinh"),
]
_EXACT = ["Sign", "Floor", "Ceil", "Round", "ThresholdedRelu", "Shrink"]
_BOUNDED = ["Exp", "Sinh", "Cosh", "Gelu"]
_MOVES = {"Identity", "Neg", "Abs", "Relu"}
_SQUASHING = {"Sigmoid", "Tanh", "HardSigmoid", "Softsign", "Erf", "Sin", "Cos", "Atan"}


@template
def unary(build: SymbolicBuilder) -> bool:
    operator = build.choice(_ANY + _EXACT + _BOUNDED)
    tensor = build.pick(exact=operator in _EXACT, bounded=operator in _BOUNDED)
    if tensor is None:
        return False
    exact = tensor.exact and (operator in _MOVES or operator in _EXACT)
    bounded = operator in _SQUASHING or (tensor.bounded and operator not in _BOUNDED)
    build.node(operator, [tensor.name], [build.like(tensor, exact=exact, bounded=bounded)])
    return True


@template
def squash(build: SymbolicBuilder) -> bool:
    tensor = build.pick()
    if tensor is None or tensor.bounded:
        return False
    build.node("Tanh", [tensor.name], [build.like(tensor, exact=False, bounded=True)])
    return True


def partner(build: SymbolicBuilder, tensor: Tensor) -> tuple[str, Shape, bool, bool]:
    """(name, shape, exact, bounded) of a value that broadcasts with a tensor: one of its shape, or a constant."""
    if build.chance(0.6):
        other = build.pick(shape=tensor.shape)
        if other is not None:
            return other.name, other.shape, other.exact, other.bounded
    kept = build.integer(0, tensor.rank)
    shape = tuple(dim if isinstance(dim, int) and build.chance(0.7) else 1 for dim in tensor.shape[kept:])
    return build.constant(build.uniform(0.5, 1.5, shape)), shape, True, True


@template
def binary(build: SymbolicBuilder) -> bool:
    left = build.pick()
    if left is None:
        return False
    name, _, exact, bounded = partner(build, left)
    operator = build.choice(["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"])
    names = [left.name, name] if build.chance(0.7) or operator == "Sub" else [name, left.name]
    extremum = operator in {"Max", "Min"}
    result = build.like(left, exact=extremum and exact and left.exact, bounded=left.bounded and bounded and extremum)
    build.node(operator, names, [result])
    return True


@template
def divide(build: SymbolicBuilder) -> bool:
    left = build.pick()
    if left is None:
        return False
    name = build.constant(build.uniform(0.5, 2))
    build.node("Div", [left.name, name], [build.like(left, exact=False, bounded=False)])
    return True


@template
def of_a_mean(build: SymbolicBuilder) -> bool:
    """x - mean(x): an axis is reduced to 1 and broadcast again."""
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    shape = (*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :])
    kept = build.like(tensor, shape, exact=False)
    (mean,) = build.node("ReduceMean", [tensor.name, build.constant([axis])], [kept], keepdims=1)
    build.node(build.choice(["Sub", "Add", "Mul"]), [tensor.name, mean.name], [build.like(tensor, exact=False)])
    return True


@template
def compare_and_select(build: SymbolicBuilder) -> bool:
    tensor = build.pick(exact=True)
    if tensor is None:
        return False
    name, _, exact, _ = partner(build, tensor)
    if not exact:
        name = build.constant(build.uniform(-1, 1))
    operator = build.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
    flag = Tensor("", tensor.shape, "bool", exact=True)
    (condition,) = build.node(operator, [tensor.name, name], [flag])
    if build.chance(0.4):
        (condition,) = build.node("Not", [condition.name], [flag])
    if build.chance(0.3):
        build.node("Cast", [condition.name], [Tensor("", tensor.shape, "float32", exact=True)], to=1)
        return True
    source = build.pick(shape=tensor.shape) or tensor
    build.node("Where", [condition.name, source.name, build.constant(0.25)], [build.like(source)])
    return True


@template
def is_special(build: SymbolicBuilder) -> bool:
    tensor = build.pick(exact=True)
    if tensor is None:
        return False
    flag = Tensor("", tensor.shape, "bool", exact=True)
    (found,) = build.node(build.choice(["IsNaN", "IsInf"]), [tensor.name], [flag])
    build.node("Where", [found.name, build.constant(1.5), tensor.name], [build.like(tensor)])
    return True


@template
def reduce(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 5))
    if tensor is None:
        return False
    operators = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceL1"]
    operator = build.choice([*operators, "ReduceLogSumExp", "ReduceProd"])
    count = build.integer(1, tensor.rank)
    axes = sorted(int(axis) for axis in build.random.choice(tensor.rank, count, replace=False))
    keep = build.chance()
    shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(tensor.shape) if keep or axis not in axes)
    signed = [axis - tensor.rank if build.chance(0.3) else axis for axis in axes]
    extremum = operator in {"ReduceMax", "ReduceMin"}
    result = build.like(tensor, shape, exact=tensor.exact and extremum, bounded=False)
    build.node(operator, [tensor.name, build.constant(signed)], [result], keepdims=int(keep))
    return True


@template
def softmax(build: SymbolicBuilder) -> bool:
    operator = build.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    tensor = build.pick(ranks=(1, 5), exact=operator == "Hardmax")
    if tensor is None:
        return False
    axis = build.integer(-tensor.rank, tensor.rank - 1)
    result = build.like(tensor, exact=operator == "Hardmax", bounded=operator != "LogSoftmax")
    build.node(operator, [tensor.name], [result], axis=axis)
    return True


@template
def places(build: SymbolicBuilder) -> bool:
    """ArgMax and TopK, only on exact values."""
    tensor = build.pick(ranks=(1, 4), exact=True)
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    if build.chance():
        keep = build.integer(0, 1)
        shape = tuple(1 if a == axis else dim for a, dim in enumerate(tensor.shape) if keep or a != axis)
        result = Tensor("", shape, "int64", exact=True)
        build.node(build.choice(["ArgMax", "ArgMin"]), [tensor.name], [result], axis=axis, keepdims=keep)
        return True
    count = build.integer(1, 3)
    shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
    results = [build.like(tensor, shape), Tensor("", shape, "int64", exact=True)]
    build.node("TopK", [tensor.name, build.constant([count])], results, axis=axis, largest=build.integer(0, 1))
    return True


@template
def cumulative_sum(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.constant(np.array(build.integer(-tensor.rank, tensor.rank - 1), np.int64))
    attributes: dict[str, Any] = {"exclusive": build.integer(0, 1), "reverse": build.integer(0, 1)}
    build.node("CumSum", [tensor.name, axis], [build.like(tensor, exact=False, bounded=False)], **attributes)
    return True


@template
def matmul(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None or not isinstance(tensor.shape[-1], int):
        return False
    depth, columns = tensor.shape[-1], build.integer(1, 17)
    shape = (*tensor.shape[:-1], columns)
    if depth < 1 or not build.fits(shape):
        return False
    weight = build.random.standard_normal((depth, columns)) / np.sqrt(depth)
    build.node("MatMul", [tensor.name, build.constant(weight)], [build.like(tensor, shape, exact=False)])
    return True


@template
def matmul_of_values(build: SymbolicBuilder) -> bool:
    """x x^T and, with a softmax and values, attention: matmuls over symbolic sizes."""
    tensor = build.pick(ranks=(2, 4), bounded=True)
    if tensor is None:
        return False
    order = [*range(tensor.rank - 2), tensor.rank - 1, tensor.rank - 2]
    turned = build.like(tensor, tuple(tensor.shape[axis] for axis in order))
    shape = (*tensor.shape[:-1], tensor.shape[-2])
    if not build.fits(shape):
        return False
    (other,) = build.node("Transpose", [tensor.name], [turned], perm=order)
    result = build.like(tensor, shape, exact=False, bounded=False)
    (scores,) = build.node("MatMul", [tensor.name, other.name], [result])
    if build.chance():
        (weights,) = build.node("Softmax", [scores.name], [build.like(result, bounded=True)], axis=-1)
        build.node("MatMul", [weights.name, tensor.name], [build.like(tensor, exact=False)])
    return True


@template
def gemm(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(2, 2))
    if tensor is None or not isinstance(tensor.shape[1], int) or tensor.shape[1] < 1:
        return False
    depth, columns, turned = tensor.shape[1], build.integer(1, 9), build.integer(0, 1)
    weight = build.uniform(-1, 1, (columns, depth) if turned else (depth, columns))
    names = [tensor.name, build.constant(weight), build.constant(build.uniform(-1, 1, (columns,)))]
    build.node("Gemm", names, [build.like(tensor, (tensor.shape[0], columns), exact=False)], transB=turned)
    return True
