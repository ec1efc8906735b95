"""fold-batch-norm: fold per-channel factors and offsets into adjacent weights and biases.

    conv(x, w) * s       => conv(x, w * s)             also x @ w, w @ x, transposed and grouped convolutions
    (conv(x, w) + b) * s => conv(x, w * s) + b * s
    conv(x * s, w)       => conv(x, w * s)
    conv(x + b, w)       => conv(x, w) + conv(b, w)    only without padding, when conv(b, w) is constant
    batch_norm(x)        => x * s + t                  in inference, with constant statistics

Each factor rounds a weight once. Nothing is folded across a value that has another consumer.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import CONVOLUTIONS, MATMUL, Linear, along_axis, as_linear, per_channel
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    constant_array,
    dtype_of,
    rank_of,
    same_shape,
    shape_of,
)

rules = RuleTable()
op = relax.op


@graph_pass("fold-batch-norm", summary="Move batch norms, factors and offsets of channels into weights and biases")
def fold_batch_norm(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


@rules.on("tuple-get-item")
def split_batch_norm(graph: Graph, item: Expr) -> Expr | None:
    """batch_norm(x, gamma, beta, mean, variance) => x * s + t; its other results are the unchanged statistics"""
    call = graph.call(item.tuple_value, "relax.nn.batch_norm")
    if call is None or bool(call.attrs.training):
        return None
    if int(item.index) > 0:
        return call.args[2 + int(item.index)]
    data, rank = call.args[0], rank_of(call.args[0])
    arrays = [constant_array(graph, argument) for argument in call.args[1:]]
    if (
        rank is None
        or any(array is None for array in arrays)
        or dtype_of(data) not in ("float16", "float32", "float64")
    ):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(all="ignore"):
        factor = 1 / np.sqrt(variance + float(call.attrs.epsilon))
        if bool(call.attrs.scale):
            factor = factor * gamma
        offset = -mean * factor + (beta if bool(call.attrs.center) else 0)
    axis = int(call.attrs.axis) % rank
    scale, shift = (along_axis(each, rank, axis, dtype_of(data)) for each in (factor, offset))
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return op.add(graph.emit(op.multiply(data, as_constant(scale))), as_constant(shift))


def _with_constant(graph: Graph, call: Call) -> list[tuple[Expr, Array]]:
    """Return the (variable, constant) pairs of a binary call; for division and subtraction, only the right operand may
    be constant."""
    left, right = call.args
    pairs = [(left, constant_array(graph, right))]
    if call.op.name in ("relax.add", "relax.multiply"):
        pairs.append((right, constant_array(graph, left)))
    return [(variable, constant) for variable, constant in pairs if constant is not None]


def _factor(graph: Graph, call: Call, rank: int | None, axis: int, channels: int) -> tuple[Expr, Array] | None:
    """Return x and the per-channel factor if `call` is x * s or x / s."""
    for variable, constant in _with_constant(graph, call):
        vector = per_channel(constant, rank, axis, channels)
        if vector is None:
            continue
        if call.op.name == "relax.multiply":
            return variable, vector
        if bool((vector != 0).all()):
            return variable, 1 / vector
    return None


def _offset(graph: Graph, call: Call, rank: int | None, axis: int, channels: int) -> tuple[Expr, Array] | None:
    """Return x and the per-channel offset if `call` is x + b or x - b."""
    for variable, constant in _with_constant(graph, call):
        vector = per_channel(constant, rank, axis, channels)
        if vector is not None:
            return variable, vector if call.op.name == "relax.add" else -vector
    return None


@rules.on("relax.multiply", "relax.divide")
def scale_after(graph: Graph, call: Call) -> Expr | None:
    """linear(x, w) * s => linear(x, w * s)"""
    for variable, _ in _with_constant(graph, call):
        linear = as_linear(graph, variable)
        if linear is None or not graph.only_use(variable):
            continue
        found = _factor(graph, call, rank_of(variable), linear.channel_axis, linear.out_channels)
        weight = linear.scaled_outputs(found[1]) if found is not None else None
        if weight is not None:
            return linear.rebuilt(weight)
    return None


@rules.on("relax.multiply", "relax.divide")
def scale_after_bias(graph: Graph, call: Call) -> Expr | None:
    """(linear(x, w) + b) * s => linear(x, w * s) + b * s"""
    for variable, _ in _with_constant(graph, call):
        biased = graph.call(variable, "relax.add", "relax.subtract")
        if biased is None or not graph.only_use(variable):
            continue
        for inner, _ in _with_constant(graph, biased):
            linear = as_linear(graph, inner)
            if linear is None or not graph.only_use(inner):
                continue
            scaled = _factor(graph, call, rank_of(variable), linear.channel_axis, linear.out_channels)
            bias = _offset(graph, biased, rank_of(inner), linear.channel_axis, linear.out_channels)
            weight = linear.scaled_outputs(scaled[1]) if scaled is not None and bias is not None else None
            if scaled is not None and bias is not None and weight is not None:
                return _add_to_channels(graph, linear, linear.rebuilt(weight), bias[1] * scaled[1])
    return None


def _add_to_channels(graph: Graph, linear: Linear, value: Call, offset: Array) -> Expr:
    rank, dtype = rank_of(linear.call), dtype_of(linear.call)
    assert rank is not None  # linear.channel_axis was computed from it
    return op.add(graph.emit(value), as_constant(along_axis(offset, rank, linear.channel_axis, dtype)))


@rules.on(MATMUL, *CONVOLUTIONS)
def scale_before(graph: Graph, call: Call) -> Expr | None:
    """linear(x * s, w) => linear(x, w * s)"""
    linear = as_linear(graph, call)
    inner = graph.call(linear.data, "relax.multiply", "relax.divide") if linear is not None else None
    if linear is None or inner is None or not graph.only_use(linear.data):
        return None
    scaled = _factor(graph, inner, rank_of(linear.data), linear.input_axis, linear.in_channels)
    if scaled is None or not same_shape(shape_of(scaled[0]), shape_of(linear.data)):
        return None
    weight = linear.scaled_inputs(scaled[1])
    return None if weight is None else linear.rebuilt(weight, scaled[0])


@rules.on(MATMUL, *CONVOLUTIONS)
def shift_before(graph: Graph, call: Call) -> Expr | None:
    """linear(x + b, w) => linear(x, w) + linear(b, w), without padding"""
    linear = as_linear(graph, call)
    inner = graph.call(linear.data, "relax.add", "relax.subtract") if linear is not None else None
    if linear is None or inner is None or not graph.only_use(linear.data):
        return None
    shifted = _offset(graph, inner, rank_of(linear.data), linear.input_axis, linear.in_channels)
    if shifted is None or not same_shape(shape_of(shifted[0]), shape_of(linear.data)):
        return None
    gain = linear.shift(shifted[1])
    return None if gain is None else _add_to_channels(graph, linear, linear.rebuilt(linear.weight, shifted[0]), gain)
