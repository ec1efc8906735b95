"""recognize-layer-norm and recognize-rms-norm: normalizations from means, squares and roots become operators.

(x - mean(x)) / sqrt(mean((x - mean(x))**2) + e)  => layer_norm(x, 1, 0)
layer_norm(x, 1, 0) * g                           => layer_norm(x, g, 0)     g constant over the normalized axes
layer_norm(x, g, 0) + b                           => layer_norm(x, g, b)     b likewise
x / sqrt(mean(x**2) + e)                          => rms_norm(x, 1)
rms_norm(x, 1) * g                                => rms_norm(x, g)          g likewise
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of, shape_of
from compiler.passes.rewriting.norm_patterns import (
    Mean,
    Normalized,
    as_mean,
    as_normalized,
    as_square,
    over_axes,
    read_exactly,
    same_type,
    scaled_norms,
)

_layer_norm_rules = RuleTable()
op = relax.op


@graph_pass("recognize-layer-norm", summary="Replace a decomposed layer normalization by one operator")
def recognize_layer_norm(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module's documentation."""
    return _layer_norm_rules.apply(mod)


@_layer_norm_rules.on("relax.divide", "relax.multiply")
def spelled_layer_norm(graph: Graph, call: Call) -> Expr | None:
    """=> layer_norm(x, 1, 0), or with the scale that was multiplied into the inverse root"""
    found = as_normalized(graph, call)
    if found is None:
        return None
    centered = graph.call(found.numerator, "relax.subtract")
    mean = as_mean(graph, centered.args[1]) if centered is not None else None
    if centered is None or mean is None or not mean.operand.same_as(centered.args[0]):
        return None
    if not _is_variance(graph, found, mean) or not same_type(call, mean.operand):
        return None
    if not read_exactly(graph, [(each, 1) for each in found.inner]):
        return None
    weight = _ones(mean) if found.scale is None else over_axes(graph, found.scale, mean.operand, mean.axes)
    if weight is None:
        return None
    return _layer_norm(mean.operand, weight, np.zeros_like(weight), mean.axes, found.epsilon)


def _is_variance(graph: Graph, found: Normalized, mean: Mean) -> bool:
    """True if what is under the root is the variance of the operand of `mean`, and nothing else reads its parts."""
    variance = graph.call(found.variance, "relax.variance")
    if variance is not None:
        axes = tuple(sorted(int(axis) % len(shape_of(mean.operand) or [0]) for axis in variance.attrs.axis or []))
        same = variance.args[0].same_as(mean.operand) and axes == mean.axes and bool(variance.attrs.keepdims)
        return same and graph.only_use(found.numerator)
    squares = as_mean(graph, found.variance)
    square = as_square(graph, squares.operand) if squares is not None else None
    if squares is None or square is None or squares.axes != mean.axes:
        return False
    base, reads = square
    if base.same_as(found.numerator):
        return read_exactly(graph, [(base, reads + 1)])
    again = graph.call(base, "relax.subtract")  # the difference may have been computed twice
    other = as_mean(graph, again.args[1]) if again is not None else None
    same = again is not None and other is not None and again.args[0].same_as(mean.operand)
    return bool(
        same
        and other is not None
        and other.operand.same_as(mean.operand)
        and other.axes == mean.axes
        and read_exactly(graph, [(base, reads), (found.numerator, 1)])
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
    """See the equations in the module's documentation. Only over the last axes, which is what the operator does."""
    return _rms_norm_rules.apply(mod)


@_rms_norm_rules.on("relax.divide", "relax.multiply")
def spelled_rms_norm(graph: Graph, call: Call) -> Expr | None:
    """=> rms_norm(x, 1), or with the scale that was multiplied into the inverse root"""
    found = as_normalized(graph, call)
    mean = as_mean(graph, found.variance) if found is not None else None
    square = as_square(graph, mean.operand) if mean is not None else None
    if found is None or mean is None or square is None or not square[0].same_as(found.numerator):
        return None
    data, rank, shape = found.numerator, rank_of(found.numerator), shape_of(found.numerator)
    # TVM cannot lower the operator over all axes.
    if rank is None or shape is None or mean.axes != tuple(range(max(1, rank - len(mean.axes)), rank)):
        return None
    sizes = [shape[axis] for axis in mean.axes]
    # The operator computes in float32 and casts back, which float64 cannot afford.
    known = all(isinstance(size, int) for size in sizes) and dtype_of(data) in ("float16", "float32")
    if not known or not same_type(call, data) or not read_exactly(graph, [(each, 1) for each in found.inner]):
        return None
    ones = np.ones(sizes, dtype_of(data))
    weight = ones if found.scale is None else over_axes(graph, found.scale, data, mean.axes)
    return None if weight is None else op.nn.rms_norm(data, as_constant(weight), list(mean.axes), found.epsilon)


@_rms_norm_rules.on("relax.multiply")
def absorb_scale(graph: Graph, call: Call) -> Expr | None:
    """rms_norm(x, 1) * g => rms_norm(x, g)"""
    for norm, axes, scale in scaled_norms(graph, call, "relax.nn.rms_norm"):
        weight = constant_array(graph, norm.args[1])
        if weight is not None and bool((weight == 1).all()):
            return op.nn.rms_norm(norm.args[0], as_constant(scale), list(axes), float(norm.attrs.epsilon))
    return None
