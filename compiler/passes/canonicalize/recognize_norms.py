"""recognize-layer-norm and recognize-rms-norm: replace normalizations written as means, squares and roots by operators.

(x - mean(x)) / sqrt(mean((x - mean(x))**2) + e)  => layer_norm(x, 1, 0)
layer_norm(x, 1, 0) * g                           => layer_norm(x, g, 0)     g constant over the normalized axes
layer_norm(x, g, 0) + b                           => layer_norm(x, g, b)     also b
x / sqrt(mean(x**2) + e)                          => rms_norm(x, 1)
rms_norm(x, 1) * g                                => rms_norm(x, g)          also g

Layer and RMS normalization share the patterns of means, squared tensors, inverse roots and scales in their various
forms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    both_orders,
    constant_array,
    dtype_of,
    is_scalar_constant,
    rank_of,
    same_shape,
    scalar_of,
    shape_of,
)

_layer_norm_rules = RuleTable()
op = relax.op


@graph_pass("recognize-layer-norm", summary="Replace a decomposed layer normalization by one operator")
def recognize_layer_norm(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return _layer_norm_rules.apply(mod)


@_layer_norm_rules.on("relax.divide", "relax.multiply")
def spelled_layer_norm(graph: Graph, call: Call) -> Expr | None:
    """=> layer_norm(x, 1, 0), or with the scale multiplied into the inverse root"""
    norm = as_normalized(graph, call)
    if norm is None:
        return None
    centered = graph.call(norm.numerator, "relax.subtract")
    mean = as_mean(graph, centered.args[1]) if centered is not None else None
    if centered is None or mean is None or not mean.operand.same_as(centered.args[0]):
        return None
    if not _is_variance(graph, norm, mean) or not same_type(call, mean.operand):
        return None
    if not read_exactly(graph, [(each, 1) for each in norm.inner]):
        return None
    weight = _ones(mean) if norm.scale is None else over_axes(graph, norm.scale, mean.operand, mean.axes)
    if weight is None:
        return None
    return _layer_norm(mean.operand, weight, np.zeros_like(weight), mean.axes, norm.epsilon)


def _is_variance(graph: Graph, norm: Normalized, mean: Mean) -> bool:
    """True if the term under the root is the variance of the operand of `mean`, and its parts have no other reader."""
    variance = graph.call(norm.variance, "relax.variance")
    if variance is not None:
        axes = tuple(sorted(int(axis) % len(shape_of(mean.operand) or [0]) for axis in variance.attrs.axis or []))
        same = variance.args[0].same_as(mean.operand) and axes == mean.axes and bool(variance.attrs.keepdims)
        return same and graph.only_use(norm.numerator)
    squares = as_mean(graph, norm.variance)
    square = as_square(graph, squares.operand) if squares is not None else None
    if squares is None or square is None or squares.axes != mean.axes:
        return False
    base, reads = square
    if base.same_as(norm.numerator):
        return read_exactly(graph, [(base, reads + 1)])
    again = graph.call(base, "relax.subtract")  # the difference may have been computed twice
    second_mean = as_mean(graph, again.args[1]) if again is not None else None
    same = again is not None and second_mean is not None and again.args[0].same_as(mean.operand)
    return bool(
        same
        and second_mean is not None
        and second_mean.operand.same_as(mean.operand)
        and second_mean.axes == mean.axes
        and read_exactly(graph, [(base, reads), (norm.numerator, 1)])
    )


def _ones(mean: Mean) -> Array | None:
    shape, dtype = shape_of(mean.operand), dtype_of(mean.operand)
    if shape is None or dtype not in ("float16", "float32", "float64"):
        return None
    sizes = [shape[axis] for axis in mean.axes]
    return np.ones(sizes, dtype) if all(isinstance(size, int) for size in sizes) else None


def _layer_norm(data: Expr, weight: Array, bias: Array, axes: tuple[int, ...], epsilon: float) -> Call:
    return op.nn.layer_norm(data, as_constant(weight), as_constant(bias), list(axes), epsilon)


@_layer_norm_rules.on("relax.multiply", "relax.add")
def absorb_constant(graph: Graph, call: Call) -> Expr | None:
    """layer_norm(x, g, 0) * s => layer_norm(x, g * s, 0); layer_norm(x, g, b) + t => layer_norm(x, g, b + t)"""
    for norm, axes, factor in scaled_norms(graph, call, "relax.nn.layer_norm"):
        weight, bias = (constant_array(graph, each) for each in norm.args[1:])
        if weight is None or bias is None:
            continue
        if call.op.name == "relax.add" and bool((bias == 0).all()):
            return _layer_norm(norm.args[0], weight, factor, axes, float(norm.attrs.epsilon))
        if call.op.name == "relax.multiply" and bool((weight == 1).all()) and bool((bias == 0).all()):
            return _layer_norm(norm.args[0], factor, bias, axes, float(norm.attrs.epsilon))
    return None


_rms_norm_rules = RuleTable()


@graph_pass("recognize-rms-norm", summary="Replace a decomposed RMS normalization by one operator")
def recognize_rms_norm(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring. Only over the last axes, as the operator requires."""
    return _rms_norm_rules.apply(mod)


