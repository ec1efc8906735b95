"""Normalizations that ONNX Runtime's optimizer fuses, some of which it writes in the default domain."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, attributes_of, given
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue

_EPSILON = 1e-12  # default of the fused operators


@converter("LayerNormalization", since=1)
def layer_normalization(context: NodeContext) -> list[TensorValue]:
    """ONNX Runtime writes it for opsets in which ONNX does not have it yet."""
    op, count = Composer(context), len(context.node.output)
    inputs = [context.value(0), context.value(1), given(context, 2)]
    return op.outputs(count, "LayerNormalization", *inputs, **attributes_of(context, "axis", "epsilon", "stash_type"))


@converter("SimplifiedLayerNormalization")
def simplified_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """x / sqrt(mean(x^2) + epsilon) * scale, and the reciprocal of the root."""
    op = Composer(context)
    return _root_mean_square(
        context,
        op,
        context.tensor(0),
        context.tensor(1),
        context.attribute("axis", -1),
        context.attribute("epsilon", 1e-5),
    )


converter("SimplifiedLayerNormalization", domain=DOMAIN)(simplified_layer_normalization)


def _root_mean_square(
    context: NodeContext, op: Composer, x: TensorValue, scale: TensorValue, axis: int, epsilon: float
) -> list[TensorValue]:
    """[normalized, reciprocal of the root of the mean square], computed in float32."""
    rank, dtype = len(x.shape), x.dtype
    axes = range(context.axis(axis, rank), rank)
    wide = x if dtype in ("float32", "float64") else op("Cast", x, to=1)
    mean = op("ReduceMean", op("Mul", wide, wide), int64s(*axes), keepdims=1)
    inverse = op("Reciprocal", op("Sqrt", op("Add", mean, float(epsilon))))
    normalized = op("Mul", wide, inverse)
    if normalized.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(dtype))
    if scale.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(scale.dtype))
    return [op("Mul", normalized, scale), inverse]


def _skip_sum(context: NodeContext, op: Composer, bias: int) -> TensorValue:
    """input + skip (which may lack the batch) + bias."""
    total = op("Add", context.value(0), context.value(1))
    return op("Add", total, context.value(bias)) if context.has_input(bias) else total


@converter("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """LayerNormalization of a sum: input, skip, gamma, beta, bias. Outputs: result, mean, inverse deviation, sum."""
    op = Composer(context)
    total = _skip_sum(context, op, 4)
    epsilon = context.attribute("epsilon", _EPSILON)
    inputs = [total, context.value(2), given(context, 3)]
    outputs = op.outputs(3, "LayerNormalization", *inputs, axis=-1, epsilon=epsilon)
    return [*outputs, total]


@converter("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified_layer_normalization(context: NodeContext) -> list[TensorValue | None]:
    """SimplifiedLayerNormalization of a sum: input, skip, gamma, bias. Outputs as SkipLayerNormalization's."""
    op = Composer(context)
    total = _skip_sum(context, op, 3)
    result, inverse = _root_mean_square(
        context, op, total, context.tensor(2), -1, context.attribute("epsilon", _EPSILON)
    )
    return [result, None if not context.output_used(1) else inverse, inverse, total]


@converter("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """Word, position and segment embeddings summed and normalized; the number of unmasked tokens; the sum.

    Inputs: ids, segments, word, position and segment tables, gamma, beta, mask, positions.
    """
    op = Composer(context)
    ids = context.tensor(0)
    for index, table in ((0, 2), (1, 4), (8, 3)):
        if context.has_input(index):
            require_values(context, index, 0, context.shape(table)[0])
    words = op("Gather", context.value(2), ids, axis=0)
    if context.has_input(8):
        positions = op("Gather", context.value(3), context.value(8), axis=0)
    else:
        require(context, context.shape(3)[0], "at least", context.shape(0)[1])
        length = op("Slice", op("Shape", ids), int64s(1), int64s(2))
        positions = op("Slice", context.value(3), int64s(0), length, int64s(0))
    total = op("Add", words, positions)
    if context.has_input(1):
        total = op("Add", total, op("Gather", context.value(4), context.value(1), axis=0))
    epsilon = context.attribute("epsilon", _EPSILON)
    result = op("LayerNormalization", total, context.value(5), context.value(6), axis=-1, epsilon=epsilon)
    return [result, _tokens(context, op, ids), total]


def _tokens(context: NodeContext, op: Composer, ids: TensorValue) -> TensorValue:
    if context.has_input(7):
        return op("ReduceSum", op("Cast", context.value(7), to=6), int64s(1), keepdims=0)
    batch = op("Slice", op("Shape", ids), int64s(0), int64s(1))
    return op("Expand", np.zeros(1, np.int32), batch)
