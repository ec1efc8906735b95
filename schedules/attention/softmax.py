"""The softmax of attention's scores, row by row: the largest of a row, then powers and their sum in one walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.codegen.nest import expression, repeat_symbolic, sequence
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE, call
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import stage_code
from schedules.stages.reduction_code import join

UNROLLED = tirx.ForKind.UNROLLED
_ACCUMULATORS = 4  # independent sums that hide the latency of an addition


@dataclass(frozen=True, eq=False)
class Softmax:
    """exp(score - largest of its row) of `scores` (rows, keys), and in `totals` (rows) the sums of rows of it.

    `largest` (rows) is scratch space for one number per row. `put(row, key, power)` makes the statement that stores a
    power, which may take the place of its score; `coarse` where it rounds to bfloat16.
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
        score, most = tirx.BufferLoad(self.scores, [i, j]), tirx.BufferLoad(self.largest, [i])
        stage = Stage(
            "largest",
            (Axis(i, self.rows), Axis(j, self.keys, reduce=True)),
            tirx.BufferStore(self.largest, tirx.Max(most, score), [i]),
            tirx.BufferStore(self.largest, tirx.min_value("float32"), [i]),
        )
        return stage_code(stage, self.machine, parallel=False)

    def _powers_of_row(self, i: Expr) -> Stmt:
        lanes, group = self._lanes, _ACCUMULATORS * self._lanes
        sums = tirx.decl_buffer([group], "float32", "sums", scope="local", layout=None)
        power = tirx.decl_buffer([group], "float32", "power", scope="local", layout=None)
        exp = EXP_OF_NEGATIVE_COARSE if self.coarse else EXP_OF_NEGATIVE

        def vector(at: Expr, register: Expr, count: int) -> Stmt:
            """`count` keys from `at` on, added to the sums of a register."""

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
    """`weight(row, key, 1 / total of the row)` for every power, in vectors of keys; `totals` becomes its inverse."""

    def row(i: Expr) -> Stmt:
        at = [expression(i)]
        inverse = tirx.BufferLoad(totals, at)

        def vector(first: Expr, _: Expr, count: int) -> Stmt:
            return repeat_symbolic("lane", count, lambda j: weight(i, first + j, inverse), VECTORIZED)

        divided = tirx.BufferStore(totals, tirx.FloatImm("float32", 1.0) / inverse, at)
        return sequence([divided, *over_keys(keys, machine.lanes("float32"), vector)])

    return repeat_symbolic("row", rows, row)


def over_keys(keys: Index, lanes: int, vector: Callable[[Expr, Expr, int], Stmt]) -> list[Stmt]:
    """`vector(first key, first element of a group of registers, lanes)` for all keys: groups of vectors; then what is
    left in vectors and a shorter one, or in single keys when that is not known."""
    group, first = _ACCUMULATORS * lanes, expression(0)

    def in_group(at: Expr) -> Stmt:
        return repeat_symbolic("register", _ACCUMULATORS, lambda u: vector(at + u * lanes, u * lanes, lanes), UNROLLED)

    if isinstance(keys, int):
        whole, left = divmod(keys, group)
        done = expression(whole * group)
        rest = [vector(done + at, first, min(lanes, left - at)) for at in range(0, left, lanes)]
        return [repeat_symbolic("group", whole, lambda g: in_group(g * group)), *rest] if whole else rest
    groups = tirx.FloorDiv(keys, expression(group))
    vectors = tirx.FloorDiv(keys - groups * group, expression(lanes))
    after = groups * group + vectors * lanes
    return [
        repeat_symbolic("group", groups, lambda g: in_group(g * group)),
        repeat_symbolic("vector", vectors, lambda v: vector(groups * group + v * lanes, first, lanes)),
        repeat_symbolic("rest", keys - after, lambda j: vector(after + j, first, 1)),
    ]
