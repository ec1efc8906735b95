"""center-weights: weights that are bytes plus an offset are stored as int8; the offset is subtracted from the sum.

    matmul(x, w) => matmul(x, w - c) + c * sum of each row of x
    conv(x, w)   => conv(x, w - c) + c * conv(x, 1)

Weights that were uint8 differ from their zero point by -255 to 255: no processor multiplies such numbers with bytes.
`c` is the middle of each filter's numbers; all sums are in int32 and wrap alike, so the results are the same.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of

rules = RuleTable()


@graph_pass("center-weights", summary="Store wider weights as int8 and an offset")
def center_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module's documentation."""
    return rules.apply(mod)


def _centered(graph: Graph, call: Call, axes: tuple[int, ...]) -> tuple[Array, Array] | None:
    """(int8 weights, the int32 offset taken from each), where numbers that share an offset lie along `axes`."""
    values = constant_array(graph, call.args[1])
    if values is None or values.dtype not in (np.int16, np.uint8) or values.size == 0:
        return None
    if dtype_of(call) != "int32" or dtype_of(call.args[0]) not in ("int8", "uint8"):
        return None
    wide = values.astype(np.int32)
    low, high = (bound(wide, axis=axes, keepdims=True) for bound in (np.min, np.max))
    if np.any(high - low > 255):
        return None
    # None, or one for all where that suffices; else one per filter.
    middle = low + 128
    if low.min() >= -128 and high.max() <= 127:
        middle = np.zeros_like(middle)
    elif high.max() - low.min() <= 255:
        middle = np.full_like(middle, low.min() + 128)
    return (wide - middle).astype(np.int8), middle


@rules.on("relax.matmul")
def matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(x, w) => matmul(x, w - c) + c * rowsum(x)"""
    if rank_of(call.args[1]) != 2 or (rank_of(call.args[0]) or 0) < 2:
        return None
    centered = _centered(graph, call, (0,))
    if centered is None:
        return None
    weight, offset = centered
    product = graph.emit(relax.op.matmul(call.args[0], as_constant(weight), out_dtype="int32"))
    if not np.any(offset):
        return product
    wide = graph.emit(relax.op.astype(call.args[0], "int32"))
    rows = graph.emit(relax.op.sum(wide, axis=[-1], keepdims=True))
    return relax.op.add(product, graph.emit(relax.op.multiply(rows, as_constant(offset.reshape(-1)))))


@rules.on("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
def convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(x, w) => conv(x, w - c) + c * conv(x, 1)"""
    rank = len(call.attrs.strides)
    if str(call.attrs.kernel_layout)[:2] != "OI" or str(call.attrs.out_layout)[:2] not in ("NC", ""):
        return None
    centered = _centered(graph, call, tuple(range(1, rank + 2)))
    if centered is None:
        return None
    weight, offset = centered
    groups, filters = int(call.attrs.groups), weight.shape[0]
    ones = np.ones((groups, *weight.shape[1:]), np.int8)
    product = graph.emit(relax.Call(call.op, [call.args[0], as_constant(weight)], call.attrs))
    if not np.any(offset):
        return product
    windows = graph.emit(relax.Call(call.op, [call.args[0], as_constant(ones)], call.attrs))
    if 1 < groups < filters:
        windows = graph.emit(relax.op.repeat(windows, filters // groups, axis=1))
    offset = offset.reshape(-1, *[1] * rank)
    return relax.op.add(product, graph.emit(relax.op.multiply(windows, as_constant(offset))))
