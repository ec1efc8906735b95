"""com.microsoft: biases of attention scores by relative positions (T5, WavLM), and Gemma's rotary positions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compiler.frontends.onnx.bounds import require_shape
from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN
from compiler.frontends.onnx.values import TensorValue


@composed("RelativePositionBias", domain=DOMAIN)
def relative_position_bias(
    op: Composer,
    table: TensorValue,
    queries: TensorValue,
    keys: TensorValue,
    *,
    max_distance: int,
    is_bidirectional: int = 0,
) -> TensorValue:
    """T5's bias of the scores, (1, heads, queries, keys): each distance is in a bucket, of which the table has a row.

    The table, declared as (buckets, heads), is stored by columns.
    """
    buckets, heads = table.shape
    if not isinstance(buckets, int) or not isinstance(heads, int):
        op.context.refuse("the shape of its table is not known when compiling")
    if not 0 < (buckets // 4 if is_bidirectional else buckets // 2) < max_distance:
        op.context.invalid(f"{buckets} buckets for distances up to {max_distance}")
    by_distance = _buckets(buckets, max_distance, both=bool(is_bidirectional))
    rows = op("Gather", op("Reshape", table, int64s(heads, buckets)), by_distance, axis=1)
    lengths = [op("Squeeze", op("Cast", each, to=7)) for each in (queries, keys)]
    query, key = (op("Range", np.int64(0), length, np.int64(1)) for length in lengths)
    distance = op("Sub", key, op("Unsqueeze", query, int64s(1)))
    distance = op("Clip", distance, np.int64(-max_distance), np.int64(max_distance))
    bias = op("Gather", rows, op("Add", distance, np.int64(max_distance)), axis=1)
    return op("Unsqueeze", bias, int64s(0))


def _buckets(count: int, most: int, *, both: bool) -> NDArray[np.int64]:
    """Return the bucket of each distance of a key from its query, from -most to most; none is beyond them.

    Half of the buckets are for one distance each, the others for logarithmically larger ones.
    """
    behind = -np.arange(-most, most + 1)
    first = np.where(behind < 0, count // 2, 0) if both else np.zeros_like(behind)
    count = count // 2 if both else count
    behind = np.abs(behind) if both else np.maximum(behind, 0)
    exact = count // 2
    ratio = np.log(np.maximum(behind, 1).astype(np.float32) / exact) / math.log(most / exact)
    large = np.minimum(exact + (ratio * (count - exact)).astype(np.int64), count - 1)
    return first + np.where(behind < exact, behind, large)


@composed("GatedRelativePositionBias", domain=DOMAIN)
def gated_relative_position_bias(
    op: Composer,
    query: TensorValue,
    query_bias: TensorValue,
    positions: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    scale: TensorValue,
    offsets: TensorValue | None = None,
    *,
    num_heads: int,
) -> TensorValue:
    """WavLM's bias of the scores: positions (1, heads, length, length), gated for each head and query."""
    if offsets is not None or len(query.shape) != 3:
        op.context.refuse("tokens without padding (token_offset) are not supported")
    size, columns = weight.shape
    if not isinstance(columns, int) or columns % 2:
        op.context.refuse(f"a weight of {columns} columns is not supported")
    require_shape(op.context, [num_heads * size], query.shape[2:], "the query")
    heads = op("Reshape", op("Add", query, query_bias), int64s(0, 0, num_heads, -1))
    gates = op("Add", op("MatMul", op("Transpose", heads, perm=[0, 2, 1, 3]), weight), bias)
    halves = op("Reshape", gates, int64s(0, 0, 0, 2, columns // 2))
    sums = op("Sigmoid", op("ReduceSum", halves, int64s(4), keepdims=0))
    update, reset = op.outputs(2, "Split", sums, axis=3, num_outputs=2)
    gate = op("Add", op("Mul", update, op("Sub", op("Mul", reset, scale), 1.0)), 2.0)
    return op("Mul", gate, positions)


@composed("GemmaRotaryEmbedding", domain=DOMAIN)
def gemma_rotary_embedding(
    op: Composer,
    angles: TensorValue,
    query: TensorValue,
    turned_query: TensorValue,
    key: TensorValue,
    turned_key: TensorValue,
) -> list[TensorValue]:
    """Queries and keys (batch, heads, length, size) turned by angles (batch, length, size).

    `turned_query` and `turned_key` are the same, turned by a right angle.
    """
    number = op.number(query.dtype)
    sine, cosine = (op("Unsqueeze", op("Cast", op(name, angles), to=number), int64s(1)) for name in ("Sin", "Cos"))
    return [
        op("Add", op("Mul", plain, cosine), op("Mul", turned, sine))
        for plain, turned in ((query, turned_query), (key, turned_key))
    ]
