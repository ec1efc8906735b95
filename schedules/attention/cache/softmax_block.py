"""Softmax by blocks of keys, for some rows (a query and head each): what is kept from block to block, and one step of
it. Whenever a block holds a larger score than those before, what was summed so far is scaled down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from schedules.attention.cache.description import LOWEST
from schedules.codegen.nest import allocate, expression, load, repeat, sequence, split_repeat, store, vectorized
from schedules.codegen.register_tile import RegisterTile, multiply_add
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE, call
from schedules.ir.tir import Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.reduction_code import join

# An element of a matrix at (row, column).
Element: TypeAlias = "Callable[[Index, Expr], Expr]"
Combine = Callable[[Expr, Expr, Expr], Expr]
Ahead = Callable[[Expr], list[Stmt]]


def _nothing(k: Expr) -> list[Stmt]:
    return []


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a buffer, from `first` on: matrices of the same rows share one allocation."""

    buffer: Expr
    first: int

    def load(self, row: Index, column: Index = 0) -> Expr:
        """An element."""
        return load(self.buffer, row, self._place(column))

    def store(self, value: Expr, row: Index, column: Index = 0) -> Stmt:
        """The statement that stores an element."""
        return store(self.buffer, value, row, self._place(column))

    def _place(self, column: Index) -> Index:
        return column + self.first if self.first else column


@dataclass(frozen=True, eq=False)
class RunningSoftmax:
    """Numbers of `rows` rows: scores (rows, keys) of a block, the largest score, the sum of powers, the correction of
    what was summed before the block, and sums (rows, columns) of weighted values."""

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
        """For blocks of at most `keys` keys, a whole number of vectors; `further` columns of each row are for others.
        With the statements that allocate them."""
        lanes = machine.lanes("float32")
        starts = [0]
        for width in (keys, columns, further):
            starts.append(starts[-1] + -(-width // lanes) * lanes)
        *_, end = starts
        buffer, made = allocate("own_rows", [rows, -(-(end + 3) // lanes) * lanes], "float32")
        places = [*starts[:2], end, end + 1, end + 2, starts[2]]
        return cls(rows, keys, columns, machine, *(Columns(buffer, each) for each in places)), [made]

    def start(self) -> Stmt:
        """Nothing seen yet."""
        zero = tirx.FloatImm("float32", 0.0)

        def row(i: Expr) -> Stmt:
            return sequence(
                self.largest.store(LOWEST, i),
                self.totals.store(zero, i),
                repeat("d", self.columns, lambda d: self.sums.store(zero, i, d)),
            )

        return repeat("row", self.rows, row)

    def powers(self, vectors: Expr, put: Callable[[Expr, Expr, Expr], Stmt] | None = None) -> Stmt:
        """Scores of a block, so many vectors of them, become powers; `put(row, key, power)` stores them rounded
        elsewhere, so that they need not be exact."""
        lanes = self.machine.lanes("float32")
        most, most_made = allocate("most", [lanes], "float32", "local")
        power, power_made = allocate("power", [lanes], "float32", "local")
        added, added_made = allocate("added", [lanes], "float32", "local")
        exp = EXP_OF_NEGATIVE if put is None else EXP_OF_NEGATIVE_COARSE

        def in_lanes(make: Callable[[Expr], Stmt]) -> Stmt:
            return vectorized("lane", lanes, make)

        def row(i: Expr) -> Stmt:
            def score(vector: Expr, lane: Expr) -> Expr:
                return self.scores.load(i, vector * lanes + lane)

            def raised(vector: Expr) -> Stmt:
                return sequence(
                    in_lanes(lambda lane: store(power, call(exp, score(vector, lane) - self.largest.load(i)), lane)),
                    in_lanes(lambda lane: self._put(put, i, vector * lanes + lane, load(power, lane))),
                    in_lanes(lambda lane: store(added, load(added, lane) + load(power, lane), lane)),
                )

            before = self.largest.load(i)
            largest = tirx.max(before, load(most, 0))
            return sequence(
                in_lanes(lambda lane: store(most, LOWEST, lane)),
                repeat(
                    "vector",
                    vectors,
                    lambda v: in_lanes(lambda lane: store(most, tirx.max(load(most, lane), score(v, lane)), lane)),
                ),
                join(most, lanes, tirx.max, "int64"),
                self.corrections.store(call(EXP_OF_NEGATIVE, before - largest), i),
                self.largest.store(largest, i),
                in_lanes(lambda lane: store(added, tirx.FloatImm("float32", 0.0), lane)),
                repeat("vector", vectors, raised),
                join(added, lanes, lambda a, b: a + b, "int64"),
                self.totals.store(self.totals.load(i) * self.corrections.load(i) + load(added, 0), i),
            )

        return sequence(most_made, power_made, added_made, repeat("row", self.rows, row))

    def scaled(self, count: Expr, scale: Callable[[Expr], Expr]) -> Stmt:
        """The first `count` powers of a block times the scales of their keys' values; call it after `powers`."""
        lanes = self.machine.lanes("float32")
        whole = tirx.floordiv(count, expression(lanes))

        def row(i: Expr) -> Stmt:
            def one(k: Expr) -> Stmt:
                return self.scores.store(self.scores.load(i, k) * scale(k), i, k)

            return sequence(
                repeat("vector", whole, lambda v: vectorized("lane", lanes, lambda lane: one(v * lanes + lane))),
                repeat("rest", count - whole * lanes, lambda k: one(whole * lanes + k)),
            )

        return repeat("row", self.rows, row)

    def _put(self, put: Callable[[Expr, Expr, Expr], Stmt] | None, i: Expr, key: Expr, power: Expr) -> Stmt:
        return self.scores.store(power, i, key) if put is None else put(i, key, power)

    def weighted(
        self, depth: Expr, weight: Element, value: Element, combine: Combine = multiply_add, ahead: Ahead = _nothing
    ) -> Stmt:
        """The sums scaled down and the block's values added, each times its weight: `depth` steps of the sum.
        `ahead(k)` makes statements that go before step k."""
        lanes = self.machine.lanes("float32")
        parts = []
        for first, rows, vectors in row_tiles(self.rows, self.machine):
            width = vectors * lanes

            def tile(start: Index, columns: int, first: int = first, rows: int = rows) -> Stmt:
                registers = RegisterTile(rows, columns, lanes, "float32", combine)

                def begin(i: int, column: Expr) -> Expr:
                    return self.sums.load(first + i, start + column) * self.corrections.load(first + i)

                ends = registers.each(
                    lambda i, place, column: self.sums.store(registers.sum(i, place), first + i, start + column)
                )
                factors = (lambda i, k: weight(first + i, k)), (lambda k, column: value(k, start + column))
                code = registers.code(depth, *factors, begin, ends, ahead)
                return sequence(code)

            parts.append(split_repeat("panel", self.columns, width, tile))
        return sequence(parts)


def most_rows(machine: Machine) -> int:
    """Rows of a tile of two vectors of sums that fit the registers."""
    return max(1, (machine.vector_registers - 3) // 2)


def row_tiles(rows: int, machine: Machine) -> list[tuple[int, int, int]]:
    """(first row, rows, vectors of columns) of the register tiles that cover some rows."""
    most = most_rows(machine)
    if rows <= most // 2:
        return [(0, rows, 4)]
    count = -(-rows // most)
    size = -(-rows // count)
    return [(first, min(size, rows - first), 2) for first in range(0, rows, size)]
