"""com.microsoft: Attention, MultiHeadAttention, RotaryEmbedding, and attention on quantized weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.frontends.onnx.bounds import require, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, given, refuse_unusual
from compiler.frontends.onnx.operators.microsoft.heads import Heads
from compiler.frontends.onnx.operators.microsoft.shared_cache import CacheInputs, attend_with_cache
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue


def _attention_of(
    heads: Heads, projected: TensorValue, sizes: Sequence[int | None], mask: int, past: int, bias: int | None
) -> list[TensorValue | None]:
    """[result, present] of (batch, length, q + k + v)."""
    context, op = heads.context, heads.op
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        parts = op.outputs(3, "Split", projected, int64s(*known), axis=2)
    else:
        parts = op.outputs(3, "Split", projected, axis=2, num_outputs=3)
    query, key, value = (heads.split(part) for part in parts)
    before = None
    if context.has_input(past):
        before, before_value = (op("Gather", context.value(past), np.int64(i), axis=0) for i in (0, 1))
        key, value = op("Concat", before, key, axis=2), op("Concat", before_value, value, axis=2)
    present = None
    if context.output_used(1):
        present = op("Concat", *(op("Unsqueeze", item, int64s(0)) for item in (key, value)), axis=0)
    added = [*heads.padding(mask, query, key), *heads.causal(query, key, before)]
    if bias is not None and context.has_input(bias):
        added.append(context.tensor(bias))
    return [heads.attend(query, key, value, added)[0], present]


@converter("Attention", domain=DOMAIN)
def attention(context: NodeContext) -> list[TensorValue | None]:
    """Projection and attention: input, weights, bias, mask, past (2, batch, heads, length, size), attention bias."""
    refuse_unusual(context, do_rotary=0, past_present_share_buffer=0)
    heads = Heads(context)
    projected = heads.op("MatMul", context.value(0), context.value(1))
    if context.has_input(2):
        projected = heads.op("Add", projected, context.value(2))
    return _attention_of(heads, projected, _hidden_sizes(context, 1), mask=3, past=4, bias=5)


def _hidden_sizes(context: NodeContext, weights: int) -> list[int | None]:
    given_sizes: list[int] = context.attribute("qkv_hidden_sizes", [])
    if given_sizes:
        return [int(size) for size in given_sizes]
    total = context.shape(weights)[-1]
    return [total // 3] * 3 if isinstance(total, int) else [None]


@converter("QAttention", domain=DOMAIN)
def quantized_attention(context: NodeContext) -> list[TensorValue | None]:
    """Attention with a quantized projection.

    Inputs: input, weights, bias, input scale, weight scale, mask, input zero, weight zero, past.
    """
    refuse_unusual(context, do_rotary=0, past_present_share_buffer=0)
    heads = Heads(context)
    op = heads.op
    sums = op("MatMulInteger", context.value(0), context.value(1), given(context, 6), given(context, 7))
    scales = op("Mul", context.value(3), context.value(4))
    projected = op("Add", op("Mul", op("Cast", sums, to=1), scales), context.value(2))
    return _attention_of(heads, projected, _hidden_sizes(context, 1), mask=5, past=8, bias=None)


_INPUTS = CacheInputs(mask=4, bias=5, past=6, length=8, indirection=9)


@converter("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(context: NodeContext) -> list[TensorValue | None]:
    """Attention; inputs: query, key, value (optionally packed), bias, padding mask, attention bias, past key and value.

    With the length of the past, too, key and value are written into the buffers of the past. The scores are an output.
    """
    heads = Heads(context)
    parts = _query_key_value(context, heads)
    return attend_with_cache(heads, parts, _INPUTS, shares=context.has_input(_INPUTS.length))


def _query_key_value(context: NodeContext, heads: Heads) -> list[TensorValue]:
    """Return each as (batch, heads, length, size), with its bias."""
    op = heads.op
    if context.rank(0) == 5:
        packed = op.outputs(3, "Split", context.value(0), axis=3, num_outputs=3)
        parts = [op("Reshape", part, int64s(0, 0, -1)) for part in packed]
    elif context.has_input(1) and context.rank(1) == 5:
        packed = op.outputs(2, "Split", context.value(1), axis=3, num_outputs=2)
        parts = [context.tensor(0), *(op("Reshape", part, int64s(0, 0, -1)) for part in packed)]
    elif not context.has_input(1) or not context.has_input(2):
        context.refuse("a query without key and value must hold all three, with rank 5")
    else:
        parts = [context.tensor(0), context.tensor(1), context.tensor(2)]
    return heads.with_bias(parts, given(context, 3))


def _check_positions(context: NodeContext) -> None:
    """Check that positions, or the first of them, are within the tables."""
    rows = context.shape(2)[0]
    batch, length = context.shape(0)[0], context.shape(0)[1 if context.rank(0) == 3 else 2]
    if context.rank(1) == 1:
        require(context, rows, "at least", length)
        rows = context.arithmetic.add(context.arithmetic.subtract(rows, length), 1)
    else:
        require_shape(context, context.shape(1), [batch, length], "the positions")
    require_values(context, 1, 0, rows)


@converter("RotaryEmbedding", domain=DOMAIN)
def rotary_embedding(context: NodeContext) -> TensorValue:
    """Rotary positions; inputs: input, positions (one offset, or (batch, length)), cosines, sines."""
    op = Composer(context)
    if context.attribute("is_packed_batching", 0):
        context.refuse("is_packed_batching is not supported")
    data, positions, rank = context.value(0), context.value(1), context.rank(0)
    _check_positions(context)
    heads, rotated = context.attribute("num_heads", 0), context.attribute("rotary_embedding_dim", 0)
    if rank == 3 and not heads:
        # The whole last axis consists of heads of the size implied by the tables.
        size, table = context.shape(0)[2], context.shape(2)[1]
        if not isinstance(size, int) or not isinstance(table, int):
            context.refuse("the number of heads is not known when compiling")
        heads = size // (2 * table)
    if context.rank(1) == 1:
        shape = op("Shape", data)
        axis = 1 if rank == 3 else 2
        length = op("Squeeze", op("Slice", shape, int64s(axis), int64s(axis + 1)))
        batch = op("Slice", shape, int64s(0), int64s(1))
        row = op("Unsqueeze", op("Add", op("Range", np.int64(0), length, np.int64(1)), positions), int64s(0))
        positions = op("Expand", row, op("Concat", batch, int64s(1), axis=0))
    attributes: dict[str, Any] = {"num_heads": heads} if rank == 3 else {}
    return op(
        "RotaryEmbedding",
        data,
        context.value(2),
        context.value(3),
        positions,
        interleaved=context.attribute("interleaved", 0),
        rotary_embedding_dim=rotated,
        **attributes,
    )


@converter("MRotaryEmbedding", domain=DOMAIN)
def multimodal_rotary_embedding(context: NodeContext) -> TensorValue:
    """Rotary positions in time, height and width, like Qwen-VL's; inputs: input, positions (3, batch, length), cosines,
    sines.

    Each column of the tables is looked up with one of the positions: in sections of `mrope_section` columns, or
    interleaved (`mrope_layout` 1), with the time position for columns after a section's end.
    """
    op = Composer(context)
    if context.attribute("is_packed_batching", 0) or context.attribute("scale", 1.0) != 1.0:
        context.refuse("is_packed_batching and scale are not supported")
    sections = [int(size) for size in context.required_attribute("mrope_section")]
    rows, columns = context.shape(2)
    if not isinstance(columns, int) or not isinstance(context.shape(0)[-1], int):
        context.refuse("the size of the heads is not known when compiling")
    if len(sections) != 3 or sum(sections) != columns:
        context.invalid(f"mrope_section {sections} does not divide {columns} columns among three positions")
    stream = np.repeat(np.arange(3), sections)
    if context.attribute("mrope_layout", 0):
        stream = np.zeros(columns, np.int64)
        for index in (1, 2):
            stream[index : 3 * sections[index] : 3] = index
    require_values(context, 1, 0, rows)
    tables = []
    for index in (2, 3):
        looked_up = op("Gather", context.value(index), context.value(1))
        time, height, width = op.outputs(3, "Split", looked_up, axis=0, num_outputs=3)
        chosen = op("Where", stream == 0, time, op("Where", stream == 1, height, width))
        tables.append(op("Squeeze", chosen, int64s(0)))
    attributes: dict[str, Any] = {}
    if context.rank(0) == 3:
        attributes = {"num_heads": context.attribute("num_heads", 0) or context.shape(0)[2] // (2 * columns)}
    return op(
        "RotaryEmbedding",
        context.value(0),
        *tables,
        interleaved=context.attribute("interleaved", 0),
        rotary_embedding_dim=context.attribute("rotary_embedding_dim", 0),
        **attributes,
    )
