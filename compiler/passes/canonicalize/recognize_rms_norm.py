"""recognize-rms-norm: normalization by the root mean square.

x / sqrt(mean(x**2) + e) => rms_norm(x, 1)
rms_norm(x, 1) * g       => rms_norm(x, g)     g constant over the normalized axes
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import as_constant, constant_array, dtype_of, rank_of, shape_of
from compiler.passes.rewriting.norm_patterns import (
    as_mean,
    as_normalized,
    as_square,
    over_axes,
    read_exactly,
    same_type,
    scaled_norms,
)

rules = RuleTable()
op = relax.op


@graph_pass("recognize-rms-norm", summary="Replace a decomposed RMS normalization by one operator")
def recognize_rms_norm(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module's documentation. Only over the last axes, which is what the operator does."""
    return rules.apply(mod)


@rules.on("relax.divide", "relax.multiply")
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


@rules.on("relax.multiply")
def absorb_scale(graph: Graph, call: Call) -> Expr | None:
    """rms_norm(x, 1) * g => rms_norm(x, g)"""
    for norm, axes, scale in scaled_norms(graph, call, "relax.nn.rms_norm"):
        weight = constant_array(graph, norm.args[1])
        if weight is not None and bool((weight == 1).all()):
            return op.nn.rms_norm(norm.args[0], as_constant(scale), list(axes), float(norm.attrs.epsilon))
    return None
