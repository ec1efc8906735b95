"""Calls to attention over a cache from a model: one kernel, correct on every target; rules rewrite it for a processor.

The plain form of attention over a cache: the reference semantics, and the code that runs where no rule rewrites it.

Each head of each query is a task that reads its rows once: when a larger score comes, the sums so far are scaled down
(online softmax).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from schedules.annotations import OPAQUE
from schedules.attention.cache.description import (
    ATTRIBUTE,
    BIAS,
    KEY,
    KEY_SCALE,
    LENGTH,
    LOWEST,
    POSITION,
    QUERY,
    SEQUENCES,
    SINKS,
    VALUE,
    VALUE_SCALE,
    CachedAttention,
    CacheOperands,
)
from schedules.attention.compute import guarded_quotient
from schedules.codegen.nest import allocate, load, name_value, parallel, repeat, sequence, store
from schedules.ir.expression import expression
from schedules.ir.tir import BlockBuilder, Expr, Index, Stmt, te, tirx

_LARGEST, _TOTAL, _SCORE, _WEIGHT, _CORRECTION = range(5)


def plain_attention(operands: CacheOperands) -> Stmt:
    """The body of the kernel."""
    heads, queries = expression(operands.heads), expression(operands.queries)
    if SEQUENCES in operands:

        def sequence_task(number: Expr) -> Stmt:
            head, sample = tirx.floormod(number, heads), tirx.floordiv(number, heads)
            return repeat("query", operands.queries_of(sample), lambda query: _query(operands, sample, query, head))

        return parallel("task", expression(operands.batch) * heads, sequence_task)
    tasks = expression(operands.batch) * heads * queries

    def task(number: Expr) -> Stmt:
        head = tirx.floormod(number, heads)
        query = tirx.floormod(tirx.floordiv(number, heads), queries)
        return _query(operands, tirx.floordiv(number, heads * queries), query, head)

    return parallel("task", tasks, task)


def _query(operands: CacheOperands, sample: Expr, query: Expr, head: Expr) -> Stmt:
    sums, sums_made = allocate("sums", [operands.value_size], "float32", "local")
    state, state_made = allocate("state", [5], "float32", "local")
    bound: list[Stmt] = []

    bind = partial(name_value, bindings=bound)
    position, rows = bind("position", operands.first_position(sample)), bind("rows", operands.rows_of(sample))
    first, end = operands.range_of(position, rows, query)
    first, end = bind("first", first), bind("end", end)
    key_head = bind("key_head", tirx.floordiv(head, expression(operands.group)))
    slot = bind("slot", operands.slot_of(sample))
    zero = tirx.FloatImm("float32", 0.0)
    has_sink = SINKS in operands

    def kept(name: int) -> Expr:
        return load(state, name)

    def row(step: Expr) -> Stmt:
        at = first + step

        def product(d: Expr) -> Stmt:
            term = operands.query(sample, query, head, d) * operands.row(KEY, slot, key_head, at, d)
            return store(state, kept(_SCORE) + term, _SCORE)

        def weighed(d: Expr) -> Stmt:
            value = operands.row(VALUE, slot, key_head, at, d)
            return store(sums, load(sums, d) * kept(_CORRECTION) + kept(_WEIGHT) * value, d)

        largest = tirx.max(kept(_LARGEST), kept(_SCORE))
        return sequence(
            store(state, zero, _SCORE),
            repeat("d", operands.size, product),
            store(state, operands.score(kept(_SCORE), sample, head, query, at), _SCORE),
            store(state, tirx.exp(kept(_LARGEST) - largest), _CORRECTION),
            store(state, largest, _LARGEST),
            store(state, tirx.exp(kept(_SCORE) - kept(_LARGEST)), _WEIGHT),
            store(state, kept(_TOTAL) * kept(_CORRECTION) + kept(_WEIGHT), _TOTAL),
            repeat("d", operands.value_size, weighed),
        )

    def finished(d: Expr) -> Stmt:
        return operands.stored(guarded_quotient(load(sums, d), kept(_TOTAL)), sample, query, head, d)

    return sequence(
        bound,
        sums_made,
        state_made,
        store(state, tirx.max(operands.sink(head), LOWEST) if has_sink else LOWEST, _LARGEST),
        store(state, tirx.exp(operands.sink(head) - kept(_LARGEST)) if has_sink else zero, _TOTAL),
        repeat("d", operands.value_size, lambda d: store(sums, zero, d)),
        repeat("row", tirx.max(end - first, expression(0)), row),
        repeat("d", operands.value_size, finished),
    )


Tensor: TypeAlias = "Expr"  # a Relax expression of known rank and dtype


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Visibility of a cache to queries, and the computation of scores.

    Attributes:
        position: the row of the first query, int32 or int64, of shape (), (1,) or (batch,). None: the queries are the
            last rows, `capacity - queries`. If a query would reach past the capacity, the rows end there.
        sequences: instead of the position, several sequences in one cache, int64 (sequences, 5) with the columns (slot,
            first row, first token, tokens, is a prompt): query is (1, tokens, heads, size), key and value (slots, ...).
            The tokens of a sequence are consecutive. A query's result does not depend on the other sequences of a call;
            prompts (not 0) use the kernel for many queries, the rest the one for few, and the two round differently.
        length: without `causal`, number of rows, shaped like `position`; None: the capacity.
        causal: query i sees the rows up to `position + i`; else each sees all `length` rows.
        scale: scale of the scores; None: 1 / sqrt(size).
        window: a causal query sees only this many rows, itself included; None: all before it.
        chunk: a causal query sees only its own chunk of this many rows (not with a window); None: all before it.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: (heads,), scores that join each softmax without a row of values.
        bias: added to the scores (bool: false hides); 4 dimensions that broadcast to (batch, heads, queries, rows),
            symbolic ones when the kernel runs; rows past its end are hidden.
        scales: float32 (batch, key heads, capacity) each, for int8 keys and values: one scale per row.
        rounds: whether matmuls of many queries may round float32 operands to bfloat16.
    """

    position: Tensor | None = None
    sequences: Tensor | None = None
    length: Tensor | None = None
    causal: bool = True
    scale: float | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None
    scales: tuple[Tensor, Tensor] | None = None
    rounds: bool = False


