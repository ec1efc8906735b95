"""Positions (rotary or ALiBi), the cache of keys and values, and attention over it, in Relax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.llm.config import DecoderConfig, LayerConfig, Temperature
from compiler.frontends.llm.rope import Rope
from compiler.passes.rewriting.matching import as_constant
from compiler.passes.rewriting.state_writes import write_rows, write_sequences
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.attention.cache.description import round_rows
from schedules.ir.tvm_types import Expr, Index


def alibi_slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """Return each head's slope (score bias per position); the last of a power of two of heads has 2 ** -most."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-most * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-most / 2 * (2 * head + 1) / power) for head in range(heads - power)]
    return tuple(slopes)


@dataclass(frozen=True)
class Positions:
    """Positions of a run's tokens within their sequences.

    Attributes:
        start: int64 (), number of earlier tokens; None for runs of several sequences.
        tokens: int64 (2, n), each token's position and the length of its sequence; None if `start` is known.
        sequences: int64 (sequences, 5), as for `cached_attention`; None if `start` is known.
        coordinates: int64 (3, n), positions for rotations in time, height and width; None if they are all the same.
        axis: maps a rotated pair to its row of `coordinates`.
    """

    start: Expr | None = None
    tokens: Expr | None = None
    sequences: Expr | None = None
    coordinates: Expr | None = None
    axis: Callable[[Expr], Expr] | None = None

    @property
    def operand(self) -> Expr:
        """Operand of kernels that use `position` and `length`."""
        return self.start if self.tokens is None else self.tokens

    def position(self, operand: te.Tensor, row: Expr) -> Expr:
        """Return a token's position from `operand` inside a kernel."""
        return operand() + row if self.tokens is None else operand[0, row]

    def length(self, operand: te.Tensor, row: Expr, tokens: Expr) -> Expr:
        """Return the length of a token's sequence, in a run of `tokens` tokens."""
        return operand() + tokens if self.tokens is None else operand[1, row]


@dataclass(frozen=True)
class KeyValueCache:
    """The cache of earlier tokens' keys and values: (1, key heads, capacity, head size), with as many rows in use as
    the position; or (slots, ...) for several sequences. If `values` is None, they are the keys (latent attention).

    int8 caches have `scales`: float32 (1, key heads, capacity), a factor per row.
    `rounds`: True if attention may round its operands, like matmuls with quantized weights.
    """

    keys: Expr
    values: Expr | None
    position: Positions
    scales: tuple[Expr, ...] = ()
    rounds: bool = False

    @property
    def parts(self) -> tuple[Expr, ...]:
        """Tensors of the cache: keys, values and scales."""
        return (self.keys, *([] if self.values is None else [self.values]), *self.scales)

    def extended(self, builder: relax.BlockBuilder, *new: Expr) -> KeyValueCache:
        """Return the cache with new entries (1, n, key heads, head size), rounded to its type, from `position` on."""
        if self.scales:
            return self._with_bytes(builder, new)
        dtype = str(self.keys.ty.dtype)

        def written(old: Expr, rows: Expr) -> Expr:
            stored = rows if str(rows.ty.dtype) == dtype else builder.emit(R.astype(rows, dtype))
            if self.position.sequences is not None:
                return write_sequences(builder, old, stored, self.position.sequences)
            return write_rows(builder, old, builder.emit(R.permute_dims(stored, [0, 2, 1, 3])), self.position.start, 2)

        return self._of_parts([written(*each) for each in zip(self.parts, new, strict=True)])

    def _of_parts(self, parts: Sequence[Expr]) -> KeyValueCache:
        """Return the same cache with other tensors, in the order of `parts`."""
        count = len(parts) - len(self.scales)
        values = None if self.values is None else parts[1]
        return replace(self, keys=parts[0], values=values, scales=tuple(parts[count:]))

    def _with_bytes(self, builder: relax.BlockBuilder, floats: Sequence[Expr]) -> KeyValueCache:
        rounded = builder.emit(builder.call_te(round_rows, list(floats), primfunc_name_hint="round_rows"))
        new = [builder.emit(relax.TupleGetItem(rounded, at)) for at in range(2 * len(floats))]
        start, sequences = self.position.start, self.position.sequences

        def write(old: Expr, rows: Expr) -> Expr:
            if sequences is not None:
                return write_sequences(builder, old, rows, sequences, 2)
            return write_rows(builder, old, rows, start, 2)

        return self._of_parts([write(old, rows) for old, rows in zip(self.parts, new, strict=True)])


def rotations(builder: relax.BlockBuilder, rope: Rope, position: Positions, length: Expr) -> Expr:
    """Return cosines and sines of the positions of `length` tokens: float32 (2, length, size / 2)."""
    frequencies = as_constant(np.asarray(rope.frequencies, np.float32))
    longer = as_constant(np.asarray(rope.long_frequencies or rope.frequencies, np.float32))

    def compute(start: te.Tensor, short: te.Tensor, long: te.Tensor, *coordinates: te.Tensor) -> te.Tensor:
        def place(row: Expr, pair: Expr) -> Expr:
            if position.axis is None:
                return position.position(start, row)
            return coordinates[0][position.axis(pair), row]

        def element(part: Expr, row: Expr, pair: Expr) -> Expr:
            frequency = _frequency(rope, short, long, position.length(start, row, length), pair)
            angle = tirx.Cast("float32", place(row, pair)) * frequency
            factor = tirx.const(rope.factor, "float32")
            return tirx.Select(part == 0, tirx.cos(angle), tirx.sin(angle)) * factor

        return te.compute((2, length, short.shape[0]), element, name="rotations")

    operands = [position.operand, frequencies, longer]
    operands += [] if position.coordinates is None else [position.coordinates]
    return builder.emit_te(compute, *operands, primfunc_name_hint="rope_angles")


