"""keep-weights-narrow: multiply by 8-bit weights without converting them, and scale the results.

    matmul(x, scale * float(w))        => scale * matmul(x, w), one scale per column
    take(scale * float(w), index, 0)   => take(scale, index, 0) * float(take(w, index, 0))

Weights are recognized as a cast and a multiplication or as a dequantization, transposed or not. The module stores, and
reads from memory at run time, a quarter of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, operator_name
from compiler.passes.rewriting.matching import Array, as_constant, both_orders, constant_array, dtype_of, rank_of

rules = RuleTable()

WEIGHT_ELEMENTS = 1024  # smaller weights are not worth the scaling


@graph_pass("keep-weights-narrow", summary="Compute with the integers of weights stored in 8 bits")
def keep_weights_narrow(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


@dataclass(frozen=True)
class NarrowWeight:
    """int8 values (rows, columns) and their float32 scale (rows or 1, columns or 1)."""

    values: Array
    scale: Array

    def transposed(self) -> NarrowWeight:
        return NarrowWeight(np.ascontiguousarray(self.values.T), np.ascontiguousarray(self.scale.T))


def narrow_weight(graph: Graph, expr: Expr) -> NarrowWeight | None:
    """Return the weight if `expr` is a float matrix computed from 8-bit integers."""
    if rank_of(expr) != 2 or dtype_of(expr) != "float32":
        return None
    value = graph.definition(expr)
    name = operator_name(value)
    if name == "relax.permute_dims":
        inner = narrow_weight(graph, value.args[0])
        return None if inner is None else inner.transposed()
    if name == "relax.multiply":
        return _scaled(graph, value)
    return _dequantized(graph, value) if name == "relax.dequantize" else _cast(graph, value)


def _cast(graph: Graph, call: Expr) -> NarrowWeight | None:
    values = constant_array(graph, call.args[0]) if operator_name(call) == "relax.astype" else None
    if values is None or values.dtype != np.int8 or values.size < WEIGHT_ELEMENTS:
        return None
    return NarrowWeight(values, np.ones((1, 1), np.float32))


def _scaled(graph: Graph, call: Call) -> NarrowWeight | None:
    for product, factor in both_orders(call):
        scale = constant_array(graph, factor)
        inner = _cast(graph, graph.definition(product))
        if inner is None or scale is None or scale.dtype != np.float32 or scale.ndim > 2:
            continue
        full = scale.reshape((1,) * (2 - scale.ndim) + scale.shape)
        if all(size in (1, own) for size, own in zip(full.shape, inner.values.shape, strict=True)):
            return NarrowWeight(inner.values, full)
    return None


def _dequantized(graph: Graph, call: Call) -> NarrowWeight | None:
    values, scale, zero = (constant_array(graph, each) for each in call.args)
    if values is None or scale is None or zero is None or values.size < WEIGHT_ELEMENTS:
        return None
    shape = [1, 1]
    if scale.size > 1 or zero.size > 1:
        shape[int(call.attrs.axis) % 2] = -1
    centered = values.astype(np.int32) - (zero.astype(np.int32).reshape(shape if zero.size > 1 else (1, 1)))
    if values.dtype not in (np.int8, np.uint8) or centered.min() < -128 or centered.max() > 127:
        return None
    return NarrowWeight(centered.astype(np.int8), scale.astype(np.float32).reshape(shape if scale.size > 1 else (1, 1)))


@rules.on("relax.matmul")
def matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(x, scale * w) => scale * matmul(x, w)"""
    weight = narrow_weight(graph, call.args[1]) if dtype_of(call) == "float32" else None
    if weight is None or (rank_of(call.args[0]) or 0) < 2 or weight.scale.shape[0] != 1:
        return None
    product = graph.emit(relax.op.matmul(call.args[0], as_constant(weight.values), out_dtype="float32"))
    scale = weight.scale.reshape(()) if weight.scale.size == 1 else weight.scale.reshape(-1)
    return relax.op.multiply(product, as_constant(scale))


@rules.on("relax.take")
def take(graph: Graph, call: Call) -> Expr | None:
    """take(scale * w, index, 0) => take(scale, index, 0) * take(w, index, 0)"""
    weight = narrow_weight(graph, call.args[0])
    if weight is None or call.attrs.axis is None or int(call.attrs.axis) != 0:
        return None

    def taken(array: Array) -> Expr:
        return graph.emit(relax.op.take(as_constant(array), call.args[1], 0, call.attrs.mode))

    rows = graph.emit(relax.op.astype(taken(weight.values), "float32"))
    scale = as_constant(weight.scale) if weight.scale.shape[0] == 1 else taken(weight.scale)
    return relax.op.multiply(rows, scale)
