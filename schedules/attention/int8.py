"""Attention of 8-bit integers: both products in integers, softmax in float32, weights rounded to 8 bits in between.

Operands of attention as 32-bit words of four bytes along the sum: keys and values packed once, rows of queries and
weights in each task.

Words of keys and values are signed bytes, those of rows unsigned ones: `DOT_U8S8` takes them so. What is stored as
the other kind is moved by 128, and so is its zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schedules.attention.compute import ATTENTION_INT8
from schedules.attention.operands import BatchedMatrix, Operand
from schedules.attention.rule import Attention, AttentionWorkload
from schedules.attention.writer import AttentionWriter, BlockRows, Factor, put_in
from schedules.codegen.nest import (
    expression,
    in_vectors,
    lanes_of,
    parallel_grid,
    repeat_symbolic,
    sequence,
    splat,
    split_repeat,
    split_steps,
)
from schedules.codegen.parallel import pays_off
from schedules.config import Config
from schedules.instructions.products.operation import DOT_S8S8, DOT_U8S8
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Stage, dtype_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import stage_code

GROUP = 4
_ONES = 0x01010101


def _word(byte: int, count: int = GROUP) -> int:
    """An int32 of the byte `count` times, zeros above."""
    return int.from_bytes(bytes([byte] * count), "little", signed=count == GROUP)


@dataclass(frozen=True, eq=False)
class Quads:
    """Matrices (..., depth, columns) of bytes and their `words`, int32 (..., ceil(depth / 4), columns): four signed
    bytes each that are neighbours along the depth, the first the lowest; behind the depth stands 0."""

    source: BatchedMatrix
    words: Buffer
    machine: Machine

    @classmethod
    def of(cls, source: BatchedMatrix, machine: Machine) -> Quads:
        *lead, depth, columns = source.shape
        shape = [expression(size) for size in (*lead, ceil_div(depth, GROUP), columns)]
        return cls(source, tirx.decl_buffer(shape, "int32", f"{source.name}_quads", layout=None), machine)

    @property
    def shift(self) -> int:
        """Offset that makes the bytes signed."""
        return DOT_S8S8.shift(dtype_of(self.source.buffer))

    def _threads(self) -> bool | Expr:
        return pays_off(self.source.elements, self.machine)

    def made(self) -> list[Stmt]:
        """The statements that allocate and fill the words."""
        runs = self.source.shape[-2] % GROUP == 0 and self.source.runs_along(-2)
        return [tirx.AllocBuffer(self.words), self._turned() if runs else self._filled()]

    def _filled(self) -> Stmt:
        """From rows of neighbouring columns, four at a time."""
        leads, (depth, columns) = self.source.leads, self.source.shape[-2:]

        def row(outer: list[Expr], step: Expr, count: int) -> Stmt:
            def word(column: Expr) -> Stmt:
                total: Expr = tirx.const(_word(-self.shift, count), "int32")
                for byte in range(count):
                    value = tirx.Cast("int32", self.source.load(*outer, step * GROUP + byte, column)) & 0xFF
                    total = total ^ (value << 8 * byte)
                return tirx.BufferStore(self.words, total, [*outer, step, column])

            return in_vectors("column", columns, self.machine.lanes("int32"), word)

        def matrix(outer: list[Expr]) -> Stmt:
            return sequence(split_steps("step", depth, GROUP, lambda step, count: row(outer, step, count)))

        return parallel_grid(leads, matrix, self.machine, parallel=self._threads())

    def _turned(self) -> Stmt:
        """From columns that run along the depth: their bytes as words, and these transposed."""
        leads, (depth, columns) = self.source.leads, self.source.shape[-2:]
        steps, lanes = depth // GROUP, self.machine.lanes("int32")

        def matrix(outer: list[Expr]) -> Stmt:
            shape = [expression(columns), expression(steps)]
            signed = tirx.decl_buffer(shape, "int32", f"{self.source.name}_words", layout=None)

            def column(at: Expr) -> Stmt:
                def run(first: Index, count: int) -> Stmt:
                    place = self.source.place([*outer, expression(first * GROUP), at])
                    bytes_ = tirx.BufferLoad(self.source.buffer, [*place[:-1], lanes_of(place[-1], GROUP * count)])
                    words = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", bytes_)
                    if self.shift:
                        words = words ^ splat(_word(-self.shift), "int32", count)
                    return tirx.BufferStore(signed, words, [at, lanes_of(first, count)])

                return split_repeat("run", steps, lanes, run)

            i, j = tirx.Var("step", "int64"), tirx.Var("column", "int64")
            transposed = tirx.BufferStore(self.words, tirx.BufferLoad(signed, [j, i]), [*outer, i, j])
            stage = Stage("transpose", (Axis(i, steps), Axis(j, columns)), transposed)
            parts = [tirx.AllocBuffer(signed), repeat_symbolic("column", columns, lambda j: column(expression(j)))]
            return sequence([*parts, stage_code(stage, self.machine, parallel=False)])

        return parallel_grid(leads, matrix, self.machine, parallel=self._threads())

    def begins(self, row_zero: int, zero: int) -> tuple[list[Stmt], Buffer | None]:
        """Start values of sums of (row - row_zero) * (column - zero), (..., columns), and the statements that make
        them; the terms of rows are `ByteRows.terms`. None where they are 0."""
        if not row_zero:
            return [], None
        leads, (depth, columns) = self.source.leads, self.source.shape[-2:]
        shape = [*self.source.shape[:-2], columns]
        begin = tirx.decl_buffer(
            [expression(size) for size in shape], "int32", f"{self.source.name}_begin", layout=None
        )
        steps, lanes = ceil_div(depth, GROUP), self.machine.lanes("int32")

        def matrix(outer: list[Expr]) -> Stmt:
            def vector(at: Index, count: int) -> Stmt:
                place = [*outer, lanes_of(at, count)]
                held = tirx.BufferLoad(begin, place)
                ones = splat(_ONES, "int32", count)

                def add(step: Expr) -> Stmt:
                    word = tirx.BufferLoad(self.words, [*outer, expression(step), lanes_of(at, count)])
                    return tirx.BufferStore(begin, DOT_U8S8(held, ones, word), place)

                start = tirx.BufferStore(begin, splat(0, "int32", count), place)
                scaled = held * splat(-row_zero, "int32", count) + splat(depth * row_zero * zero, "int32", count)
                return sequence([start, repeat_symbolic("step", steps, add), tirx.BufferStore(begin, scaled, place)])

            return split_repeat("column", columns, lanes, vector)

        return [tirx.AllocBuffer(begin), parallel_grid(leads, matrix, self.machine, parallel=self._threads())], begin


@dataclass(frozen=True, eq=False)
class ByteRows:
    """Rows of unsigned bytes, filled up with zeros to whole words."""

    name: str
    rows: int
    size: int
    buffer: Buffer

    @classmethod
    def of(cls, name: str, rows: int, size: int) -> ByteRows:
        width = GROUP * ceil_div(size, GROUP)
        shape = [expression(rows), expression(width)]
        return cls(name, rows, size, tirx.decl_buffer(shape, "uint8", name, layout=None))

    def allocated(self) -> list[Stmt]:
        """Statements that make the rows, with what stands behind them."""
        made = [tirx.AllocBuffer(self.buffer)]
        behind = GROUP * ceil_div(self.size, GROUP) - self.size
        if behind:
            zero = tirx.IntImm("uint8", 0)

            def fill(i: Index) -> Stmt:
                return repeat_symbolic(
                    "k",
                    behind,
                    lambda k: tirx.BufferStore(self.buffer, zero, [expression(i), expression(k + self.size)]),
                )

            made.append(repeat_symbolic("row", self.rows, fill))
        return made

    def put(self, i: Index, k: Expr, value: Expr) -> Stmt:
        """The statement that stores a byte, signed ones moved by 128."""
        shift = DOT_U8S8.shift(str(value.ty))
        if shift:
            value = tirx.Cast("uint8", tirx.Cast("int32", value) + shift)
        return tirx.BufferStore(self.buffer, value, [expression(i), k])

    def filled(self, value: Operand, lanes: int) -> Stmt:
        """The statement that stores all bytes."""
        return repeat_symbolic(
            "row", self.rows, lambda i: in_vectors("k", self.size, lanes, lambda k: self.put(i, k, value(i, k)))
        )

    def word(self, i: Index, step: Expr) -> Expr:
        """The bytes of row i at a step of a sum of words."""
        return tirx.reinterpret("int32", tirx.BufferLoad(self.buffer, [expression(i), lanes_of(step * GROUP, GROUP)]))

    def terms(self, zero: int, machine: Machine) -> tuple[list[Stmt], Buffer | None]:
        """-zero times the sum of each row, int32 (rows), and the statements that make it; None where zero is 0."""
        if not zero:
            return [], None
        terms = tirx.decl_buffer([expression(self.rows)], "int32", f"{self.name}_terms", layout=None)
        i, k = tirx.Var("i", "int64"), tirx.Var("k", "int64")
        byte = tirx.Cast("int32", tirx.BufferLoad(self.buffer, [i, k]))
        total = tirx.BufferLoad(terms, [i])
        stage = Stage(
            f"{self.name}_terms",
            (Axis(i, self.rows), Axis(k, self.size, reduce=True)),
            tirx.BufferStore(terms, total + byte * tirx.IntImm("int32", -zero), [i]),
            tirx.BufferStore(terms, tirx.IntImm("int32", 0), [i]),
        )
        return [tirx.AllocBuffer(terms), stage_code(stage, machine, parallel=False)], terms


_BYTES = ("int8", "uint8")


class IntegerAttentionWriter(AttentionWriter):
    """Writes attention whose operands and weights are bytes; sums are int32."""

    dtype: ClassVar[str] = "int32"

    def _prepare(self) -> tuple[list[Stmt], Factor, Factor]:
        parts = self.parts
        query_zero, key_zero, weights_zero, value_zero = parts.zeros
        key, value = (Quads.of(each, self.machine) for each in (parts.key, parts.value))
        dtypes = dtype_of(parts.query.buffer), parts.weights_dtype
        self._zeros = query_zero + DOT_U8S8.shift(dtypes[0]), weights_zero + DOT_U8S8.shift(dtypes[1])
        self._column_zeros = key_zero + key.shift, value_zero + value.shift
        statements: list[Stmt] = []
        factors = []
        for quads, row_zero, zero in zip((key, value), self._zeros, self._column_zeros, strict=True):
            made, begin = quads.begins(row_zero, zero)
            statements += [*quads.made(), *made]
            factors.append(Factor(BatchedMatrix.whole(quads.words), begin))
        of_keys, of_values = factors
        return statements, of_keys, of_values

    def _rows_of(self, rows: int, query: Operand, scores: Buffer) -> BlockRows:
        queries, weights = ByteRows.of("queries", rows, self.depth), ByteRows.of("weights", rows, self.keys)

        of_queries, query_terms = queries.terms(self._column_zeros[0], self.machine)
        of_weights, weight_terms = weights.terms(self._column_zeros[1], self.machine)
        made = [*queries.allocated(), queries.filled(query, 4 * self.lanes), *of_queries, *weights.allocated()]
        return BlockRows(
            made, queries.word, weights.word, put_in(scores), weights.put, of_weights, query_terms, weight_terms
        )

    def _combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return DOT_U8S8(total, a, b)


class AttentionInt8(Attention):
    """Serves the kernels of `attention_compute.attention` between 8-bit integers, of known sizes."""

    name: ClassVar[str] = "attention-int8"
    version: ClassVar[int] = 1

    kind: ClassVar[str] = ATTENTION_INT8
    dtypes: ClassVar[tuple[str, ...]] = _BYTES
    writer: ClassVar[type[AttentionWriter]] = IntegerAttentionWriter

    def estimate(self, workload: AttentionWorkload, config: Config, machine: Machine) -> None:
        """None: the estimate of float32 products says nothing of these."""
