"""com.microsoft: attention with a cache of keys and values that is one buffer, in which new rows are written.

Also DecoderMaskedMultiHeadAttention, the operator of a single new token.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.frontends.onnx.bounds import require, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, given
from compiler.frontends.onnx.operators.microsoft.heads import Heads
from compiler.frontends.onnx.registry import OWN_DOMAIN, converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import TensorValue
from compiler.passes.rewriting.state_writes import write_rows

_ROWS = 2  # the axis of the positions in a cache (batch, heads, positions, size)


def attend_in_shared_cache(
    heads: Heads, parts: Sequence[TensorValue], past: int, length: int, added: Sequence[TensorValue]
) -> list[TensorValue]:
    """Return [result, keys, values]; `parts` are query, key and value as (batch, heads, length, size).

    Inputs `past` and `past` + 1 are the buffers, of which the first entries are filled: input `length` tells how many.
    """
    context, op = heads.context, heads.op
    query, key, value = parts
    starts = op("Expand", op("Cast", op("Reshape", context.value(length), int64s(1)), to=7), heads.size(query, 0))
    most = context.arithmetic.subtract(context.shape(past)[_ROWS], key.shape[_ROWS])
    require(context, most, "at least", 0)
    require_values(context, length, 0, context.arithmetic.add(most, 1))
    keys, values = (_written(heads, past + index, rows, starts) for index, rows in enumerate((key, value)))
    filled = op("Add", starts, heads.size(key, _ROWS))
    mask = None
    for term in added:
        mask = term if mask is None else op("Add", mask, term)
    result = op(
        "Attention",
        *(query, keys, values, mask, None, None, filled),
        domain=OWN_DOMAIN,
        scale=heads.scale(query),
        is_causal=int(context.attribute("unidirectional", 0)),
    )
    return [heads.merge(result), keys, values]


def _written(heads: Heads, index: int, rows: TensorValue, starts: TensorValue) -> TensorValue:
    """Return the buffer in input `index` with the new rows from the position of each sample."""
    context, materialize = heads.context, heads.context.importer.builder.materialize
    batch, count, _, size = rows.shape
    capacity = context.shape(index)[_ROWS]
    require_shape(context, context.shape(index), [batch, count, capacity, size], f"its input {index}")
    buffer = context.match_shape(context.input(index), [batch, count, expression(capacity), size])
    written = write_rows(context.block_builder, buffer, materialize(rows), materialize(starts), _ROWS)
    return context.runtime(written, rows.dtype)


_MASK, _BIAS_OF_SCORES, _PAST, _LENGTH, _INDIRECTION, _BIAS = 3, 4, 5, 7, 9, 10


@converter("DecoderMaskedMultiHeadAttention", domain=DOMAIN)
def decoder_masked_attention(context: NodeContext) -> list[TensorValue | None]:
    """Attention of one new token: to a cache that it is appended to, or (without a cache) to given keys and values.

    Inputs: query, key, value (or all three packed), mask, bias of the scores, past key and value, length of the past,
    beam width, cache indirection, bias of the projections.
    """
    if context.has_input(_INDIRECTION):
        context.refuse("a cache_indirection, of beam search inside the model, is not supported")
    if context.output_used(3):
        context.refuse("its output 3 is not computed")
    heads = Heads(context)
    op, parts = heads.op, _parts(heads)
    shares = bool(context.attribute("past_present_share_buffer", 0))
    if context.has_input(_PAST) and not shares:
        past = [context.tensor(_PAST), context.tensor(_PAST + 1)]
        parts[1:] = [op("Concat", old, new, axis=_ROWS) for old, new in zip(past, parts[1:], strict=True)]
    added = heads.padding(_MASK, parts[0], parts[1])
    if context.has_input(_BIAS_OF_SCORES):
        added.append(context.tensor(_BIAS_OF_SCORES))
    if context.has_input(_PAST) and shares:
        return [*attend_in_shared_cache(heads, parts, _PAST, _LENGTH, added)]
    query, key, value = parts
    return [heads.attend(query, key, value, added), key, value]


def _parts(heads: Heads) -> list[TensorValue]:
    """Return query, key and value as (batch, heads, length, size)."""
    context, op = heads.context, heads.op
    if context.has_input(1):
        return heads.with_bias([context.tensor(index) for index in range(3)], given(context, _BIAS))
    if not context.has_input(_PAST):
        context.invalid("a query that holds key and value too needs past_key and past_value")
    key, value = (context.shape(index)[3] for index in (_PAST, _PAST + 1))
    if not isinstance(key, int) or not isinstance(value, int):
        context.refuse("the size of the heads is not known when compiling")
    sizes = int64s(*(heads.count * size for size in (key, key, value)))
    return heads.with_bias(op.outputs(3, "Split", context.value(0), sizes, axis=2), given(context, _BIAS))
