"""com.microsoft: attention with a cache of keys and values that is one buffer, in which new rows are written.

Also DecoderMaskedMultiHeadAttention, the operator of a single new token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.frontends.onnx.bounds import require, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, given
from compiler.frontends.onnx.operators.microsoft.heads import Heads
from compiler.frontends.onnx.registry import OWN_DOMAIN, converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import TensorValue
from compiler.passes.rewriting.state_writes import write_rows

_MASKED_SCORES = 2  # a mode of Attention's output of scores
_ROWS = 2  # the axis of the positions in a cache (batch, heads, positions, size)


@dataclass(frozen=True)
class CacheInputs:
    """Positions of a node's inputs.

    Attributes:
        mask, bias: padding, and what is added to the scores.
        past: keys of the past, or the buffer of keys; values are next.
        length: the number of entries of the past that a buffer holds.
        indirection: the beams of entries.
    """

    mask: int
    bias: int
    past: int
    length: int
    indirection: int


def attend_with_cache(
    heads: Heads, parts: Sequence[TensorValue], inputs: CacheInputs, *, shares: bool
) -> list[TensorValue | None]:
    """Return [result, keys, values, scores]; `parts` are query, key and value as (batch, heads, length, size).

    Args:
        shares: a past is a buffer that new entries are written into; otherwise they are appended to it.
    """
    context, op, before = heads.context, heads.op, None
    query, key, value = parts
    shares = shares and context.has_input(inputs.past)
    if context.has_input(inputs.past) and not shares:
        before, before_value = context.tensor(inputs.past), context.tensor(inputs.past + 1)
        key, value = op("Concat", before, key, axis=_ROWS), op("Concat", before_value, value, axis=_ROWS)
    added = heads.padding(inputs.mask, query, key)
    if context.has_input(inputs.bias):
        added.append(context.tensor(inputs.bias))
    if shares:
        return _attend_in_buffer(heads, parts, inputs, added)
    result, scores = heads.attend(query, key, value, [*added, *heads.causal(query, key, before)])
    return [result, key, value, scores]


def _attend_in_buffer(
    heads: Heads, parts: Sequence[TensorValue], inputs: CacheInputs, added: Sequence[TensorValue]
) -> list[TensorValue | None]:
    """The first entries of the buffers are filled, and the new ones are written after them."""
    context, op = heads.context, heads.op
    query, key, value = parts
    past = op("Cast", op("Reshape", context.value(inputs.length), int64s(1)), to=7)
    starts = op("Expand", past, heads.size(query, 0))
    most = context.arithmetic.subtract(context.shape(inputs.past)[_ROWS], key.shape[_ROWS])
    require(context, most, "at least", 0)
    require_values(context, inputs.length, 0, context.arithmetic.add(most, 1))
    buffers = [_written(heads, inputs.past + index, rows, starts) for index, rows in enumerate((key, value))]
    seen = buffers
    if context.has_input(inputs.indirection):
        entries = _entries_of_beams(heads, buffers[0], past, inputs.indirection)
        seen = [_gathered(op, buffer, entries) for buffer in buffers]
    filled = op("Add", past, heads.size(key, _ROWS))
    mask = None
    for term in added:
        mask = term if mask is None else op("Add", mask, term)
    result, *others = op.outputs(
        4 if context.output_used(3) else 1,  # one kernel computes the result alone
        "Attention",
        *(query, *seen, mask, None, None, op("Add", starts, heads.size(key, _ROWS))),
        domain=OWN_DOMAIN,
        scale=heads.scale(query),
        is_causal=int(context.attribute("unidirectional", 0)),
        qk_matmul_output_mode=_MASKED_SCORES,
    )
    scores = op("Slice", others[-1], int64s(0), filled, int64s(3)) if others else None
    return [heads.merge(result), *buffers, scores]


def _entries_of_beams(heads: Heads, buffer: TensorValue, past: TensorValue, index: int) -> TensorValue:
    """Return (sample, position) of each entry that a sample sees, (batch, positions, 2), by input `index`.

    It holds the beam of each entry of the past, (requests, beams, positions); new entries are a sample's own.
    """
    context, op = heads.context, heads.op
    requests, beams, positions = context.shape(index)
    batch, capacity = buffer.shape[0], buffer.shape[_ROWS]
    require(context, positions, "equal", capacity)
    require(context, context.arithmetic.multiply(requests, beams), "equal", batch)
    require_values(context, index, 0, beams)
    width = heads.size(context.tensor(index), 1)
    samples = op("Unsqueeze", heads.positions(heads.size(buffer, 0)), int64s(1))
    first = op("Mul", op("Div", samples, width), width)
    shape = op("Concat", heads.size(buffer, 0), int64s(-1), axis=0)
    beam = op("Reshape", op("Cast", context.value(index), to=7), shape)
    places = heads.positions(heads.size(buffer, _ROWS))
    rows = op("Where", op("Less", places, past), op("Add", first, beam), samples)
    columns = op("Expand", places, op("Shape", rows))
    return op("Concat", op("Unsqueeze", rows, int64s(2)), op("Unsqueeze", columns, int64s(2)), axis=2)


def _gathered(op: Composer, buffer: TensorValue, entries: TensorValue) -> TensorValue:
    """Return the entries of a buffer (batch, heads, positions, size), in the same layout."""
    by_position = op("Transpose", buffer, perm=[0, 2, 1, 3])
    return op("Transpose", op("GatherND", by_position, entries), perm=[0, 2, 1, 3])


def _written(heads: Heads, index: int, rows: TensorValue, starts: TensorValue) -> TensorValue:
    """Return the buffer in input `index` with the new rows from the position of each sample."""
    context, materialize = heads.context, heads.context.importer.builder.materialize
    batch, count, _, size = rows.shape
    capacity = context.shape(index)[_ROWS]
    require_shape(context, context.shape(index), [batch, count, capacity, size], f"its input {index}")
    buffer = context.match_shape(context.input(index), [batch, count, expression(capacity), size])
    written = write_rows(context.block_builder, buffer, materialize(rows), materialize(starts), _ROWS)
    return context.runtime(written, rows.dtype)


_INPUTS = CacheInputs(mask=3, bias=4, past=5, length=7, indirection=9)
_BIAS = 10  # of the projections


@converter("DecoderMaskedMultiHeadAttention", domain=DOMAIN)
def decoder_masked_attention(context: NodeContext) -> list[TensorValue | None]:
    """Attention of one new token: to a cache that it is appended to, or (without a cache) to given keys and values.

    Inputs: query, key, value (or all three packed), mask, bias of the scores, past key and value, length of the past,
    beam width, cache indirection, bias of the projections.
    """
    heads = Heads(context)
    shares = bool(context.attribute("past_present_share_buffer", 0))
    return attend_with_cache(heads, _parts(heads), _INPUTS, shares=shares)


def _parts(heads: Heads) -> list[TensorValue]:
    """Return query, key and value as (batch, heads, length, size)."""
    context, op = heads.context, heads.op
    if context.has_input(1):
        return heads.with_bias([context.tensor(index) for index in range(3)], given(context, _BIAS))
    if not context.has_input(_INPUTS.past):
        context.invalid("a query that holds key and value too needs past_key and past_value")
    key, value = (context.shape(index)[3] for index in (_INPUTS.past, _INPUTS.past + 1))
    if not isinstance(key, int) or not isinstance(value, int):
        context.refuse("the size of the heads is not known when compiling")
    sizes = int64s(*(heads.count * size for size in (key, key, value)))
    return heads.with_bias(op.outputs(3, "Split", context.value(0), sizes, axis=2), given(context, _BIAS))
