"""Description of a kernel of attention over a cache, as plain data: the kernel stores it as JSON in an attribute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from schedules.ir.expression import expression, number
from schedules.ir.stages import dtype_of, shape_of
from schedules.ir.tir import Expr, Index, Tensor, te, tirx

ATTRIBUTE = "tensorwright.cached_attention"
QUERY, KEY, VALUE = "query", "key", "value"
POSITION, SEQUENCES, LENGTH, BIAS, SINKS = "position", "sequences", "length", "bias", "sinks"
KEY_SCALE, VALUE_SCALE = "key_scale", "value_scale"
SLOT, FIRST_ROW, FIRST_TOKEN, TOKENS, IS_PROMPT = range(5)  # columns of the sequences
SCALES = {KEY: KEY_SCALE, VALUE: VALUE_SCALE}
LOWEST = tirx.min_value("float32")  # lowest score: smaller ones, -inf included, have no weight next to others


@dataclass(frozen=True)
class CachedAttention:
    """Computation of one kernel.

    Attributes:
        operands: roles of the kernel's inputs, in their order; its output is the last parameter.
        scale: factor of the scores.
        causal: whether query i sees no row after `position + i`; otherwise each sees the first `length` rows.
        window: number of rows that a causal query sees, the newest ones; None: all.
        chunk: a causal query sees only rows of its own chunk of this many; None: all.
        softcap: scores become `softcap * tanh(score / softcap)`; None: unchanged.
        rounds: whether matmuls of many queries may round their operands to bfloat16.
    """

    operands: tuple[str, ...]
    scale: float
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    rounds: bool = False

    def text(self) -> str:
        """JSON text, for `parse`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def parse(text: str) -> CachedAttention:
    """Parse the text of `CachedAttention.text`."""
    fields: dict[str, Any] = json.loads(text)
    return CachedAttention(operands=tuple(fields.pop("operands")), **fields)


