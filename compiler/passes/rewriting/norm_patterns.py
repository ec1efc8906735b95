"""Patterns shared by layer and RMS normalization: means, squared tensors, inverse roots and scales in their various
forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.passes.rewriting.graph import Call, Expr, Graph
from compiler.passes.rewriting.matching import (
    Array,
    constant_array,
    dtype_of,
    is_scalar_constant,
    rank_of,
    same_shape,
    scalar_of,
    shape_of,
)


@dataclass(frozen=True)
class Mean:
    """The mean of `operand` over `axes` (not negative, sorted), which stay as axes of size 1."""

    operand: Expr
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Normalized:
    """`numerator / sqrt(mean_of_squares + epsilon)`, times `scale` where there is one.

    Attributes:
        numerator: the tensor that is divided.
        variance: what stands under the root beside epsilon.
        epsilon: the constant.
        scale: a factor that was multiplied into the inverse root, or None.
        inner: variables in between, with how often the match reads each.
    """

    numerator: Expr
    variance: Expr
    epsilon: float
    scale: Expr | None
    inner: list[Expr]


def as_mean(graph: Graph, expr: Expr) -> Mean | None:
    """A mean over known axes that keeps them: the operator, or a sum over the count."""
    call = graph.call(expr, "relax.mean")
    if call is not None:
        return _reduced(call)
    scaled = graph.call(expr, "relax.multiply", "relax.divide")
    if scaled is None:
        return None
    for total_expr, factor in ((scaled.args[0], scaled.args[1]), (scaled.args[1], scaled.args[0])):
        total = graph.call(total_expr, "relax.sum")
        mean = _reduced(total) if total is not None and graph.only_use(total_expr) else None
        count = None if mean is None else _count(mean)
        if mean is None or count is None:
            continue
        number = count if scaled.op.name == "relax.divide" else 1 / count
        if is_scalar_constant(graph, factor, number) and (
            scaled.op.name == "relax.multiply" or factor.same_as(scaled.args[1])
        ):
            return mean
    return None


def _reduced(call: Call) -> Mean | None:
    rank = rank_of(call.args[0])
    if rank is None or not bool(call.attrs.keepdims):
        return None
    axes = call.attrs.axis
    numbers = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    return Mean(call.args[0], tuple(sorted(numbers)))


def _count(mean: Mean) -> int | None:
    shape = shape_of(mean.operand)
    if shape is None or not all(isinstance(shape[axis], int) for axis in mean.axes):
        return None
    return math.prod(shape[axis] for axis in mean.axes)


def as_square(graph: Graph, expr: Expr) -> tuple[Expr, int] | None:
    """x and how often it is read, when `expr` is the square of x."""
    call = graph.call(expr, "relax.multiply", "relax.square", "relax.power")
    if call is None or not graph.only_use(expr):
        return None
    if call.op.name == "relax.multiply":
        return (call.args[0], 2) if call.args[0].same_as(call.args[1]) else None
    if call.op.name == "relax.power" and not is_scalar_constant(graph, call.args[1], 2):
        return None
    return call.args[0], 1


def as_normalized(graph: Graph, call: Call) -> Normalized | None:
    """Reads `call` as x / sqrt(v + e), x * rsqrt(v + e), x * (1 / sqrt(v + e)) or x * (rsqrt(v + e) * scale)."""
    if call.op.name == "relax.divide":
        root = graph.call(call.args[1], "relax.sqrt")
        return _under_root(graph, call.args[0], root, None, [call.args[1]]) if root is not None else None
    for numerator, inverse in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        found = _inverse_root(graph, inverse)
        if found is not None:
            return _under_root(graph, numerator, found[0], None, [inverse, *found[1]])
        scaled = graph.call(inverse, "relax.multiply")
        if scaled is None:
            continue
        for factor, scale in ((scaled.args[0], scaled.args[1]), (scaled.args[1], scaled.args[0])):
            found = _inverse_root(graph, factor)
            if found is not None and constant_array(graph, scale) is not None:
                return _under_root(graph, numerator, found[0], scale, [inverse, factor, *found[1]])
    return None


def _inverse_root(graph: Graph, expr: Expr) -> tuple[Call, list[Expr]] | None:
    """The root call when `expr` is rsqrt(..) or 1 / sqrt(..), and the variables in between."""
    call = graph.call(expr, "relax.rsqrt", "relax.divide")
    if call is None:
        return None
    if call.op.name == "relax.rsqrt":
        return call, []
    root = graph.call(call.args[1], "relax.sqrt")
    return (root, [call.args[1]]) if root is not None and is_scalar_constant(graph, call.args[0], 1) else None


def _under_root(graph: Graph, numerator: Expr, root: Call, scale: Expr | None, inner: list[Expr]) -> Normalized | None:
    total = graph.call(root.args[0], "relax.add")
    if total is None:
        return None
    for variance, constant in ((total.args[0], total.args[1]), (total.args[1], total.args[0])):
        epsilon = scalar_of(graph, constant)
        if epsilon is not None and constant_array(graph, variance) is None and epsilon >= 0:
            return Normalized(numerator, variance, float(epsilon), scale, [*inner, root.args[0], variance])
    return None


def read_exactly(graph: Graph, counts: list[tuple[Expr, int]]) -> bool:
    """True if none of the variables is read more often than the match reads it."""
    return all(graph.uses(expr) <= count for expr, count in counts)


def over_axes(graph: Graph, expr: Expr, like: Expr, axes: tuple[int, ...]) -> Array | None:
    """A constant that varies over `axes` of `like` only, as an array of just these axes; None when it is not that."""
    array, shape = constant_array(graph, expr), shape_of(like)
    if array is None or shape is None or array.ndim > len(shape) or str(array.dtype) != dtype_of(like):
        return None
    wanted = [shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in wanted):
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(full.shape) if axis not in axes):
        return None
    if not all(full.shape[axis] in (1, size) for axis, size in zip(axes, wanted, strict=True)):
        return None
    return np.broadcast_to(full.reshape([full.shape[axis] for axis in axes]), wanted)


def scaled_norms(graph: Graph, call: Call, operator: str) -> Iterator[tuple[Call, tuple[int, ...], Array]]:
    """(norm, axes, constant over these axes) for each operand of a binary call that is such a norm, used only here."""
    for variable, other in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        norm = graph.call(variable, operator)
        if norm is None or not graph.only_use(variable) or not same_type(norm, call):
            continue
        axes = normalized_axes(norm)
        constant = over_axes(graph, other, norm, axes)
        if constant is not None:
            yield norm, axes, constant


def normalized_axes(call: Call) -> tuple[int, ...]:
    """Axes of a layer_norm or rms_norm call, not negative, sorted."""
    rank = rank_of(call.args[0])
    assert rank is not None
    return tuple(sorted(int(axis) % rank for axis in call.attrs.axes))


def same_type(left: Expr, right: Expr) -> bool:
    """True if two tensors have provably the same shape and data type."""
    return dtype_of(left) == dtype_of(right) and same_shape(shape_of(left), shape_of(right))
