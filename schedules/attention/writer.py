"""Code of attention by blocks of queries: scores, softmax and the weighted sum of values without a trip to memory.

A task computes as many queries as a register tile has rows. Their scores for all keys stay in the L2 cache; one pass
finds the maximum, one exponentiates and sums, and the matmul with the values is divided by the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import ClassVar, TypeAlias

from schedules.attention.operands import (
    AttentionParts,
    BatchedMatrix,
    NarrowRows,
    Operand,
    PackedBf16,
    in_panels,
    with_contiguous_columns,
)
from schedules.codegen.nest import (
    Extent,
    allocate,
    in_vectors,
    load,
    parallel_grid,
    repeat,
    repeat_symbolic,
    sequence,
    split_repeat,
    store,
)
from schedules.codegen.parallel import MIN_PARALLEL_WORK, pays_off
from schedules.codegen.register_tile import RegisterTile, Taps, block_sums, multiply_add
from schedules.instructions.dot_products.amx import COLUMNS, ROW_BYTES, ROWS, STEPS
from schedules.instructions.dot_products.operation import DOT_BF16, Instruction, Operation
from schedules.instructions.dot_products.table import tile_instruction
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE, call
from schedules.ir.expression import expression, index
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Stage, shape_of
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import join, stage_code

# Softmax of attention scores, row by row: the maximum of a row, then exponentials and their sum in one pass.

UNROLLED = tirx.ForKind.UNROLLED
_ACCUMULATORS = 4  # independent sums that hide the latency of an addition


@dataclass(frozen=True, eq=False)
class Softmax:
    """exp(score - maximum of its row) of `scores` (rows, keys), and the row sums of these in `totals` (rows).

    `largest` (rows) is scratch space for one number per row. `put(row, key, power)` makes the statement that stores an
    exponential, which may overwrite its score; `coarse` if it rounds to bfloat16.
    """

    rows: int
    keys: Index
    scores: Expr
    largest: Expr
    totals: Expr
    put: Callable[[Expr, Expr, Expr], Stmt]
    machine: Machine
    coarse: bool

    def code(self) -> list[Stmt]:
        """The statements, in order."""
        return [self._largest_of_rows(), repeat_symbolic("row", self.rows, self._powers_of_row)]

    @property
    def _lanes(self) -> int:
        return self.machine.lanes("float32")

    def _largest_of_rows(self) -> Stmt:
        i, j = tirx.Var("i", "int64"), tirx.Var("j", "int64")
        score, maximum = tirx.BufferLoad(self.scores, [i, j]), tirx.BufferLoad(self.largest, [i])
        stage = Stage(
            "largest",
            (Axis(i, self.rows), Axis(j, self.keys, reduce=True)),
            tirx.BufferStore(self.largest, tirx.Max(maximum, score), [i]),
            tirx.BufferStore(self.largest, tirx.min_value("float32"), [i]),
        )
        return stage_code(stage, self.machine, parallel=False)

    def _powers_of_row(self, i: Expr) -> Stmt:
        lanes, group = self._lanes, _ACCUMULATORS * self._lanes
        sums = tirx.decl_buffer([group], "float32", "sums", scope="local", layout=None)
        power = tirx.decl_buffer([group], "float32", "power", scope="local", layout=None)
        exp = EXP_OF_NEGATIVE_COARSE if self.coarse else EXP_OF_NEGATIVE

        def vector(at: Expr, register: Expr, count: int) -> Stmt:
            """Process `count` keys from `at` on, and add them to the sums of a register."""

            def lane(make: Callable[[Expr], Stmt]) -> Stmt:
                return repeat_symbolic("lane", count, make, VECTORIZED)

            def raised(j: Expr) -> Expr:
                return call(exp, tirx.BufferLoad(self.scores, [i, at + j]) - tirx.BufferLoad(self.largest, [i]))

            def held(buffer: Expr, j: Expr) -> Expr:
                return tirx.BufferLoad(buffer, [register + j])

            return sequence(
                [
                    lane(lambda j: tirx.BufferStore(power, raised(j), [register + j])),
                    lane(lambda j: self.put(i, at + j, held(power, j))),
                    lane(lambda j: tirx.BufferStore(sums, held(sums, j) + held(power, j), [register + j])),
                ]
            )

        zero = tirx.FloatImm("float32", 0.0)
        start = repeat_symbolic("lane", group, lambda j: tirx.BufferStore(sums, zero, [j]), VECTORIZED)
        joined = join(sums, group, lambda a, b: a + b, "int64")
        total = tirx.BufferStore(self.totals, tirx.BufferLoad(sums, [expression(0)]), [i])
        allocations = [tirx.AllocBuffer(sums), tirx.AllocBuffer(power)]
        return sequence([*allocations, start, *over_keys(self.keys, lanes, vector), *joined, total])


def rounded_weights(
    rows: int, keys: Index, totals: Expr, weight: Callable[[Expr, Expr, Expr], Stmt], machine: Machine
) -> Stmt:
    """Apply `weight(row, key, 1 / total of the row)` to every exponential, in vectors of keys; inverts `totals`."""

    def row(i: Expr) -> Stmt:
        at = [expression(i)]
        inverse = tirx.BufferLoad(totals, at)

        def vector(first: Expr, _: Expr, count: int) -> Stmt:
            return repeat_symbolic("lane", count, lambda j: weight(i, first + j, inverse), VECTORIZED)

        divided = tirx.BufferStore(totals, tirx.FloatImm("float32", 1.0) / inverse, at)
        return sequence([divided, *over_keys(keys, machine.lanes("float32"), vector)])

    return repeat_symbolic("row", rows, row)


def over_keys(keys: Index, lanes: int, vector: Callable[[Expr, Expr, int], Stmt]) -> list[Stmt]:
    """`vector(first key, first element of a group of registers, lanes)` for all keys: groups of vectors, then single
    vectors and a shorter one, or single keys if the number of keys is not known."""
    group, first = _ACCUMULATORS * lanes, expression(0)

    def in_group(at: Expr) -> Stmt:
        return repeat_symbolic("register", _ACCUMULATORS, lambda u: vector(at + u * lanes, u * lanes, lanes), UNROLLED)

    if isinstance(keys, int):
        full_groups, remaining = divmod(keys, group)
        done = expression(full_groups * group)
        rest = [vector(done + at, first, min(lanes, remaining - at)) for at in range(0, remaining, lanes)]
        return [repeat_symbolic("group", full_groups, lambda g: in_group(g * group)), *rest] if full_groups else rest
    groups = tirx.FloorDiv(keys, expression(group))
    vectors = tirx.FloorDiv(keys - groups * group, expression(lanes))
    done_keys = groups * group + vectors * lanes
    return [
        repeat_symbolic("group", groups, lambda g: in_group(g * group)),
        repeat_symbolic("vector", vectors, lambda v: vector(groups * group + v * lanes, first, lanes)),
        repeat_symbolic("rest", keys - done_keys, lambda j: vector(done_keys + j, first, 1)),
    ]


_PANEL = 2  # vectors of columns of a register tile
_BLOCKS_FOR_PANELS = 8  # blocks of queries

Put: TypeAlias = "Callable[[Index, Expr, Expr], Stmt]"  # stores a number of a row at a key
EndOfSum = Callable[["Index", Expr, Expr], Stmt]  # called with (row, sum, column)


@dataclass(frozen=True, eq=False)
class Factor:
    """The right operand of a matmul: reduction steps by columns, and the initial values of sums (..., columns)."""

    matrix: BatchedMatrix
    begin: Buffer | None = None


@dataclass(frozen=True, eq=False)
class BlockRows:
    """The left operands of a block: `statements` allocate and fill them; `weighed` run once weights are known.

    Terms are added to the sums of a row, if there are any. `narrow` are the rows of queries and weights in words, if
    they are stored as words.
    """

    statements: list[Stmt]
    queries: Operand
    weights: Operand
    put_power: Put
    put_weight: Put
    weighed: list[Stmt] = field(default_factory=list)
    query_terms: Buffer | None = None
    weight_terms: Buffer | None = None
    narrow: tuple[NarrowRows, NarrowRows] | None = None


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Blocks `begin` to `end`, each of `rows` queries; the first one starts at query `query`."""

    begin: Index
    end: Index
    query: Index
    rows: int

    def start_of(self, number: Expr) -> Expr:
        """The first query of a block."""
        return self.query + (number - self.begin) * self.rows