@_rms_norm_rules.on("relax.divide", "relax.multiply")
def spelled_rms_norm(graph: Graph, call: Call) -> Expr | None:
    """=> rms_norm(x, 1), or with the scale multiplied into the inverse root"""
    norm = as_normalized(graph, call)
    mean = as_mean(graph, norm.variance) if norm is not None else None
    square = as_square(graph, mean.operand) if mean is not None else None
    if norm is None or mean is None or square is None or not square[0].same_as(norm.numerator):
        return None
    data, rank, shape = norm.numerator, rank_of(norm.numerator), shape_of(norm.numerator)
    # TVM cannot lower the operator over all axes.
    if rank is None or shape is None or mean.axes != tuple(range(max(1, rank - len(mean.axes)), rank)):
        return None
    sizes = [shape[axis] for axis in mean.axes]
    # The operator computes in float32 and casts back, which is too imprecise for float64.
    known = all(isinstance(size, int) for size in sizes) and dtype_of(data) in ("float16", "float32")
    if not known or not same_type(call, data) or not read_exactly(graph, [(each, 1) for each in norm.inner]):
        return None
    ones = np.ones(sizes, dtype_of(data))
    weight = ones if norm.scale is None else over_axes(graph, norm.scale, data, mean.axes)
    return None if weight is None else op.nn.rms_norm(data, as_constant(weight), list(mean.axes), norm.epsilon)


@_rms_norm_rules.on("relax.multiply")
def absorb_scale(graph: Graph, call: Call) -> Expr | None:
    """rms_norm(x, 1) * g => rms_norm(x, g)"""
    for norm, axes, scale in scaled_norms(graph, call, "relax.nn.rms_norm"):
        weight = constant_array(graph, norm.args[1])
        if weight is not None and bool((weight == 1).all()):
            return op.nn.rms_norm(norm.args[0], as_constant(scale), list(axes), float(norm.attrs.epsilon))
    return None


@dataclass(frozen=True)
class Mean:
    """The mean of `operand` over `axes` (non-negative, sorted), which are kept with size 1."""

    operand: Expr
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Normalized:
    """`numerator / sqrt(mean_of_squares + epsilon)`, times `scale` if there is one.

    Attributes:
        numerator: the tensor that is divided.
        variance: the term added to epsilon under the root.
        epsilon: the constant.
        scale: a factor multiplied into the inverse root, or None.
        inner: variables in between, once per read by the match.
    """

    numerator: Expr
    variance: Expr
    epsilon: float
    scale: Expr | None
    inner: list[Expr]