def _frequency(rope: Rope, short: te.Tensor, long: te.Tensor, total: Expr, pair: Expr) -> Expr:
    """Return the frequency of one pair, in a sequence of `total` tokens."""
    if rope.long_frequencies is not None:
        return tirx.Select(total > rope.original_context, long[pair], short[pair])
    if rope.dynamic is None:
        return short[pair]
    base, factor = rope.dynamic
    stretched = tirx.Cast("float32", tirx.max(total, tirx.const(rope.original_context, "int64")))
    growth = stretched * tirx.const(factor / rope.original_context, "float32") - tirx.const(factor - 1, "float32")
    grown = tirx.log(growth) * tirx.const(rope.size / (rope.size - 2), "float32") + tirx.const(
        math.log(base), "float32"
    )
    exponent = tirx.Cast("float32", pair) * tirx.const(-2.0 / rope.size, "float32")
    return tirx.exp(grown * exponent)


def rotated(builder: relax.BlockBuilder, heads: Expr, angles: Expr) -> Expr:
    """Rotate the pairs (i, i + half) of the first elements of heads (1, n, count, size)."""

    def compute(x: te.Tensor, angles: te.Tensor) -> te.Tensor:
        half = angles.shape[2]
        rotates_all = int(2 * half) == int(x.shape[3])

        def element(b: Expr, row: Expr, head: Expr, d: Expr) -> Expr:
            pair = tirx.indexmod(d, half)
            cosine, sine = angles[0, row, pair], angles[1, row, pair]
            other = tirx.if_then_else(d < half, -x[b, row, head, d + half], x[b, row, head, d - half])
            turned = x[b, row, head, d] * cosine + other * sine
            return turned if rotates_all else tirx.if_then_else(d < 2 * half, turned, x[b, row, head, d])

        return te.compute(x.shape, element, name="rotated")

    return builder.emit_te(compute, heads, angles, primfunc_name_hint="rotate")


def tempered(builder: relax.BlockBuilder, heads: Expr, position: Positions, temperature: Temperature) -> Expr:
    """Multiply heads (1, n, count, size) by a factor that grows with the position."""
    numbers = (temperature.floor, temperature.scale, temperature.offset)
    floor, scale, offset = (tirx.const(each, "float32") for each in numbers)
    one = tirx.const(1.0, "float32")

    def compute(x: te.Tensor, start: te.Tensor) -> te.Tensor:
        def element(b: Expr, row: Expr, head: Expr, d: Expr) -> Expr:
            steps = tirx.floor((tirx.Cast("float32", position.position(start, row)) + offset) / floor)
            return x[b, row, head, d] * (one + scale * tirx.log(one + steps))

        return te.compute(x.shape, element, name="tempered")

    return builder.emit_te(compute, heads, position.operand, primfunc_name_hint="temper")


def row_numbers(builder: relax.BlockBuilder, position: Positions, offset: int, length: Index) -> Expr:
    """Return the row numbers of learned positions in their table: int64 (1, length)."""

    def compute(start: te.Tensor) -> te.Tensor:
        return te.compute((1, length), lambda _, row: position.position(start, row) + offset, name="row_numbers")

    return builder.emit_te(compute, position.operand, primfunc_name_hint="row_numbers")


def linear_biases(builder: relax.BlockBuilder, slopes: tuple[float, ...], capacity: Index) -> Expr:
    """Return ALiBi biases: float32 (1, heads, 1, capacity). Softmax cancels the term of the query's own position."""
    values = as_constant(np.asarray(slopes, np.float32))

    def compute(slope: te.Tensor) -> te.Tensor:
        shape = (1, len(slopes), 1, capacity)
        return te.compute(shape, lambda _, head, __, row: slope[head] * tirx.Cast("float32", row), name="linear_biases")

    return builder.emit_te(compute, values, primfunc_name_hint="linear_biases")


def attend(
    builder: relax.BlockBuilder,
    config: DecoderConfig,
    layer: LayerConfig,
    query: Expr,
    cache: KeyValueCache,
    bias: Expr | None = None,
    sinks: Expr | None = None,
) -> Expr:
    """Compute causal attention of queries (1, n, heads, size) over a cache with their own rows: (1, n, heads, value
    size)."""
    return builder.emit(
        cached_attention(
            builder,
            query,
            cache.keys,
            cache.keys if cache.values is None else cache.values,
            AttentionOptions(
                position=cache.position.start,
                sequences=cache.position.sequences,
                scale=config.score_scale,
                window=layer.window,
                chunk=layer.chunk,
                softcap=config.score_cap,
                sinks=sinks,
                bias=bias,
                scales=(cache.scales[0], cache.scales[-1]) if cache.scales else None,
                rounds=cache.rounds,
            ),
        )
    )
