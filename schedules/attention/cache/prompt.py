"""Attention of many queries over a cache, bound by arithmetic.

A task computes as many rows (a query and one of the heads that share a key) as a register tile has, and reads the keys
that these may see in blocks: matmuls with panels of packed keys, softmax, matmuls with values.

The keys and values of a cache are packed once, in parallel, for all queries.

Keys are stored in panels of two vectors of keys, so that a step along the head size is one load of each. Values stay
row-major; float32 values are read from the cache itself. If matmuls multiply pairs of bfloat16, a word holds two
neighbors along the reduction: elements of a key, or the values of two rows.

Softmax runs over blocks of keys, for several rows (a query and head each), with a state carried from block to block:
when a block holds a larger score than those before, the sums so far are scaled down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from schedules.attention.cache.description import BIAS, KEY, LOWEST, SEQUENCES, SINKS, VALUE, CacheOperands
from schedules.attention.compute import guarded_quotient
from schedules.attention.operands import NarrowRows
from schedules.codegen.nest import (
    Extent,
    allocate,
    in_vectors,
    load,
    parallel_grid,
    repeat,
    sequence,
    split_repeat,
    store,
    vectorized,
    when,
)
from schedules.codegen.register_tile import RegisterTile, Taps, block_sums, multiply_add
from schedules.instructions.dot_products.amx import BLOCK_ROWS, COLUMNS, ROW_BYTES, STEPS, WIDTHS
from schedules.instructions.dot_products.operation import DOT_BF16, Instruction
from schedules.instructions.rounding import rounded_pair, rounded_run
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE, call
from schedules.ir.expression import expression
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import join, stage_code

# An element of a matrix at (row, column).
Element: TypeAlias = "Callable[[Index, Expr], Expr]"
Combine = Callable[[Expr, Expr, Expr], Expr]
Ahead = Callable[[Expr], list[Stmt]]


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of a buffer starting at `first`: matrices with the same rows share one allocation."""

    buffer: Expr
    first: int

    def load(self, row: Index, column: Index = 0) -> Expr:
        """An element."""
        return load(self.buffer, row, self._position(column))

    def store(self, value: Expr, row: Index, column: Index = 0) -> Stmt:
        """The statement that stores an element."""
        return store(self.buffer, value, row, self._position(column))

    def _position(self, column: Index) -> Index:
        return column + self.first if self.first else column


