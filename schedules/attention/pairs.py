"""Operands of attention as pairs of bfloat16: keys and values packed once, rows of queries and weights in each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from schedules.attention.operands import BatchedMatrix
from schedules.codegen.nest import Extent, expression, in_vectors, lanes_of, parallel_grid, repeat_symbolic, sequence
from schedules.codegen.parallel import pays_off
from schedules.instructions.rounding import narrowed, rounded_pair, rounded_run
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Stage, shape_of
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import stage_code

# The element of a row at a step of the sum.
Operand: TypeAlias = "Callable[[Index, Expr], Expr]"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Matrices (..., depth, columns) of float32 and their `words`, int32 (..., steps, columns): two each that are
    neighbours along the depth, the first in the low half; behind the depth stands 0. Steps and columns may be more than
    the matrix needs, for whole tiles; what the columns behind hold has no meaning."""

    source: BatchedMatrix
    words: Expr

    @classmethod
    def of(cls, source: BatchedMatrix, steps_of: int = 1, columns_of: int = 1) -> Pairs:
        """Steps and columns are multiples of the numbers given."""
        *lead, depth, columns = source.shape
        steps = ceil_div(ceil_div(depth, 2), steps_of) * steps_of
        shape = [*lead, steps, ceil_div(columns, columns_of) * columns_of]
        name = f"{source.name}_pairs"
        return cls(source, tirx.decl_buffer([expression(size) for size in shape], "int32", name, layout=None))

    def made(self, machine: Machine) -> list[Stmt]:
        """The statements that allocate and fill the words."""
        lanes = machine.lanes("float32")
        whole_runs = self.source.shape[-2] % (2 * lanes) == 0
        fill = self._turned if whole_runs and self.source.runs_along(-2) else self._filled
        return [tirx.AllocBuffer(self.words), *fill(machine, lanes), *self._cleared(machine, lanes)]

    def _cleared(self, machine: Machine, lanes: int) -> list[Stmt]:
        """The steps behind the depth."""
        *_, depth, columns = self.source.shape
        used, steps = ceil_div(depth, 2), shape_of(self.words)[-2]
        if used == steps:
            return []
        zero = tirx.IntImm("int32", 0)

        def row(at: list[Expr]) -> Stmt:
            place = [*at[:-1], at[-1] + used]
            return in_vectors("column", columns, lanes, lambda j: tirx.BufferStore(self.words, zero, [*place, j]))

        extents = [*self.source.leads, Extent("step", steps - used)]
        return [parallel_grid(extents, row, machine, parallel=False)]

    def _filled(self, machine: Machine, lanes: int) -> list[Stmt]:
        """From rows of neighbouring columns, two at a time."""
        *_, depth, columns = self.source.shape
        extents = self.source.leads

        def row(values: list[Expr], *, whole: bool) -> Stmt:
            outer, step = values[:-1], values[-1]

            def word(column: Expr) -> Stmt:
                low = self.source.load(*outer, step * 2, column)
                high = self.source.load(*outer, step * 2 + 1, column) if whole else tirx.FloatImm("float32", 0.0)
                return tirx.BufferStore(self.words, rounded_pair(low, high), [*outer, step, column])

            return in_vectors("column", columns, lanes, word)

        threads = pays_off(self.source.elements, machine)
        steps = [*extents, Extent("step", depth // 2)]
        parts = [parallel_grid(steps, lambda at: row(at, whole=True), machine, parallel=threads)]
        if depth % 2:
            last = expression(depth // 2)
            parts.append(parallel_grid(extents, lambda at: row([*at, last], whole=False), machine, parallel=False))
        return parts

    def _turned(self, machine: Machine, lanes: int) -> list[Stmt]:
        """From columns that run along the depth: each rounded to words, then these transposed."""
        *_, depth, columns = self.source.shape
        extents = self.source.leads

        def matrix(outer: list[Expr]) -> Stmt:
            rounded = tirx.decl_buffer(
                [expression(columns), expression(depth // 2)], "int32", f"{self.source.name}_rounded", layout=None
            )

            def words(column: Expr, run: Expr, lane: Expr) -> Stmt:
                first = run * (2 * lanes) + lane
                halves = [self.source.load(*outer, each, column) for each in (first, first + lanes)]
                return tirx.BufferStore(rounded, rounded_run(*halves), [column, run * lanes + lane])

            def column(at: Expr) -> Stmt:
                return repeat_symbolic(
                    "run",
                    depth // (2 * lanes),
                    lambda run: repeat_symbolic("lane", lanes, lambda lane: words(at, run, lane), VECTORIZED),
                )

            i, j = tirx.Var("step", "int64"), tirx.Var("column", "int64")
            turned = tirx.BufferStore(self.words, tirx.BufferLoad(rounded, [j, i]), [*outer, i, j])
            stage = Stage("turn", (Axis(i, depth // 2), Axis(j, columns)), turned)
            parts = [tirx.AllocBuffer(rounded), repeat_symbolic("column", columns, column)]
            return sequence([*parts, stage_code(stage, machine, parallel=False)])

        return [parallel_grid(extents, matrix, machine, parallel=pays_off(self.source.elements, machine))]


@dataclass(frozen=True, eq=False)
class NarrowRows:
    """Rows rounded to bfloat16; behind their elements stands 0. There may be room for more rows, for whole tiles."""

    rows: int
    size: int
    buffer: Expr

    @classmethod
    def of(cls, name: str, rows: int, size: int, rows_of: int = 1, size_of: int = 2) -> NarrowRows:
        """Rows and their elements are multiples of the numbers given."""
        shape = [expression(ceil_div(count, of) * of) for count, of in ((rows, rows_of), (size, size_of))]
        return cls(rows, size, tirx.decl_buffer(shape, "uint16", name, layout=None))

    def allocated(self) -> list[Stmt]:
        """Statements that make the rows, with what stands behind them."""
        made = [tirx.AllocBuffer(self.buffer)]
        behind = shape_of(self.buffer)[-1] - self.size
        if behind:
            zero = tirx.IntImm("uint16", 0)

            def clear(i: Expr) -> Stmt:
                return repeat_symbolic("k", behind, lambda k: tirx.BufferStore(self.buffer, zero, [i, k + self.size]))

            made.append(repeat_symbolic("row", self.rows, clear))
        return made

    def put(self, i: Expr, k: Expr, value: Expr) -> Stmt:
        """The statement that stores an element."""
        return tirx.BufferStore(self.buffer, narrowed(value), [expression(i), k])

    def filled(self, value: Operand, lanes: int) -> Stmt:
        """The statement that stores all elements."""
        return repeat_symbolic(
            "row", self.rows, lambda i: in_vectors("k", self.size, lanes, lambda k: self.put(i, k, value(i, k)))
        )

    def pair(self, i: Index, step: Expr) -> Expr:
        """The elements of row i at a step of a sum of pairs."""
        return tirx.reinterpret("int32", tirx.BufferLoad(self.buffer, [expression(i), lanes_of(step * 2, 2)]))