def as_mean(graph: Graph, expr: Expr) -> Mean | None:
    """Return a mean over known axes with keepdims: the operator, or a sum divided by the count."""
    call = graph.call(expr, "relax.mean")
    if call is not None:
        return _reduced(call)
    scaled = graph.call(expr, "relax.multiply", "relax.divide")
    if scaled is None:
        return None
    for total_expr, factor in both_orders(scaled):
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
    """Return x and how often it is read, if `expr` is the square of x."""
    call = graph.call(expr, "relax.multiply", "relax.square", "relax.power")
    if call is None or not graph.only_use(expr):
        return None
    if call.op.name == "relax.multiply":
        return (call.args[0], 2) if call.args[0].same_as(call.args[1]) else None
    if call.op.name == "relax.power" and not is_scalar_constant(graph, call.args[1], 2):
        return None
    return call.args[0], 1


def as_normalized(graph: Graph, call: Call) -> Normalized | None:
    """Match `call` as x / sqrt(v + e), x * rsqrt(v + e), x * (1 / sqrt(v + e)) or x * (rsqrt(v + e) * scale)."""
    if call.op.name == "relax.divide":
        root = graph.call(call.args[1], "relax.sqrt")
        return _under_root(graph, call.args[0], root, None, [call.args[1]]) if root is not None else None
    for numerator, inverse in both_orders(call):
        inverse_root = _inverse_root(graph, inverse)
        if inverse_root is not None:
            return _under_root(graph, numerator, inverse_root[0], None, [inverse, *inverse_root[1]])
        scaled = graph.call(inverse, "relax.multiply")
        if scaled is None:
            continue
        for factor, scale in both_orders(scaled):
            inverse_root = _inverse_root(graph, factor)
            if inverse_root is not None and constant_array(graph, scale) is not None:
                return _under_root(graph, numerator, inverse_root[0], scale, [inverse, factor, *inverse_root[1]])
    return None


def _inverse_root(graph: Graph, expr: Expr) -> tuple[Call, list[Expr]] | None:
    """Return the root call if `expr` is rsqrt(..) or 1 / sqrt(..), and the variables in between."""
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
    for variance, constant in both_orders(total):
        epsilon = scalar_of(graph, constant)
        if epsilon is not None and constant_array(graph, variance) is None and epsilon >= 0:
            return Normalized(numerator, variance, float(epsilon), scale, [*inner, root.args[0], variance])
    return None


def read_exactly(graph: Graph, counts: list[tuple[Expr, int]]) -> bool:
    """True if no variable has more reads than the match accounts for."""
    return all(graph.uses(expr) <= count for expr, count in counts)


def over_axes(graph: Graph, expr: Expr, like: Expr, axes: tuple[int, ...]) -> Array | None:
    """Return a constant that varies only over `axes` of `like` as an array of these axes, or None."""
    array, shape = constant_array(graph, expr), shape_of(like)
    if array is None or shape is None or array.ndim > len(shape) or str(array.dtype) != dtype_of(like):
        return None
    target = [shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in target):
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(full.shape) if axis not in axes):
        return None
    if not all(full.shape[axis] in (1, size) for axis, size in zip(axes, target, strict=True)):
        return None
    return np.broadcast_to(full.reshape([full.shape[axis] for axis in axes]), target)


def scaled_norms(graph: Graph, call: Call, operator: str) -> Iterator[tuple[Call, tuple[int, ...], Array]]:
    """Yield (norm, axes, constant over these axes) for each operand of a binary call that is such a norm, used only
    here."""
    for variable, scale in both_orders(call):
        norm = graph.call(variable, operator)
        if norm is None or not graph.only_use(variable) or not same_type(norm, call):
            continue
        axes = normalized_axes(norm)
        constant = over_axes(graph, scale, norm, axes)
        if constant is not None:
            yield norm, axes, constant


def normalized_axes(call: Call) -> tuple[int, ...]:
    """Return the axes of a layer_norm or rms_norm call, non-negative and sorted."""
    rank = rank_of(call.args[0])
    assert rank is not None
    return tuple(sorted(int(axis) % rank for axis in call.attrs.axes))


def same_type(left: Expr, right: Expr) -> bool:
    """True if two tensors have provably the same shape and data type."""
    return dtype_of(left) == dtype_of(right) and same_shape(shape_of(left), shape_of(right))