@dataclass(frozen=True, eq=False)
class RunningSoftmax:
    """Softmax state of `rows` rows: scores (rows, keys) of a block, the largest score, the sum of exponentials, the
    correction of the sums before the block, and sums (rows, columns) of weighted values."""

    rows: int
    keys: int
    columns: int
    machine: Machine
    scores: Columns
    sums: Columns
    largest: Columns
    totals: Columns
    corrections: Columns
    further: Columns

    @classmethod
    def of(
        cls, rows: int, keys: int, columns: int, machine: Machine, further: int = 0
    ) -> tuple[RunningSoftmax, list[Stmt]]:
        """Create the state for blocks of at most `keys` keys, a whole number of vectors, with the statements that
        allocate it; `further` additional columns of each row are for other uses."""
        lanes = machine.lanes("float32")
        starts = [0]
        for width in (keys, columns, further):
            starts.append(starts[-1] + -(-width // lanes) * lanes)
        *_, end = starts
        buffer, allocation = allocate("own_rows", [rows, -(-(end + 3) // lanes) * lanes], "float32")
        positions = [*starts[:2], end, end + 1, end + 2, starts[2]]
        return cls(rows, keys, columns, machine, *(Columns(buffer, each) for each in positions)), [allocation]

    def start(self) -> Stmt:
        """Initialize the state before the first block."""
        zero = tirx.FloatImm("float32", 0.0)

        def row(i: Expr) -> Stmt:
            return sequence(
                self.largest.store(LOWEST, i),
                self.totals.store(zero, i),
                repeat("d", self.columns, lambda d: self.sums.store(zero, i, d)),
            )

        return repeat("row", self.rows, row)

    def powers(self, vectors: Expr, put: Callable[[Expr, Expr, Expr], Stmt] | None = None) -> Stmt:
        """Exponentiate the scores of a block (`vectors` vectors of them); `put(row, key, power)` stores the results
        rounded
        elsewhere, so that they need not be exact."""
        lanes = self.machine.lanes("float32")
        peak, peak_made = allocate("most", [lanes], "float32", "local")
        power, power_made = allocate("power", [lanes], "float32", "local")
        added, added_made = allocate("added", [lanes], "float32", "local")
        exp = EXP_OF_NEGATIVE if put is None else EXP_OF_NEGATIVE_COARSE
        keep = put or (lambda i, key, value: self.scores.store(value, i, key))

        def in_lanes(make: Callable[[Expr], Stmt]) -> Stmt:
            return vectorized("lane", lanes, make)

        def row(i: Expr) -> Stmt:
            def score(vector: Expr, lane: Expr) -> Expr:
                return self.scores.load(i, vector * lanes + lane)

            def raised(vector: Expr) -> Stmt:
                return sequence(
                    in_lanes(lambda lane: store(power, call(exp, score(vector, lane) - self.largest.load(i)), lane)),
                    in_lanes(lambda lane: keep(i, vector * lanes + lane, load(power, lane))),
                    in_lanes(lambda lane: store(added, load(added, lane) + load(power, lane), lane)),
                )

            old_largest = self.largest.load(i)
            largest = tirx.max(old_largest, load(peak, 0))
            return sequence(
                in_lanes(lambda lane: store(peak, LOWEST, lane)),
                repeat(
                    "vector",
                    vectors,
                    lambda v: in_lanes(lambda lane: store(peak, tirx.max(load(peak, lane), score(v, lane)), lane)),
                ),
                join(peak, lanes, tirx.max, "int64"),
                self.corrections.store(call(EXP_OF_NEGATIVE, old_largest - largest), i),
                self.largest.store(largest, i),
                in_lanes(lambda lane: store(added, tirx.FloatImm("float32", 0.0), lane)),
                repeat("vector", vectors, raised),
                join(added, lanes, lambda a, b: a + b, "int64"),
                self.totals.store(self.totals.load(i) * self.corrections.load(i) + load(added, 0), i),
            )

        return sequence(peak_made, power_made, added_made, repeat("row", self.rows, row))

    def scaled(self, count: Expr, scale: Callable[[Expr], Expr]) -> Stmt:
        """Multiply the first `count` exponentials of a block by the scales of their values; call it after `powers`."""

        def row(i: Expr) -> Stmt:
            def one(k: Expr) -> Stmt:
                return self.scores.store(self.scores.load(i, k) * scale(k), i, k)

            return in_some_vectors(count, self.machine.lanes("float32"), one)

        return repeat("row", self.rows, row)

    def weighted(
        self, depth: Expr, weight: Element, value: Element, combine: Combine = multiply_add, ahead: Ahead = lambda k: []
    ) -> Stmt:
        """Scale down the sums and add the block's values, each times its weight: `depth` steps of the sum. `ahead(k)`
        makes statements that run before step k."""
        lanes = self.machine.lanes("float32")
        parts = []
        for first, rows, vectors in row_tiles(self.rows, self.machine):
            width = vectors * lanes

            def tile(start: Index, columns: int, first: int = first, rows: int = rows) -> Stmt:
                registers = RegisterTile(rows, columns, lanes, "float32", combine)

                def begin(i: int, column: Expr) -> Expr:
                    return self.sums.load(first + i, start + column) * self.corrections.load(first + i)

                ends = registers.each(
                    lambda i, position, column: self.sums.store(registers.sum(i, position), first + i, start + column)
                )
                factors = (lambda i, k: weight(first + i, k)), (lambda k, column: value(k, start + column))
                code = registers.code(depth, *factors, begin, ends, ahead)
                return sequence(code)

            parts.append(split_repeat("panel", self.columns, width, tile))
        return sequence(parts)


def in_some_vectors(count: Expr, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """`body` of 0 to `count` - 1: in vectors, then the remainder one by one."""
    vectors = tirx.floordiv(count, expression(lanes))
    return sequence(
        repeat("vector", vectors, lambda v: vectorized("lane", lanes, lambda lane: body(v * lanes + lane))),
        repeat("rest", count - vectors * lanes, lambda k: body(vectors * lanes + k)),
    )


def max_rows(machine: Machine) -> int:
    """Most rows of a tile of two vectors of sums that fits in registers."""
    return max(1, (machine.vector_registers - 3) // 2)


def row_tiles(rows: int, machine: Machine) -> list[tuple[int, int, int]]:
    """(first row, rows, vectors of columns) of the register tiles that cover some rows."""
    maximum = max_rows(machine)
    if rows <= maximum // 2:
        return [(0, rows, 4)]
    count = -(-rows // maximum)
    size = -(-rows // count)
    return [(first, min(size, rows - first), 2) for first in range(0, rows, size)]


_ZERO = tirx.FloatImm("float32", 0.0)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """`keys` (batch, key heads, panels, steps, panel) and `values` (batch, key heads, steps, columns), None if these
    are read from the cache itself. Both have room for the whole capacity, of which only existing rows are touched.

    With `whole_tiles`, steps and columns are padded to whole tiles, with zeros after the last step of a panel."""

    operands: CacheOperands
    machine: Machine
    narrow: bool
    whole_tiles: bool
    keys: Expr
    values: Expr | None

    @classmethod
    def of(cls, operands: CacheOperands, machine: Machine, *, narrow: bool, whole_tiles: bool = False) -> PackedRows:
        panel, dtype = 2 * machine.lanes("float32"), "int32" if narrow else "float32"
        panels = tirx.floordiv(expression(operands.capacity) + (panel - 1), expression(panel))
        leading = [expression(operands.batch), expression(operands.key_heads)]
        steps, columns = ceil_div(operands.size, 2) if narrow else operands.size, operands.value_size
        if whole_tiles:
            steps, columns = ceil_div(steps, STEPS) * STEPS, ceil_div(columns, COLUMNS) * COLUMNS
        keys = tirx.decl_buffer(
            [*leading, panels, expression(steps), expression(panel)], dtype, "packed_keys", layout=None
        )
        values = None
        if narrow or not operands.is_exact(VALUE):
            depth = panels * (panel // 2 if narrow else panel)
            shape = [*leading, depth, expression(columns)]
            values = tirx.decl_buffer(shape, dtype, "packed_values", layout=None)
        return cls(operands, machine, narrow, whole_tiles, keys, values)

    @property
    def panel(self) -> int:
        """Number of keys in a panel."""
        return 2 * self.machine.lanes("float32")

    @property
    def steps(self) -> int:
        """Number of reduction steps of a score."""
        return int(self.keys.ty.shape[3])

    def key(self, sample: Expr, head: Expr, panel: Expr, step: Expr, column: Expr) -> Expr:
        """Element of key `panel * self.panel + column` that a step multiplies with the query."""
        return load(self.keys, sample, head, panel, step, column)

    def value(self, sample: Expr, slot: Expr, head: Expr, step: Expr, column: Expr) -> Expr:
        """Element of the values that a step multiplies with the weights."""
        if self.values is None:
            return self.operands.row(VALUE, slot, head, step, column)
        return load(self.values, sample, head, step, column)

    def made(self, rows: Expr) -> list[Stmt]:
        """The statements that allocate and fill both; `rows`: the most rows of a sample."""
        operands = self.operands
        panels = tirx.floordiv(rows + (self.panel - 1), expression(self.panel))
        extents = [Extent("sample", operands.batch), Extent("key_head", operands.key_heads), Extent("panel", panels)]
        allocations = [tirx.AllocBuffer(each) for each in (self.keys, self.values) if each is not None]
        return [
            *allocations,
            parallel_grid(extents, lambda at: self._panel(*at), self.machine, parallel=self.machine.cores > 1),
        ]

    def _panel(self, sample: Expr, head: Expr, panel: Expr) -> Stmt:
        first, end = tirx.Var("first", "int64"), tirx.Var("end", "int64")
        slot = tirx.Var("slot", "int64")
        at = (sample, slot)
        filled = sequence(
            self._keys_of(at, head, panel, first, end),
            None if self.values is None else self._values_of(at, head, panel, first, end),
        )
        return sequence(
            tirx.Bind(first, panel * self.panel),
            tirx.Bind(end, prompt_rows(self.operands, sample)),
            tirx.Bind(slot, self.operands.slot_of(sample)),
            tirx.IfThenElse(first < end, filled, None),
        )

    def _keys_of(self, at: tuple[Expr, Expr], head: Expr, panel: Expr, first: Expr, end: Expr) -> Stmt:
        """Copy the keys of a panel, repeating the last one past the end, and transpose them. `at`: sample and slot."""
        sample, slot = at
        operands, lanes = self.operands, self.machine.lanes("float32")
        width = 2 * self.steps if self.narrow else self.steps
        copied, copied_made = allocate("own_keys", [self.panel, width], "float32")

        def key(j: Expr) -> Stmt:
            row = tirx.min(first + j, end - 1)
            copy = in_vectors(
                "d", operands.size, lanes, lambda d: store(copied, operands.row(KEY, slot, head, row, d), j, d)
            )
            behind = repeat("d", width - operands.size, lambda d: store(copied, _ZERO, j, operands.size + d))
            return sequence(copy, behind if width > operands.size else None)

        parts = [copied_made, repeat("j", self.panel, key)]
        source = copied
        if self.narrow:
            source, words_made = allocate("own_words", [self.panel, self.steps], "int32")
            parts += [words_made, repeat("j", self.panel, lambda j: self._words(copied, source, j))]
        d, j = tirx.Var("step", "int64"), tirx.Var("j", "int64")
        transposed = store(self.keys, load(source, j, d), sample, head, panel, d, j)
        stage = Stage("transpose", (Axis(d, self.steps), Axis(j, self.panel)), transposed)
        return sequence(*parts, stage_code(stage, self.machine, parallel=False))

    def _words(self, copied: Expr, words: Expr, j: Expr) -> Stmt:
        """Round a copied key to pairs of bfloat16."""
        lanes = self.machine.lanes("float32")
        runs, rest = divmod(self.steps, lanes)

        def run(at: Expr, lane: Expr) -> Stmt:
            first = at * (2 * lanes) + lane
            halves = [load(copied, j, each) for each in (first, first + lanes)]
            return store(words, rounded_run(*halves), j, at * lanes + lane)

        def single(at: Expr) -> Stmt:
            pair = [load(copied, j, 2 * (at + runs * lanes) + i) for i in range(2)]
            return store(words, rounded_pair(*pair), j, at + runs * lanes)

        return sequence(
            repeat("run", runs, lambda at: vectorized("lane", lanes, lambda lane: run(at, lane))) if runs else None,
            repeat("single", rest, single) if rest else None,
        )

    def _values_of(self, at: tuple[Expr, Expr], head: Expr, panel: Expr, first: Expr, end: Expr) -> Stmt:
        """Values of a panel's rows; 0 past the last one."""
        sample, slot = at
        operands, lanes = self.operands, self.machine.lanes("float32")

        def value(row: Expr, d: Expr) -> Expr:
            return operands.row(VALUE, slot, head, tirx.min(row, end - 1), d)

        def row(j: Expr) -> Stmt:
            at = panel * self.panel + j
            return in_vectors(
                "d", operands.value_size, lanes, lambda d: store(self.values, value(at, d), sample, head, at, d)
            )

        def nothing(j: Expr) -> Stmt | None:
            if not self.whole_tiles:
                return None
            position, zero = panel * (self.panel // 2) + j, tirx.IntImm("int32", 0)
            return in_vectors(
                "d", operands.value_size, lanes, lambda d: store(self.values, zero, sample, head, position, d)
            )

        def pair(j: Expr) -> Stmt:
            at = first + j * 2
            is_whole = at + 1 < end

            def word(d: Expr, *, whole: bool) -> Stmt:
                made = rounded_pair(value(at, d), value(at + 1, d) if whole else _ZERO)
                return store(self.values, made, sample, head, panel * (self.panel // 2) + j, d)

            both, single = (
                in_vectors("d", operands.value_size, lanes, lambda d, whole=whole: word(d, whole=whole))  # type: ignore[misc]
                for whole in (True, False)
            )
            return tirx.IfThenElse(at < end, tirx.IfThenElse(is_whole, both, single), nothing(j))

        return repeat("j", self.panel // 2, pair) if self.narrow else repeat("j", self.panel, row)


def prompt_rows(operands: CacheOperands, sample: Expr) -> Expr:
    """Number of packed rows of a sample: 0 if it has no queries for this kernel."""
    rows = operands.rows_of(sample)
    if SEQUENCES not in operands:
        return rows
    return tirx.Select(operands.few_of(sample, few=False) > 0, rows, expression(0))


_KEYS = 128  # per block
_MINUS_INFINITY = tirx.FloatImm("float32", float("-inf"))


@dataclass(frozen=True, eq=False)
class _Tile:
    """Several rows of a key head of a sample, and the keys they may see."""

    sample: Expr
    slot: Expr
    key_head: Expr
    queries_of: Expr
    first_row: Expr
    position: Expr
    rows: Expr
    softmax: RunningSoftmax
    queries: Buffer
    weights: Buffer
    ranges: Expr


class PromptWriter:
    """Writes the kernel for any number of queries; `narrow` rounds operands to bfloat16, and `tiles`, if given, is the
    instruction with tile accumulators that multiplies them."""

    def __init__(
        self, operands: CacheOperands, machine: Machine, *, narrow: bool, tiles: Instruction | None = None
    ) -> None:
        self.operands, self.machine, self.narrow, self.tiles = operands, machine, narrow, tiles
        self.lanes = machine.lanes("float32")
        self.height = max_rows(machine) if tiles is None else BLOCK_ROWS
        self.combine = DOT_BF16 if narrow else multiply_add

    def code(self) -> Stmt:
        """Pack keys and values, then compute all tiles."""
        operands = self.operands
        rows = tirx.Var("all_rows", "int64")
        packed = PackedRows.of(operands, self.machine, narrow=self.narrow, whole_tiles=self.tiles is not None)
        maximum, maximum_made = allocate("most_rows", [2], "int64", "local")
        queries = load(maximum, 1) if SEQUENCES in operands else expression(operands.queries)
        tiles = tirx.floordiv(queries * operands.group + (self.height - 1), expression(self.height))
        extents = [Extent("sample", operands.batch), Extent("key_head", operands.key_heads), Extent("tile", tiles)]

        def task(at: list[Expr]) -> Stmt:
            # Alternate from both ends: later queries see more keys, and each thread gets neighboring tiles.
            half = tirx.floordiv(at[2], expression(2))
            position = tirx.Select(tirx.floormod(at[2], expression(2)) == 0, half, tiles - 1 - half)
            return self._tile(packed, at[0], at[1], position * self.height)

        code = sequence(
            tirx.Bind(rows, load(maximum, 0)),
            packed.made(rows),
            parallel_grid(extents, task, self.machine, parallel=self.machine.cores > 1),
        )
        return sequence(
            self._max_sizes(maximum, maximum_made), when(queries > 0, code) if SEQUENCES in operands else code
        )

    def _max_sizes(self, maximum: Expr, allocation: Stmt) -> list[Stmt]:
        """The most rows of a sample, and the most queries."""
        operands = self.operands

        def sample(b: Expr) -> Stmt:
            return sequence(
                store(maximum, tirx.max(load(maximum, 0), prompt_rows(operands, b)), 0),
                store(maximum, tirx.max(load(maximum, 1), operands.few_of(b, few=False)), 1),
            )

        start = [store(maximum, expression(1), 0), store(maximum, expression(0), 1)]
        return [allocation, *start, repeat("sample", operands.batch, sample)]

    def _tile(self, packed: PackedRows, sample: Expr, key_head: Expr, first_row: Expr) -> Stmt:
        operands, height = self.operands, self.height
        softmax, allocations = RunningSoftmax.of(
            height, _KEYS, operands.value_size, self.machine, further=operands.size
        )
        ranges, ranges_made = allocate("ranges", [2, height], "int64")
        queries = weights = None
        if self.narrow:
            queries = NarrowRows.of("queries", height, operands.size, size_of=1 if self.tiles is None else 2 * STEPS)
            weights = NarrowRows.of("weights", height, _KEYS)
            allocations = [*allocations, *queries.allocated(), *weights.allocated()]
        names = ("row_0", "position", "rows", "slot", "own_count")
        first, position, rows, slot, count_of = (tirx.Var(name, "int64") for name in names)
        tile = _Tile(sample, slot, key_head, count_of, first, position, rows, softmax, queries, weights, ranges)
        begin, end = load(ranges, 0, 0), load(ranges, 1, height - 1)
        start, count = tirx.Var("start_block", "int64"), tirx.Var("blocks", "int64")
        code = sequence(
            allocations,
            ranges_made,
            tirx.Bind(position, operands.first_position(sample)),
            tirx.Bind(rows, operands.rows_of(sample)),
            tirx.Bind(slot, operands.slot_of(sample)),
            softmax.start(),
            repeat("j", height, lambda j: self._row_start(tile, j)),
            tirx.Bind(start, tirx.floordiv(begin, expression(_KEYS))),
            tirx.Bind(count, tirx.max(tirx.floordiv(end + (_KEYS - 1), expression(_KEYS)) - start, expression(0))),
            repeat("block", count, lambda b: self._block(packed, tile, (start + b) * _KEYS)),
            repeat("j", height, lambda j: self._row_end(tile, j)),
        )
        bound = [tirx.Bind(first, first_row), tirx.Bind(count_of, operands.few_of(sample, few=False))]
        return sequence(*bound, when(first < count_of * operands.group, code) if SEQUENCES in operands else code)

    def _position(self, tile: _Tile, j: Expr) -> tuple[Expr, Expr, list[Stmt]]:
        """Query and head of a row, and the statements that bind them; past the last row, the last one again."""
        operands = self.operands
        group = expression(operands.group)
        row = tirx.min(tile.first_row + j, tile.queries_of * operands.group - 1)
        positions = tirx.floordiv(row, group), tile.key_head * group + tirx.floormod(row, group)
        query, head = (tirx.Var(name, "int64") for name in ("query", "head"))
        return query, head, [tirx.Bind(query, positions[0]), tirx.Bind(head, positions[1])]

    def _row_start(self, tile: _Tile, j: Expr) -> Stmt:
        """Load the query of a row and the range that it sees."""
        operands = self.operands
        query, head, bound = self._position(tile, j)
        first, end = operands.range_of(tile.position, tile.rows, query)

        def element(d: Expr) -> Stmt:
            value = operands.query(tile.sample, query, head, d)
            return tile.queries.put(j, d, value) if self.narrow else tile.softmax.further.store(value, j, d)

        return sequence(
            bound,
            store(tile.ranges, first, 0, j),
            store(tile.ranges, end, 1, j),
            in_vectors("d", operands.size, self.lanes, element),
        )

    def _block(self, packed: PackedRows, tile: _Tile, start: Expr) -> Stmt:
        """Process the keys from `start` on, at most `_KEYS`, that any row of the tile sees."""
        height = self.height
        first, count, panels = (tirx.Var(name, "int64") for name in ("block_first", "block_count", "block_panels"))
        softmax, scores = tile.softmax, tile.softmax.scores
        all_see = tirx.all(
            load(tile.ranges, 0, height - 1) <= first, first + panels * packed.panel <= load(tile.ranges, 1, 0)
        )

        def weight(i: Index, k: Expr) -> Expr:
            return tile.weights.word(i, k) if self.narrow else scores.load(i, k)

        def value(k: Expr, d: Expr) -> Expr:
            step = tirx.floordiv(first, expression(2)) + k if self.narrow else first + k
            return packed.value(tile.sample, tile.slot, tile.key_head, step, d)

        return sequence(
            tirx.Bind(first, start),
            tirx.Bind(count, tirx.min(load(tile.ranges, 1, height - 1) - first, expression(_KEYS))),
            tirx.Bind(panels, tirx.floordiv(count + (packed.panel - 1), expression(packed.panel))),
            repeat("panel", panels, lambda p: self._scores(packed, tile, first, p)),
            self._biased(tile, first, count) if BIAS in self.operands else None,
            tirx.IfThenElse(
                all_see,
                tirx.Evaluate(tirx.IntImm("int32", 0)),
                repeat("j", height, lambda j: self._masked(tile, first, panels * 2, j)),
            ),
            softmax.powers(panels * 2, tile.weights.put if self.narrow else None),
            softmax.weighted(
                tirx.floordiv(count + 1, expression(2)) if self.narrow else count, weight, value, self.combine
            )
            if self.tiles is None
            else self._weighted_in_tiles(self.tiles, packed, tile, first, panels),
        )

    def _weighted_in_tiles(
        self, instruction: Instruction, packed: PackedRows, tile: _Tile, first: Expr, panels: Expr
    ) -> list[Stmt]:
        """Scale down the sums of all rows and add the values of a block's panels, each times its weight."""
        operands, softmax = self.operands, tile.softmax
        assert packed.values is not None
        columns = int(packed.values.ty.shape[-1])
        parts = []
        for start in range(0, columns, WIDTHS[-1]):
            width = min(WIDTHS[-1], columns - start)
            sums, allocation = allocate("weighted", (self.height, width), "float32")
            values = load(packed.values, tile.sample, tile.key_head, tirx.floordiv(first, expression(2)), start)
            taps = Taps((1, 1, panels), (0, 0, ROW_BYTES))
            summed = self._tile_sums(instruction, tile.weights, taps, values, sums, 4 * columns)

            def row(i: Expr, sums: Buffer = sums, start: int = start, width: int = width) -> Stmt:
                def add(d: Expr) -> Stmt:
                    before = softmax.sums.load(i, start + d) * softmax.corrections.load(i)
                    return softmax.sums.store(before + load(sums, i, d), i, start + d)

                return in_vectors("d", min(width, operands.value_size - start), self.lanes, add)

            parts += [allocation, summed, repeat("row", self.height, row)]
        return parts

    def _tile_sums(
        self, instruction: Instruction, rows: NarrowRows, taps: Taps, b: Expr, sums: Buffer, b_pitch: int = 0
    ) -> Stmt:
        return block_sums(
            instruction, lambda i: load(rows.buffer, i, 0), rows.pitch, taps, b, sums, self.height, b_pitch=b_pitch
        )

    def _scores(self, packed: PackedRows, tile: _Tile, first: Expr, panel: Expr) -> Stmt:
        """Scores of all rows for a panel of keys."""
        width = packed.panel
        position = tirx.floordiv(first, expression(width)) + panel
        if self.tiles is not None:
            return self._scores_in_tiles(self.tiles, packed, tile, position, panel)
        registers = RegisterTile(self.height, width, self.lanes, "float32", self.combine)

        def query(i: int, step: Expr) -> Expr:
            return tile.queries.word(i, step) if self.narrow else tile.softmax.further.load(i, step)

        def end(i: int, at: Expr, column: Expr) -> Stmt:
            return self._put_score(tile, registers.sum(i, at), i, panel * width + column)

        return sequence(
            registers.code(
                packed.steps,
                query,
                lambda k, column: packed.key(tile.sample, tile.key_head, position, k, column),
                lambda i, column: tirx.FloatImm("float32", 0.0),
                registers.each(end),
            )
        )

    def _scores_in_tiles(
        self, instruction: Instruction, packed: PackedRows, tile: _Tile, position: Expr, panel: Expr
    ) -> Stmt:
        """`_scores` with tile accumulators."""
        sums, allocation = allocate("products", (self.height, packed.panel), "float32")
        keys = packed.key(tile.sample, tile.key_head, position, expression(0), expression(0))
        summed = self._tile_sums(instruction, tile.queries, Taps.run(packed.steps // STEPS), keys, sums)

        def row(i: Expr) -> Stmt:
            def column(j: Expr) -> Stmt:
                return self._put_score(tile, load(sums, i, j), i, panel * packed.panel + j)

            return in_vectors("column", packed.panel, self.lanes, column)

        return sequence(allocation, summed, repeat("row", self.height, row))

    def _put_score(self, tile: _Tile, total: Expr, i: Index, column: Expr) -> Stmt:
        """Store a score, without the terms that depend on its position."""
        own = self.operands
        value = total if BIAS in own else own.score(total, tile.sample, expression(0), expression(0), column)
        return tile.softmax.scores.store(value, i, column)

    def _biased(self, tile: _Tile, first: Expr, count: Expr) -> Stmt:
        """Add the terms that depend on position to the scores of a block."""
        operands, scores = self.operands, tile.softmax.scores

        def row(j: Expr) -> Stmt:
            query, head, bound = self._position(tile, j)

            def key(k: Expr) -> Stmt:
                return scores.store(operands.score(scores.load(j, k), tile.sample, head, query, first + k), j, k)

            return sequence(bound, in_some_vectors(count, self.lanes, key))

        return repeat("j", self.height, row)

    def _masked(self, tile: _Tile, first: Expr, vectors: Expr, j: Expr) -> Stmt:
        """-inf for the keys of a block that a row does not see."""
        scores, lanes = tile.softmax.scores, self.lanes
        bounds = [tirx.Var(name, "int32") for name in ("low", "high")]
        positions = [
            tirx.Cast("int32", tirx.max(tirx.min(load(tile.ranges, side, j) - first, expression(_KEYS)), expression(0)))
            for side in range(2)
        ]

        def key(v: Expr, lane: Expr) -> Stmt:
            k = tirx.Cast("int32", v * lanes + lane)
            seen = tirx.all(k >= bounds[0], k < bounds[1])
            return scores.store(
                tirx.Select(seen, scores.load(j, v * lanes + lane), _MINUS_INFINITY), j, v * lanes + lane
            )

        return sequence(
            [tirx.Bind(bound, position) for bound, position in zip(bounds, positions, strict=True)],
            repeat("vector", vectors, lambda v: vectorized("lane", lanes, lambda lane: key(v, lane))),
        )

    def _row_end(self, tile: _Tile, j: Expr) -> Stmt:
        """Store the result of a row."""
        operands, softmax = self.operands, tile.softmax
        query, head, parts = self._position(tile, j)
        factor = softmax.corrections.load(j)
        if SINKS in operands:
            largest = softmax.largest.load(j)
            peak = tirx.max(tirx.max(operands.sink(head), LOWEST), largest)
            parts += [
                softmax.corrections.store(call(EXP_OF_NEGATIVE, largest - peak), j),
                softmax.totals.store(
                    softmax.totals.load(j) * factor + call(EXP_OF_NEGATIVE, operands.sink(head) - peak), j
                ),
            ]

        def element(d: Expr) -> Stmt:
            value = softmax.sums.load(j, d) * factor if SINKS in operands else softmax.sums.load(j, d)
            return operands.stored(guarded_quotient(value, softmax.totals.load(j)), tile.sample, query, head, d)

        return sequence(parts, in_vectors("d", operands.value_size, self.lanes, element))