class CacheOperands:
    """The buffers of a kernel and the fields of its description, as expressions.

    Shapes: query and result (batch, queries, heads, size), key (batch, key heads, capacity, size), value (batch, key
    heads, capacity, value size); position and length (), (1,) or (batch,); bias broadcasts to (batch, heads, queries,
    rows), rows past its end are hidden; sinks (heads,); scales (batch, key heads, capacity).

    With sequences, int64 (sequences, 5), a sample is one of them: queries and result are (1, tokens, heads, size). A
    sequence has TOKENS of these, starting at FIRST_TOKEN; its first query is row FIRST_ROW of its keys and values,
    which are entry SLOT of a cache (slots, key heads, capacity, size).
    """

    def __init__(self, description: CachedAttention, inputs: Sequence[Expr], result: Expr) -> None:
        self.description = description
        self.buffers = dict(zip(description.operands, inputs, strict=True))
        self.result = result
        self.batch, self.queries, self.heads, self.size = shape_of(self.buffers[QUERY])
        if SEQUENCES in self:
            self.batch = shape_of(self.buffers[SEQUENCES])[0]
        _, self.key_heads, self.capacity, self.value_size = shape_of(self.buffers[VALUE])

    def __contains__(self, role: str) -> bool:
        return role in self.buffers

    @cached_property
    def group(self) -> int:
        """Number of query heads per head of keys."""
        return int(self.heads // self.key_heads)

    @property
    def rounds(self) -> bool:
        """True if matmuls of many queries may round their operands to bfloat16."""
        return self.description.rounds or dtype_of(self.buffers[KEY]) == "bfloat16"

    def query(self, sample: Expr, query: Expr, head: Expr, position: Expr) -> Expr:
        """An element of the queries, in float32, scaled."""
        scale = tirx.FloatImm("float32", self.description.scale)
        return number(self._load(QUERY, *self.position(sample, query), head, position), "float32") * scale

    def row(self, role: str, *at: Expr) -> Expr:
        """An element of keys or values, in float32."""
        value = self.unscaled(role, *at)
        return value * self.scale(role, *at[:-1]) if self.has_scales(role) else value

    def unscaled(self, role: str, *at: Expr) -> Expr:
        """Like `row`, without the scale of the row."""
        return number(self._load(role, *at), "float32")

    def has_scales(self, role: str) -> bool:
        """True if each row of keys or values has a scale."""
        return SCALES[role] in self

    def scale(self, role: str, *at: Expr) -> Expr:
        """The scale of a row (sample, key head, row)."""
        return self._load(SCALES[role], *at)

    def is_exact(self, role: str) -> bool:
        """True if keys or values are float32."""
        return dtype_of(self.buffers[role]) == "float32"

    def rows_of(self, sample: Expr) -> Expr:
        """Number of rows of the cache that the queries of a sample may see: between 0 and the capacity."""
        if self.description.causal:
            rows = self.first_position(sample) + self.queries_of(sample)
        else:
            rows = self._scalar(LENGTH, sample) if LENGTH in self else expression(self.capacity)
        limit = expression(self.capacity)
        if BIAS in self:
            limit = tirx.min(limit, self.buffers[BIAS].ty.shape[-1])
        return tirx.max(tirx.min(rows, limit), expression(0))

    def queries_of(self, sample: Expr) -> Expr:
        """Number of queries of a sample."""
        if SEQUENCES not in self:
            return expression(self.queries)
        left = expression(self.queries) - self._first_token(sample)
        return tirx.max(tirx.min(self.of_sequence(sample, TOKENS), left), expression(0))

    def few_of(self, sample: Expr, *, few: bool) -> Expr:
        """Number of queries of a sample that one kernel computes: with `few` 0 for prompts, otherwise 0 for the rest.

        The choice depends on nothing else, so results do not depend on the number of queries.
        """
        queries = self.queries_of(sample)
        if SEQUENCES not in self:
            return queries
        is_prompt = self.of_sequence(sample, IS_PROMPT) != 0
        return tirx.Select(is_prompt, expression(0), queries) if few else tirx.Select(is_prompt, queries, expression(0))

    def slot_of(self, sample: Expr) -> Expr:
        """The cache entry of a sample."""
        if SEQUENCES not in self:
            return sample
        slots = shape_of(self.buffers[VALUE])[0]
        return tirx.max(tirx.min(self.of_sequence(sample, SLOT), expression(slots) - 1), expression(0))

    def position(self, sample: Expr, query: Expr) -> tuple[Expr, Expr]:
        """Position of a query among those of all samples."""
        return (sample, query) if SEQUENCES not in self else (expression(0), self._first_token(sample) + query)

    def of_sequence(self, sample: Expr, column: int) -> Expr:
        """A column of a sequence."""
        return tirx.BufferLoad(self.buffers[SEQUENCES], [sample, expression(column)])

    def _first_token(self, sample: Expr) -> Expr:
        return tirx.max(tirx.min(self.of_sequence(sample, FIRST_TOKEN), expression(self.queries)), expression(0))

    def first_position(self, sample: Expr) -> Expr:
        """The row of the first query, clamped to the capacity so that sums with it do not overflow."""
        if SEQUENCES in self:
            limit = expression(self.capacity)
            return tirx.max(tirx.min(self.of_sequence(sample, FIRST_ROW), limit), expression(0))
        if POSITION not in self:
            return expression(self.capacity) - expression(self.queries)
        limit = expression(self.capacity)
        return tirx.max(tirx.min(self._scalar(POSITION, sample), limit), -expression(self.queries))

    def range_of(self, position: Expr, rows: Expr, query: Expr) -> tuple[Expr, Expr]:
        """The rows [first, end) that a query sees, from `first_position` and `rows_of` of its sample."""
        if not self.description.causal:
            return expression(0), rows
        end = tirx.max(tirx.min(position + query + 1, rows), expression(0))
        if self.description.chunk is not None:
            chunk = expression(self.description.chunk)
            return tirx.floordiv(tirx.max(position + query, expression(0)), chunk) * chunk, end
        if self.description.window is None:
            return expression(0), end
        return tirx.max(position + query + 1 - self.description.window, expression(0)), end

    def score(self, raw: Expr, sample: Expr, head: Expr, query: Expr, row: Expr) -> Expr:
        """The softmax argument for the product of a scaled query and a key."""
        value, softcap = raw, self.description.softcap
        if softcap is not None:
            cap = tirx.FloatImm("float32", softcap)
            value = tirx.tanh(value * tirx.FloatImm("float32", 1.0 / softcap)) * cap
        if BIAS not in self:
            return value
        bias = self.buffers[BIAS]
        at = [sample, head, query]
        shared = [_shared(size, point) for size, point in zip(shape_of(bias)[:3], at, strict=True)]
        entry = tirx.BufferLoad(bias, [*shared, row])
        if dtype_of(bias) == "bool":
            return tirx.Select(entry, value, tirx.FloatImm("float32", float("-inf")))
        return value + number(entry, "float32")

    def sink(self, head: Expr) -> Expr:
        """The sink of a head (a score without a row), in float32."""
        return number(self._load(SINKS, head), "float32")

    def stored(self, value: Expr, sample: Expr, query: Expr, head: Expr, position: Expr) -> Expr:
        """The statement that stores an element of the result, given its float32 value."""
        at = [*self.position(sample, query), head, position]
        return tirx.BufferStore(self.result, number(value, dtype_of(self.result)), at)

    def _load(self, role: str, *at: Expr) -> Expr:
        return tirx.BufferLoad(self.buffers[role], list(at))

    def _scalar(self, role: str, sample: Expr) -> Expr:
        """The int64 of a sample, or the one shared by all."""
        buffer = self.buffers[role]
        shape = shape_of(buffer)
        at = [expression(0) if size == 1 else sample for size in shape]
        value = tirx.BufferLoad(buffer, at)
        return value if dtype_of(buffer) == "int64" else tirx.Cast("int64", value)


def _shared(size: Index, point: Expr) -> Expr:
    """Index along an axis that is broadcast if its size is 1, which may be known only at run time."""
    if isinstance(size, int):
        return expression(0) if size == 1 else point
    return tirx.Select(tirx.EQ(size, expression(1)), expression(0), point)


# New rows of an int8 cache: each head of each row is rounded with its own scale.

_MAX_INT8 = 127.0


def round_rows(given: Sequence[Tensor]) -> list[Tensor]:
    """Keys and values (batch, n, heads, size), float32, as int8 (batch, heads, n, size) each, then their scales,
    float32 (batch, heads, n) each."""
    scales = [_scales(each) for each in given]
    return [*(_rounded(*pair) for pair in zip(given, scales, strict=True)), *scales]


def _scales(rows: Tensor) -> Tensor:
    batch, count, heads, size = rows.shape
    d = te.reduce_axis((tirx.const(0, "int64"), size), name="d")
    peak = te.compute((batch, heads, count), lambda b, h, i: te.max(tirx.abs(rows[b, i, h, d]), axis=d), name="peak")
    return te.compute((batch, heads, count), lambda *at: peak(*at) * tirx.const(1 / _MAX_INT8, "float32"), name="scale")


def _rounded(rows: Tensor, scale: Tensor) -> Tensor:
    batch, count, heads, size = rows.shape
    zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")

    def element(b: Expr, h: Expr, i: Expr, d: Expr) -> Expr:
        inverse = tirx.if_then_else(scale[b, h, i] > zero, one / scale[b, h, i], zero)
        return tirx.Cast("int8", tirx.Cast("int32", tirx.nearbyint(rows[b, i, h, d] * inverse)))

    return te.compute((batch, heads, count, size), element, name="rounded")