def cached_attention(
    builder: BlockBuilder, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions | None = None
) -> Expr:
    """Softmax attention of new queries over the first rows of a cache of keys and values, without copying them.

    Only the visible rows are read. The queries' own rows must already be in the cache. Raises ValueError if options or
    shapes do not match.

    Args:
        builder: the `relax.BlockBuilder` that is building the function; the returned call is not bound to a variable.
        query: (batch, queries, heads, size), floating-point; batch and queries may be symbolic.
        key: (batch, key heads, capacity, size), value: (batch, key heads, capacity, value size); float32, float16,
            bfloat16 or, with `options.scales`, int8. The number of query heads is a multiple of the number of key
            heads:
            query head h reads key head `h // (heads // key heads)`.

    Returns:
        The call: (batch, queries, heads, value size) in the type of the query; 0 for a query that sees no row.
    """
    options = options or AttentionOptions()
    given = _given(query, key, value, options)
    operands = {role: tensor for role, tensor in given.items() if tensor is not None}
    _check(operands, options)
    size = _sizes(query)[-1]
    if options.scale is None and not isinstance(size, int):
        raise ValueError("attention over a cache needs `scale` when the head size is not known")
    description = CachedAttention(
        operands=tuple(operands),
        scale=1.0 / math.sqrt(size) if options.scale is None else options.scale,
        causal=options.causal,
        window=options.window,
        chunk=options.chunk,
        softcap=options.softcap or None,
        rounds=options.rounds,
    )

    def compute(*tensors: Tensor) -> Tensor:
        def body(inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Stmt:
            return plain_attention(CacheOperands(description, inputs, outputs[0]))

        by_role = dict(zip(operands, tensors, strict=True))
        shape = [*by_role[QUERY].shape[:3], by_role[VALUE].shape[3]]
        return te.extern(shape, list(tensors), body, dtype=str(by_role[QUERY].dtype), name="cached_attention")

    return builder.call_te(
        compute,
        *operands.values(),
        primfunc_name_hint="cached_attention",
        primfunc_attrs={"op_pattern": OPAQUE, ATTRIBUTE: description.text()},
    )


def _given(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> dict[str, Tensor | None]:
    """The operands by role; None if not given."""
    return {
        QUERY: query,
        KEY: key,
        VALUE: value,
        POSITION: options.position if options.causal else None,
        SEQUENCES: options.sequences,
        LENGTH: None if options.causal else options.length,
        BIAS: options.bias,
        SINKS: options.sinks,
        KEY_SCALE: options.scales[0] if options.scales else None,
        VALUE_SCALE: options.scales[1] if options.scales else None,
    }


def _sizes(tensor: Tensor) -> list[Index]:
    return [int(size.value) if hasattr(size, "value") else size for size in tensor.ty.shape.values]


def _check(operands: Mapping[str, Tensor], options: AttentionOptions) -> None:
    query, key, value = (_sizes(operands[role]) for role in (QUERY, KEY, VALUE))
    if not len(query) == len(key) == len(value) == 4:
        raise ValueError(f"query, key and value have 4 dimensions, not {len(query)}, {len(key)} and {len(value)}")
    heads, key_heads = query[2], key[1]
    if not (isinstance(heads, int) and isinstance(key_heads, int) and key_heads and heads % key_heads == 0):
        raise ValueError(f"{heads} query heads do not share {key_heads} heads of keys")
    if not all(isinstance(each, int) for each in (query[3], key[3], value[3])) or query[3] != key[3]:
        raise ValueError(f"heads of queries and keys have one known size, not {query[3]} and {key[3]}")
    if (options.length if options.causal else options.position) is not None:
        raise ValueError("causal attention needs `position`; `length` is for attention that is not causal")
    window = options.window
    if window is not None and (window < 1 or not options.causal):
        raise ValueError(f"a window of {window} rows: it is at least 1, and for causal attention only")
    chunk = options.chunk
    if chunk is not None and (chunk < 1 or not options.causal or window is not None):
        raise ValueError(f"chunks of {chunk} rows: at least 1, for causal attention without a window")
    narrow = [str(operands[role].ty.dtype) == "int8" for role in (KEY, VALUE)]
    if narrow[0] != narrow[1] or narrow[0] != (options.scales is not None):
        raise ValueError("`scales` are required for int8 keys and values (both int8), and for no other type")
    if options.sequences is not None and (options.position is not None or not options.causal):
        raise ValueError("give either sequences or a position; sequences are for causal attention only")
