"""Attention by blocks of queries: scores, softmax and the weighted sum of values without a trip to memory.

A task takes as many queries as a register tile has rows. Their scores against all keys stay in the second cache; one
pass finds the largest, one takes powers and sums them, and the product with the values is divided by the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from schedules.attention_compute import ADJUSTED, ATTENTION, OPERANDS, PRODUCT, RESULT, SCORES, guarded_quotient
from schedules.attention_pairs import NarrowRows, Operand, Pairs
from schedules.attention_softmax import Softmax
from schedules.batched_matrix import BatchedMatrix, with_contiguous_columns
from schedules.bf16_dot import dot
from schedules.config import Config, ConfigSpace
from schedules.conv_workload import KIND
from schedules.emit import build_function
from schedules.errors import NotScheduledError
from schedules.expression import index, map_loads, substitute
from schedules.kernel import Kernel, Stage, dtype_of, shape_of
from schedules.machine import Machine
from schedules.nest import expression
from schedules.parallel import MIN_PARALLEL_WORK, Extent, loops, pays_off, repeat
from schedules.register_tile import RegisterTile, multiply_add
from schedules.rule import ScheduleRule, Workload
from schedules.stage_code import in_sequence
from schedules.tir import tirx

Expr = Any
Stmt = Any

_LEAST_QUERIES = 16  # that make up for rounding the keys and values


@dataclass(frozen=True)
class AttentionWorkload(Workload):
    """Extents are 0 when symbolic; `batch` counts all leading dimensions together."""

    batch: int
    queries: int
    keys: int
    depth: int
    columns: int
    dtype: str


class Attention(ScheduleRule):
    """Serves the kernels of `attention_compute.attention` in float32."""

    name: ClassVar[str] = "attention"
    version: ClassVar[int] = 1
    priority: ClassVar[int] = 60

    def match(self, kernel: Kernel, machine: Machine) -> AttentionWorkload | None:
        stages = _stages(kernel)
        if stages is None or not kernel.is_plain or len(stages) != len(kernel.stages):
            return None
        parts = _Parts.of(stages)
        if dtype_of(parts.query.buffer) != "float32":
            return None
        *lead, queries, depth = (size if isinstance(size, int) else 0 for size in parts.query.shape)
        keys, columns = (size if isinstance(size, int) else 0 for size in parts.value.shape[-2:])
        batch = 1
        for size in lead:
            batch *= size
        return AttentionWorkload(batch, queries, keys, depth, columns, "bfloat16" if parts.narrow else "float32")

    def space(self, workload: AttentionWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, self._most_rows(machine) + 1))})

    def default(self, workload: AttentionWorkload, machine: Machine) -> Config:
        """Blocks of nearly equal size, as large as fit."""
        most = self._most_rows(machine)
        if not workload.queries:
            return Config.of(rows=min(8, most))
        blocks = -(-workload.queries // most)
        return Config.of(rows=-(-workload.queries // blocks))

    def apply(self, schedule: Any, workload: AttentionWorkload, config: Config, machine: Machine) -> Any:
        kernel: Kernel = schedule.kernel
        stages = _stages(kernel)
        if stages is None:
            raise NotScheduledError("stages of attention are missing")
        body = _Writer(_Parts.of(stages), machine, config.integer("rows")).code()
        return build_function(kernel, [body], [])

    def _most_rows(self, machine: Machine) -> int:
        """Rows of two vectors of sums that fit the registers."""
        return max(1, (machine.vector_registers - 3) // 2)


def _stages(kernel: Kernel) -> dict[str, Stage] | None:
    found = {stage.name: stage for stage in kernel.simple_stages if stage.annotations.get(KIND) == ATTENTION}
    needed = (SCORES, ADJUSTED, PRODUCT, RESULT)
    return found if all(name in found and found[name].store is not None for name in needed) else None


@dataclass(frozen=True, eq=False)
class _Parts:
    """The operands, and how a raw score becomes the argument of softmax."""

    query: BatchedMatrix
    key: BatchedMatrix
    value: BatchedMatrix
    result: BatchedMatrix
    scores: Any
    adjusted: Stage
    guarded: bool
    rounds: bool

    @property
    def narrow(self) -> bool:
        """Whether products run on pairs of bfloat16: where they may, and enough queries share the pairs."""
        queries, depth = self.query.shape[-2:]
        sizes = queries, depth, *self.value.shape[-2:]
        return self.rounds and all(isinstance(size, int) for size in sizes) and queries >= _LEAST_QUERIES

    @classmethod
    def of(cls, stages: dict[str, Stage]) -> _Parts:
        query, key = _operands(stages[SCORES])
        _, value = _operands(stages[PRODUCT])
        scores, product, result = (stages[name].store for name in (SCORES, PRODUCT, RESULT))
        assert scores is not None
        assert product is not None
        assert result is not None
        guarded = isinstance(result.value, tirx.Select)
        rounds = str(stages[SCORES].annotations.get(OPERANDS)) == "bfloat16"
        [quotient] = [load for load in stages[RESULT].loads if load.source.same_as(product.buffer)]
        shape = shape_of(product.buffer)
        stored = BatchedMatrix(result.buffer, tuple(result.indices), tuple(quotient.indices), shape)
        return cls(query, key, value, stored, scores.buffer, stages[ADJUSTED], guarded, rounds)


def _operands(stage: Stage) -> tuple[BatchedMatrix, BatchedMatrix]:
    """The two operands of a product, in order."""
    assert stage.store is not None
    *lead, row, column = stage.store.indices
    [summed] = stage.reduction
    *outer, rows, columns = shape_of(stage.store.buffer)
    term = stage.store.value.b
    left, right = (
        BatchedMatrix(load.source, tuple(load.indices), (*lead, *ends), (*outer, *sizes))
        for load, ends, sizes in (
            (term.a, (row, summed.var), (rows, summed.extent)),
            (term.b, (summed.var, column), (summed.extent, columns)),
        )
    )
    return left, right


class _Writer:
    def __init__(self, parts: _Parts, machine: Machine, rows: int) -> None:
        self.parts = parts
        self.machine = machine
        self.rows = rows
        self.lanes = machine.lanes("float32")
        *self.lead, self.queries, self.depth = parts.query.shape
        self.keys, self.columns = parts.value.shape[-2:]
        self.key, self.value = parts.key, parts.value
        self.prepared: list[Stmt] = []
        if parts.narrow:
            pairs = Pairs.of(parts.key), Pairs.of(parts.value)
            self.prepared = [statement for each in pairs for statement in each.made(machine)]
            self.key, self.value = (BatchedMatrix.whole(each.words) for each in pairs)
        elif not parts.key.runs_along(-1):
            self.prepared, self.key = with_contiguous_columns(parts.key, machine)

    def code(self) -> Stmt:
        """Tasks over the leading dimensions and blocks of queries; what is left of queries in a block of its own."""
        amount: Any = self.depth + self.columns
        for extent in (*self.lead, self.queries, self.keys):
            amount = amount * extent
        threads = pays_off(amount, self.machine, MIN_PARALLEL_WORK * self.lanes // 4)
        parts = list(self.prepared)
        for start, count, rows in self._blocks():

            def task(values: list[Expr], start: Any = start, rows: int = rows) -> Stmt:
                return self._block(values[:-1], start + values[-1] * rows, rows)

            extents = [Extent(f"batch{i}", extent) for i, extent in enumerate(self.lead)]
            parts.append(loops([*extents, Extent("block", count)], task, self.machine, parallel=threads))
        return in_sequence(parts)

    def _blocks(self) -> list[tuple[Any, Any, int]]:
        """(first query, how many blocks, queries of a block)."""
        if isinstance(self.queries, int):
            whole, rest = divmod(self.queries, self.rows)
            found = [(index(0), whole, self.rows), (index(whole * self.rows), 1, rest)]
            return [each for each in found if each[1] and each[2]]
        whole = tirx.FloorDiv(self.queries, index(self.rows))
        done = whole * self.rows
        single = [(done, self.queries - done, 1)] if self.rows > 1 else []
        return [(index(0), whole, self.rows), *single]

    def _block(self, lead: list[Expr], row: Expr, rows: int) -> Stmt:
        scores = tirx.decl_buffer([rows, self.keys], "float32", "scores", layout=None)
        largest = tirx.decl_buffer([rows], "float32", "largest", layout=None)
        totals = tirx.decl_buffer([rows], "float32", "totals", layout=None)
        statements = [tirx.AllocBuffer(each) for each in (scores, largest, totals)]

        def query(i: Any, k: Expr) -> Expr:
            return self.parts.query.load(*lead, row + i, k)

        def power(i: Any, k: Expr) -> Expr:
            return tirx.BufferLoad(scores, [expression(i), k])

        def put(i: Any, k: Expr, value: Expr) -> Stmt:
            return tirx.BufferStore(scores, value, [expression(i), k])

        queries: Operand = query
        powers: Operand = power
        if self.parts.narrow:
            rounded, weights = NarrowRows.of("queries", rows, self.depth), NarrowRows.of("weights", rows, self.keys)
            statements += [*rounded.allocated(), rounded.filled(query, self.lanes), *weights.allocated()]
            queries, powers, put = rounded.pair, weights.pair, weights.put
        statements.append(
            self._over_panels(self.keys, lambda at, width: self._scores(lead, row, rows, at, width, scores, queries))
        )
        narrow = self.parts.narrow
        statements += Softmax(rows, self.keys, scores, largest, totals, put, self.machine, narrow).code()
        statements.append(
            self._over_panels(self.columns, lambda at, width: self._values(lead, row, rows, at, width, powers, totals))
        )
        return in_sequence(statements)

    def _tile(self, rows: int, width: int, a: Operand, b: BatchedMatrix, lead: list[Expr], at: Expr, end: Any) -> Stmt:
        """A tile of a . b, b from column `at` on, and what `end(tile)` makes."""
        tile = RegisterTile(rows, width, self.lanes, "float32", dot if self.parts.narrow else multiply_add)
        zero = tirx.FloatImm("float32", 0.0)
        return in_sequence(
            tile.code(
                b.shape[-2], a, lambda k, column: b.load(*lead, k, at + column), lambda i, column: zero, end(tile)
            )
        )

    def _over_panels(self, columns: Any, tile: Any) -> Stmt:
        """Panels of two vectors; then what is left, in vectors and single columns when that is not known."""
        panel = 2 * self.lanes
        if isinstance(columns, int):
            whole, rest = divmod(columns, panel)
            parts = [repeat("panel", whole, lambda p: tile(p * panel, panel))] if whole else []
            return in_sequence([*parts, tile(index(whole * panel), rest)] if rest else parts)
        parts, done = [], index(0)
        for width in sorted({panel, self.lanes, 1}, reverse=True):
            count = tirx.FloorDiv(columns - done, index(width))
            parts.append(repeat("panel", count, lambda p, done=done, width=width: tile(done + p * width, width)))  # type: ignore[misc]
            done = done + count * width
        return in_sequence(parts)

    def _scores(self, lead: list[Expr], row: Expr, rows: int, at: Expr, width: int, scores: Any, a: Operand) -> Stmt:
        """A tile of query . key, adjusted (scaled, masked) as it is stored."""

        def end(tile: RegisterTile) -> list[Stmt]:
            def store(i: int, place: Expr, column: Expr) -> Stmt:
                value = self._adjusted(tile.sum(i, place), [*lead, row + i, at + column])
                return tirx.BufferStore(scores, value, [index(i), at + column])

            return tile.each(store)

        return self._tile(rows, width, a, self.key, lead, at, end)

    def _adjusted(self, score: Expr, place: list[Expr]) -> Expr:
        stage = self.parts.adjusted
        assert stage.store is not None
        points = list(stage.store.indices)
        variables = {
            axis.var: point
            for axis in stage.axes
            for var, point in zip(points, place, strict=True)
            if axis.var.same_as(var)
        }
        value = map_loads(stage.store.value, lambda load: score if load.source.same_as(self.parts.scores) else None)
        return substitute(value, variables)

    def _values(self, lead: list[Expr], row: Expr, rows: int, at: Expr, width: int, a: Operand, totals: Any) -> Stmt:
        """A tile of powers . values, divided by the sums as it is stored."""
        parts = self.parts

        def end(tile: RegisterTile) -> list[Stmt]:
            def store(i: int, place: Expr, column: Expr) -> Stmt:
                value, total = tile.sum(i, place), tirx.BufferLoad(totals, [index(i)])
                value = guarded_quotient(value, total) if parts.guarded else value / total
                return tirx.BufferStore(parts.result.buffer, value, parts.result.place([*lead, row + i, at + column]))

            return tile.each(store)

        return self._tile(rows, width, a, self.value, lead, at, end)