class AttentionWriter:
    """Writes float32 attention, with matmuls of float32 or of pairs of bfloat16."""

    operation: ClassVar[Operation] = DOT_BF16
    """The instruction that sums products of words, if operands are words."""

    def __init__(self, parts: AttentionParts, machine: Machine, rows: int) -> None:
        self.parts = parts
        self.machine = machine
        self.rows = rows
        self.lanes = machine.lanes("float32")
        *self.leading, self.queries, self.depth = parts.query.shape
        self.keys, self.columns = parts.value.shape[-2:]
        self.dtype = self.operation.total
        many = self.in_words and parts.has_many_queries
        self.tiles = attention_tiles(machine, self.operation) if many else None
        self.whole_words = (1, 1) if self.tiles is None else (STEPS, _PANEL * self.lanes)
        self.whole_rows = (1, 1) if self.tiles is None else (ROWS, ROW_BYTES * self.operation.group // 4)
        self.prepared, self.key, self.value = self._prepare()

    @property
    def in_words(self) -> bool:
        """True if operands are words of narrow neighbors."""
        return self.parts.narrow

    def _prepare(self) -> tuple[list[Stmt], Factor, Factor]:
        """Preparation shared by all blocks: statements, and the right operands of the products."""
        parts = self.parts
        if parts.narrow:
            pairs = [PackedBf16.of(each, self.machine, *self.whole_words) for each in (parts.key, parts.value)]
            statements = [statement for each in pairs for statement in each.made()]
            key, value = (Factor(BatchedMatrix.whole(each.words)) for each in pairs)
            return statements, key, value
        statements, key = self._right_operand(parts.key)
        packed, value = self._right_operand(parts.value)
        return [*statements, *packed], key, value

    def _right_operand(self, matrix: BatchedMatrix) -> tuple[list[Stmt], Factor]:
        """The operand itself if its columns are contiguous; otherwise, or if it pays off, a copy."""
        if self._pays_in_panels(matrix):
            statements, packed = in_panels(matrix, min(matrix.shape[-1], _PANEL * self.lanes), self.machine)
            return statements, Factor(packed)
        if matrix.runs_along(-1):
            return [], Factor(matrix)
        statements, turned = with_contiguous_columns(matrix, self.machine)
        return statements, Factor(turned)

    def _pays_in_panels(self, matrix: BatchedMatrix) -> bool:
        """True if many blocks of queries read a matrix that fills much of the L2 cache (Whisper's encoder, 1500 x 64:
        3.4 % of the time of attention; at 197 x 64 a copy costs 3 %)."""
        rows, columns = matrix.shape[-2:]
        if not all(isinstance(size, int) for size in (rows, columns, self.queries)):
            return False
        large = 4 * rows * columns > self.machine.l2_bytes // 4
        return large and self.queries >= _BLOCKS_FOR_PANELS * self.rows

    def _rows_of(self, rows: int, query: Operand, scores: Buffer) -> BlockRows:
        """The left operands of a block; exponentials overwrite scores, or in bfloat16 use a buffer of their own."""

        def power(i: Index, k: Expr) -> Expr:
            return tirx.BufferLoad(scores, [expression(i), k])

        if not self.parts.narrow:
            return BlockRows([], query, power, put_in(scores), put_in(scores))
        rounded = NarrowRows.of("queries", rows, self.depth, *self.whole_rows)
        weights = NarrowRows.of("weights", rows, self.keys, *self.whole_rows)
        made = [*rounded.allocated(), rounded.filled(query, self.lanes), *weights.allocated()]
        return BlockRows(made, rounded.word, weights.word, weights.put, weights.put, narrow=(rounded, weights))

    def _combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return self.operation(total, a, b) if self.in_words else multiply_add(total, a, b)

    def code(self) -> Stmt:
        """Tasks over the leading dimensions and blocks of queries; the remaining queries are a block of their own."""
        amount = prod((self.depth + self.columns, *self.leading, self.queries, self.keys))
        threads = pays_off(amount, self.machine, MIN_PARALLEL_WORK * self.lanes // 4)
        blocks = self._blocks()

        def task(values: list[Expr]) -> Stmt:
            *leading, number = values
            *full_blocks, last = blocks
            code = self._block(leading, last.start_of(number), last.rows)
            for each in full_blocks:
                code = tirx.IfThenElse(number < each.end, self._block(leading, each.start_of(number), each.rows), code)
            return code

        extents = [Extent(f"batch{i}", extent) for i, extent in enumerate(self.leading)]
        extents.append(Extent("block", blocks[-1].end))
        return sequence([*self.prepared, parallel_grid(extents, task, self.machine, parallel=threads)])

    def _blocks(self) -> list[_Blocks]:
        """Blocks of as many queries as fit in registers, and one of the remainder."""
        if isinstance(self.queries, int):
            whole, left = divmod(self.queries, self.rows)
            found = [_Blocks(0, whole, 0, self.rows), _Blocks(whole, whole + 1, whole * self.rows, left)]
            return [each for each in found if each.end != each.begin and each.rows]
        many = tirx.FloorDiv(self.queries, index(self.rows))
        done = many * self.rows
        single = [_Blocks(many, many + (self.queries - done), done, 1)] if self.rows > 1 else []
        return [_Blocks(0, many, 0, self.rows), *single]

    def _block(self, leading: list[Expr], row: Expr, rows: int) -> Stmt:
        scores = tirx.decl_buffer([rows, self.keys], "float32", "scores", layout=None)
        largest = tirx.decl_buffer([rows], "float32", "largest", layout=None)
        totals = tirx.decl_buffer([rows], "float32", "totals", layout=None)
        statements = [tirx.AllocBuffer(each) for each in (scores, largest, totals)]
        left = self._rows_of(rows, lambda i, k: self.parts.query.load(*leading, row + i, k), scores)

        def scores_of(at: Expr, width: int) -> Stmt:
            def end(i: Index, total: Expr, column: Expr) -> Stmt:
                value = self.parts.score(_plus(total, left.query_terms, i), [*leading, row + i, column])
                return store(scores, value, i, column)

            if self.tiles is not None and left.narrow is not None:
                return self._in_tiles(self.tiles, width, left.narrow[0], self.key, leading, at, end)
            return self._tile(rows, width, left.queries, self.key, leading, at, end)

        def values_of(at: Expr, width: int) -> Stmt:
            def end(i: Index, total: Expr, column: Expr) -> Stmt:
                whole = tirx.BufferLoad(totals, [expression(i)])
                value = self.parts.finished(_plus(total, left.weight_terms, i), whole)
                stored = self.parts.stored
                return tirx.BufferStore(stored.buffer, value, stored.position([*leading, row + i, column]))

            if self.tiles is not None and left.narrow is not None:
                return self._in_tiles(self.tiles, width, left.narrow[1], self.value, leading, at, end)
            return self._tile(rows, width, left.weights, self.value, leading, at, end)

        softmax = Softmax(rows, self.keys, scores, largest, totals, left.put_power, self.machine, self.parts.narrow)
        statements += [*left.statements, self._over_panels(self.keys, scores_of), *softmax.code()]
        if self.parts.weights is not None:

            def weight(i: Index, k: Expr, inverse: Expr) -> Stmt:
                power = tirx.BufferLoad(scores, [expression(i), k])
                return left.put_weight(i, k, self.parts.weight(power, inverse))

            statements.append(rounded_weights(rows, self.keys, totals, weight, self.machine))
        return sequence([*statements, *left.weighed, self._over_panels(self.columns, values_of)])

    def _tile(self, rows: int, width: int, a: Operand, b: Factor, leading: list[Expr], at: Expr, end: EndOfSum) -> Stmt:
        """A tile of a . b, starting at column `at` of b; each sum is passed to `end`."""
        tile = RegisterTile(rows, width, self.lanes, self.dtype, self._combine)

        def begin(i: int, column: Expr) -> Expr:
            return tirx.const(0, self.dtype) if b.begin is None else load(b.begin, *leading, at + column)

        ends = tile.each(lambda i, position, column: end(i, tile.sum(i, position), at + column))
        matrix = b.matrix
        return sequence(
            tile.code(matrix.shape[-2], a, lambda k, column: matrix.load_in_panel(leading, k, at, column), begin, ends)
        )

    def _in_tiles(
        self,
        instruction: Instruction,
        width: int,
        rows: NarrowRows,
        b: Factor,
        leading: list[Expr],
        at: Expr,
        end: EndOfSum,
    ) -> Stmt:
        """`_tile` by an instruction with tile accumulators: the sums of a panel pass through memory."""
        words, panel = b.matrix.buffer, _PANEL * self.lanes
        steps, columns = shape_of(words)[-2:]
        sums, allocation = allocate("tile", (ceil_div(rows.rows, ROWS) * ROWS, panel), self.dtype)
        taps, first = Taps.run(steps // STEPS), load(words, *leading, 0, at)

        def element(i: Index) -> Expr:
            return load(rows.buffer, i, 0)

        summed = block_sums(instruction, element, rows.pitch, taps, first, sums, rows.rows, b_pitch=4 * columns)

        def total(i: Index, j: Expr) -> Expr:
            return load(sums, i, j) if b.begin is None else load(sums, i, j) + load(b.begin, *leading, at + j)

        def row(i: Index) -> Stmt:
            return in_vectors("column", width, self.lanes, lambda j: end(i, total(i, j), at + j))

        return sequence(allocation, summed, repeat("row", rows.rows, row))

    def _over_panels(self, columns: Index, tile: Callable[[Expr, int], Stmt]) -> Stmt:
        """Panels of two vectors, then the remainder: in vectors, and in single columns if it is not known."""
        panel = _PANEL * self.lanes
        if isinstance(columns, int):
            return split_repeat("panel", columns, panel, lambda at, width: tile(expression(at), width))

        def panels(start: Expr, width: int, p: Expr) -> Stmt:
            return tile(start + p * width, width)

        parts, done = [], index(0)
        for width in sorted({panel, self.lanes, 1}, reverse=True):
            count = tirx.FloorDiv(columns - done, index(width))
            parts.append(repeat_symbolic("panel", count, partial(panels, done, width)))
            done = done + count * width
        return sequence(parts)


def put_in(scores: Buffer) -> Put:
    """Return a function that stores numbers in a buffer (rows, keys)."""
    return lambda i, k, value: tirx.BufferStore(scores, value, [expression(i), k])


def _plus(total: Expr, terms: Buffer | None, row: Index) -> Expr:
    return total if terms is None else total + tirx.BufferLoad(terms, [expression(row)])


def attention_tiles(machine: Machine, operation: Operation) -> Instruction | None:
    """The instruction with tile accumulators for an attention operation, if the machine has one."""
    return tile_instruction(machine, operation) if machine.lanes("float32") == COLUMNS else None
