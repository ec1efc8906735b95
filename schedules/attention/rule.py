"""Attention in one kernel, by blocks of queries; `schedules.attention.writer` writes its code.

For 8-bit integers, both matmuls are integer, softmax is float32, and weights are rounded to 8 bits in between. Words
of keys and values hold signed bytes, words of rows unsigned ones, as `DOT_U8S8` needs. Operands stored with the other
signedness are shifted by 128, and so are their zero points.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from schedules.attention.compute import ATTENTION, ATTENTION_INT8
from schedules.attention.operands import (
    MIN_QUERIES,
    AttentionParts,
    BatchedMatrix,
    NarrowRows,
    Operand,
    PackedWords,
    attention_stages,
)
from schedules.attention.writer import AttentionWriter, BlockRows, Factor, attention_tiles, put_in
from schedules.codegen.nest import (
    build_function,
    in_vectors,
    lanes_of,
    load,
    parallel_grid,
    repeat_symbolic,
    sequence,
    splat,
    split_repeat,
    split_steps,
    store,
)
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.estimate import Estimate, tail
from schedules.instructions.dot_products.amx import BLOCK_ROWS, STEPS
from schedules.instructions.dot_products.operation import DOT_S8S8, DOT_U8S8, Instruction, Operation
from schedules.ir.expression import expression
from schedules.ir.numbers import WORD_BYTES, ceil_div
from schedules.ir.stages import Axis, Kernel, Stage, dtype_of
from schedules.ir.tir import Buffer, Expr, Index, PrimFunc, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.tiling import tile_cost
from schedules.rule import CpuRule, Priority, Workload
from schedules.stages.code import stage_code


@dataclass(frozen=True)
class AttentionWorkload(Workload):
    """Extents are 0 if symbolic; `batch` is the product of all leading dimensions."""

    batch: int
    queries: int
    keys: int
    depth: int
    columns: int
    dtype: str

    @property
    def operations(self) -> int:
        """Multiplications and additions of both matmuls."""
        return 2 * self.batch * self.queries * self.keys * (self.depth + self.columns)


SOFTMAX_CYCLES = 12.0  # per vector of scores


def cycles_in_tiles(work: AttentionWorkload, instruction: Instruction, machine: Machine) -> float:
    """Single-core cycles of attention with tile accumulators: matmuls padded to whole tiles, and the softmax."""
    step, lanes = STEPS * instruction.group, machine.lanes("float32")
    depth, keys = (ceil_div(each, step) * step for each in (work.depth, work.keys))
    terms = work.batch * work.queries * (work.keys * depth + work.columns * keys)
    scores = work.batch * work.queries * work.keys
    return terms / (lanes * machine.fma_ports * instruction.rate_on(machine)) + scores / lanes * SOFTMAX_CYCLES


class Attention(CpuRule[AttentionWorkload]):
    """Serves the kernels of `attention_compute.attention` in float32."""

    name: ClassVar[str] = "attention"
    version: ClassVar[int] = 1
    priority: ClassVar[int] = Priority.PACKED

    kind: ClassVar[str] = ATTENTION
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    writer: ClassVar[type[AttentionWriter]] = AttentionWriter

    def match(self, kernel: Kernel, machine: Machine) -> AttentionWorkload | None:
        stages = attention_stages(kernel, self.kind)
        parts = None if stages is None else AttentionParts.of(stages)
        if parts is None or dtype_of(parts.query.buffer) not in self.dtypes:
            return None
        *leading, queries, depth = (size if isinstance(size, int) else 0 for size in parts.query.shape)
        keys, columns = (size if isinstance(size, int) else 0 for size in parts.value.shape[-2:])
        dtype = "bfloat16" if parts.narrow else dtype_of(parts.query.buffer)
        return AttentionWorkload(prod(leading), queries, keys, depth, columns, dtype)

    def space(self, workload: AttentionWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, self._max_rows(workload, machine) + 1))})

    def default(self, workload: AttentionWorkload, machine: Machine) -> Config:
        """Blocks of nearly equal size, as large as fits."""
        maximum = self._max_rows(workload, machine)
        if not workload.queries:
            return Config.of(rows=min(8, maximum))
        blocks = -(-workload.queries // maximum)
        return Config.of(rows=-(-workload.queries // blocks))

    def estimate(self, workload: AttentionWorkload, config: Config, machine: Machine) -> Estimate | None:
        rows = config.integer("rows")
        batch, queries, keys = (max(each, 1) for each in (workload.batch, workload.queries, workload.keys))
        lanes = machine.lanes(workload.dtype)
        blocks = ceil_div(queries, rows)
        cycles = batch * (
            workload.depth * tile_cost(queries, keys, (rows, 2), machine, lanes)
            + keys * tile_cost(queries, workload.columns, (rows, 2), machine, lanes)
            + queries * keys / lanes * SOFTMAX_CYCLES
        )
        moved = float(batch * blocks * keys * (workload.depth + workload.columns) * 4)
        return Estimate(cycles, moved, batch * blocks, rows * keys * 4.0, rows * 2, rows * 2, tail(queries, rows))

    def apply(self, kernel: Kernel, workload: AttentionWorkload, config: Config, machine: Machine) -> PrimFunc:
        stages = attention_stages(kernel, self.kind)
        if stages is None:
            raise NotScheduledError("stages of attention are missing")
        body = self.writer(AttentionParts.of(stages), machine, config.integer("rows")).code()
        return build_function(kernel, [body], [])

    def tiles(self, workload: AttentionWorkload, machine: Machine) -> Instruction | None:
        """The instruction with tile accumulators for these operands, if there is one."""
        in_words = workload.queries >= MIN_QUERIES and workload.dtype != "float32"
        known = workload.keys and workload.depth and workload.columns
        return attention_tiles(machine, self.writer.operation) if in_words and known else None

    def _max_rows(self, workload: AttentionWorkload, machine: Machine) -> int:
        """Rows of two vectors of sums that fit in registers, or of a block of tiles."""
        if self.tiles(workload, machine) is not None:
            return BLOCK_ROWS
        return max(1, (machine.vector_registers - 3) // 2)


_ONES = 0x01010101


class PackedInt8(PackedWords):
    """Words of four signed bytes."""

    group: ClassVar[int] = WORD_BYTES

    @property
    def shift(self) -> int:
        """Offset that converts the bytes to signed."""
        return DOT_S8S8.shift(dtype_of(self.source.buffer))

    @property
    def _run(self) -> int:
        return WORD_BYTES

    def _filled(self) -> list[Stmt]:
        leads, (depth, columns) = self.source.leads, self.source.shape[-2:]

        def row(outer: list[Expr], step: Expr, count: int) -> Stmt:
            def word(column: Expr) -> Stmt:
                total: Expr = tirx.const(_word(-self.shift, count), "int32")
                for byte in range(count):
                    value = tirx.Cast("int32", self.source.load(*outer, step * WORD_BYTES + byte, column)) & 0xFF
                    total = total ^ (value << 8 * byte)
                return store(self.words, total, *outer, step, column)

            return in_vectors("column", columns, self.lanes, word)

        def matrix(outer: list[Expr]) -> Stmt:
            return sequence(split_steps("step", depth, WORD_BYTES, lambda step, count: row(outer, step, count)))

        return [parallel_grid(leads, matrix, self.machine, parallel=self._threads())]

    def _column(self, rows: Buffer, outer: list[Expr], column: Expr) -> Stmt:
        def run(first: Index, count: int) -> Stmt:
            position = self.source.position([*outer, expression(first * WORD_BYTES), column])
            bytes_ = load(self.source.buffer, *position[:-1], lanes_of(position[-1], WORD_BYTES * count))
            words = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", bytes_)
            if self.shift:
                words = words ^ splat(_word(-self.shift), "int32", count)
            return store(rows, words, column, lanes_of(first, count))

        return split_repeat("run", self.used, self.lanes, run)

    def begins(self, row_zero: int, zero: int) -> tuple[list[Stmt], Buffer | None]:
        """Initial values of sums of (row - row_zero) * (column - zero), (..., columns), and the statements that compute
        them; the row terms are `ByteRows.terms`. None if they are 0."""
        if not row_zero:
            return [], None
        leads, (depth, columns) = self.source.leads, self.source.shape[-2:]
        shape = [expression(size) for size in (*self.source.shape[:-2], columns)]
        begin = tirx.decl_buffer(shape, "int32", f"{self.source.name}_begin", layout=None)

        def matrix(outer: list[Expr]) -> Stmt:
            def vector(at: Index, count: int) -> Stmt:
                position = [*outer, lanes_of(at, count)]
                old = load(begin, *position)
                ones = splat(_ONES, "int32", count)

                def add(step: Expr) -> Stmt:
                    word = load(self.words, *outer, step, lanes_of(at, count))
                    return store(begin, DOT_U8S8(old, ones, word), *position)

                scaled = old * splat(-row_zero, "int32", count) + splat(depth * row_zero * zero, "int32", count)
                return sequence(
                    store(begin, splat(0, "int32", count), *position),
                    repeat_symbolic("step", self.used, add),
                    store(begin, scaled, *position),
                )

            return split_repeat("column", columns, self.lanes, vector)

        return [tirx.AllocBuffer(begin), parallel_grid(leads, matrix, self.machine, parallel=self._threads())], begin


def _word(byte: int, count: int = WORD_BYTES) -> int:
    """An int32 with the byte repeated `count` times, zeros above."""
    return int.from_bytes(bytes([byte] * count), "little", signed=count == WORD_BYTES)


class ByteRows(NarrowRows):
    """Rows of unsigned bytes."""

    dtype: ClassVar[str] = "uint8"

    def put(self, i: Index, k: Expr, value: Expr) -> Stmt:
        """The statement that stores a byte; signed ones are shifted by 128."""
        shift = DOT_U8S8.shift(str(value.ty))
        if shift:
            value = tirx.Cast("uint8", tirx.Cast("int32", value) + shift)
        return store(self.buffer, value, i, k)

    def terms(self, zero: int, machine: Machine) -> tuple[list[Stmt], Buffer | None]:
        """-zero times the sum of each row, int32 (rows), and the statements that compute it; None if zero is 0."""
        if not zero:
            return [], None
        name = f"{self.buffer.name}_terms"
        terms = tirx.decl_buffer([expression(self.rows)], "int32", name, layout=None)
        i, k = tirx.Var("i", "int64"), tirx.Var("k", "int64")
        byte = tirx.Cast("int32", load(self.buffer, i, k))
        stage = Stage(
            name,
            (Axis(i, self.rows), Axis(k, self.size, reduce=True)),
            store(terms, load(terms, i) + byte * tirx.IntImm("int32", -zero), i),
            store(terms, tirx.IntImm("int32", 0), i),
        )
        return [tirx.AllocBuffer(terms), stage_code(stage, machine, parallel=False)], terms


_BYTES = ("int8", "uint8")


class IntegerAttentionWriter(AttentionWriter):
    """Writes attention whose operands and weights are bytes; sums are int32."""

    operation: ClassVar[Operation] = DOT_U8S8

    def _prepare(self) -> tuple[list[Stmt], Factor, Factor]:
        parts = self.parts
        query_zero, key_zero, weights_zero, value_zero = parts.zeros
        key, value = (PackedInt8.of(each, self.machine, *self.whole_words) for each in (parts.key, parts.value))
        assert parts.weights is not None  # weights are rounded in a stage
        dtypes = dtype_of(parts.query.buffer), dtype_of(parts.weights.body.buffer)
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
        queries = ByteRows.of("queries", rows, self.depth, *self.whole_rows)
        weights = ByteRows.of("weights", rows, self.keys, *self.whole_rows)

        of_queries, query_terms = queries.terms(self._column_zeros[0], self.machine)
        of_weights, weight_terms = weights.terms(self._column_zeros[1], self.machine)
        statements = [*queries.allocated(), queries.filled(query, 4 * self.lanes), *of_queries, *weights.allocated()]
        terms = of_weights, query_terms, weight_terms, (queries, weights)
        return BlockRows(statements, queries.word, weights.word, put_in(scores), weights.put, *terms)

    @property
    def in_words(self) -> bool:
        return True


class AttentionInt8(Attention):
    """Serves the kernels of `attention_compute.attention` between 8-bit integers, of known sizes."""

    name: ClassVar[str] = "attention-int8"
    version: ClassVar[int] = 1

    kind: ClassVar[str] = ATTENTION_INT8
    dtypes: ClassVar[tuple[str, ...]] = _BYTES
    writer: ClassVar[type[AttentionWriter]] = IntegerAttentionWriter

    def estimate(self, workload: AttentionWorkload, config: Config, machine: Machine) -> None:
        """None: the estimate for float32 matmuls does not apply to integers."""
