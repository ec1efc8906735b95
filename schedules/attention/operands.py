"""The operands of an attention kernel, and the elementwise steps on scores, weights and results.

Operands of attention as pairs of bfloat16: keys and values packed once, rows of queries and weights in each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from schedules.annotations import KIND
from schedules.attention.compute import ADJUSTED, OPERANDS, PRODUCT, RESULT, SCORES, WEIGHTS, guarded_quotient
from schedules.codegen.nest import Extent, expression, in_vectors, lanes_of, parallel_grid, repeat_symbolic, sequence
from schedules.codegen.parallel import pays_off
from schedules.instructions.rounding import narrowed, rounded_pair, rounded_run
from schedules.ir.expression import buffers_loaded, constant_int, map_loads, substitute
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, Var, structural_map, tirx, tvm
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
            transposed = tirx.BufferStore(self.words, tirx.BufferLoad(rounded, [j, i]), [*outer, i, j])
            stage = Stage("transpose", (Axis(i, depth // 2), Axis(j, columns)), transposed)
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


# A batch of matrices inside a buffer, whatever the order of the buffer's dimensions.


@dataclass(frozen=True, eq=False)
class BatchedMatrix:
    """Element (*lead, row, column) is `buffer[indices]` with these values for `variables`; `shape`: their extents."""

    buffer: Expr
    indices: tuple[Expr, ...]
    variables: tuple[Var, ...]
    shape: tuple[Index, ...]

    @classmethod
    def whole(cls, buffer: Expr) -> BatchedMatrix:
        """The matrices of a buffer (..., rows, columns)."""
        shape = shape_of(buffer)
        variables = tuple(tirx.Var(f"i{axis}", "int64") for axis in range(len(shape)))
        return cls(buffer, variables, variables, shape)

    @property
    def name(self) -> str:
        return str(self.buffer.name)

    @property
    def leads(self) -> list[Extent]:
        """The loops over the matrices."""
        return [Extent(f"lead{i}", extent) for i, extent in enumerate(self.shape[:-2])]

    @property
    def elements(self) -> Index:
        """Number of elements of all matrices."""
        amount: Index = 1
        for extent in self.shape:
            amount = amount * extent
        return amount

    def place(self, at: Sequence[Expr]) -> list[Expr]:
        """The buffer's indices of an element."""
        values = dict(zip(self.variables, at, strict=True))
        return [substitute(point, values) for point in self.indices]

    def load(self, *at: Expr) -> Expr:
        """The element (*lead, row, column)."""
        return tirx.BufferLoad(self.buffer, self.place(at))

    def load_in_panel(self, lead: Sequence[Expr], row: Expr, first: Expr, column: Expr) -> Expr:
        """The element in column `first` + `column`, where a panel begins at `first`."""
        return self.load(*lead, row, first + column)

    def runs_along(self, axis: int) -> bool:
        """True if neighbours along an axis (-1: columns, -2: rows) are neighbours in memory."""
        return bool(self.indices[-1].same_as(self.variables[axis]))


def with_contiguous_columns(matrix: BatchedMatrix, machine: Machine) -> tuple[list[Stmt], BatchedMatrix]:
    """A copy in which columns are neighbours: the statements that make it, and the copy."""
    shape = [expression(size) for size in matrix.shape]
    copy = tirx.decl_buffer(shape, str(matrix.buffer.dtype), f"{matrix.name}_turned", layout=None)
    axes = tuple(
        Axis(tirx.Var(str(variable.name), "int64"), size)
        for variable, size in zip(matrix.variables, matrix.shape, strict=True)
    )
    points = [axis.var for axis in axes]
    stage = Stage("transpose", axes, tirx.BufferStore(copy, matrix.load(*points), points))
    return [tirx.AllocBuffer(copy), stage_code(stage, machine)], BatchedMatrix.whole(copy)


@dataclass(frozen=True, eq=False)
class PanelMatrix(BatchedMatrix):
    """A copy (*lead, panels, rows, width): what a register tile reads lies in one piece of memory."""

    width: int = 0

    def load_in_panel(self, lead: Sequence[Expr], row: Expr, first: Expr, column: Expr) -> Expr:
        panel = tvm.sym.Analyzer().simplify(tirx.FloorDiv(first, expression(self.width)))
        return tirx.BufferLoad(self.buffer, [*lead, panel, row, column])


def in_panels(matrix: BatchedMatrix, width: int, machine: Machine) -> tuple[list[Stmt], PanelMatrix]:
    """A copy in panels of `width` columns, of which there is a known number: the statements that make it, and it."""
    *lead, rows, columns = matrix.shape
    whole, rest = divmod(columns, width)
    panels = whole + bool(rest)
    shape = [expression(size) for size in (*lead, panels, rows, width)]
    copy = tirx.decl_buffer(shape, str(matrix.buffer.dtype), f"{matrix.name}_panels", layout=None)
    made: list[Stmt] = [tirx.AllocBuffer(copy)]
    for first, count, lanes in ((0, whole, width), (whole, 1, rest)):
        if not count or not lanes:
            continue
        axes = [Axis(tirx.Var(f"lead{i}", "int64"), size) for i, size in enumerate(lead)]
        axes += [
            Axis(tirx.Var(name, "int64"), size) for name, size in (("panel", count), ("row", rows), ("lane", lanes))
        ]
        *outer, panel, row, lane = (axis.var for axis in axes)
        value = matrix.load(*outer, row, (panel + first) * width + lane)
        stage = Stage("pack", tuple(axes), tirx.BufferStore(copy, value, [*outer, panel + first, row, lane]))
        made.append(stage_code(stage, machine))
    return made, PanelMatrix(copy, matrix.variables, matrix.variables, matrix.shape, width)


_LEAST_QUERIES = 16  # least number of queries that pays for rounding the keys and values


def attention_stages(kernel: Kernel, kind: str) -> dict[str, Stage] | None:
    """The stages of a kernel of `attention_compute.attention` by name, where it is one of this kind."""
    found = {stage.name: stage for stage in kernel.simple_stages if stage.annotations.get(KIND) == kind}
    needed = (SCORES, ADJUSTED, PRODUCT, RESULT)
    whole = kernel.is_plain and len(found) == len(kernel.stages)
    return found if whole and all(name in found and found[name].store is not None for name in needed) else None


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """Operands, where results go, and the stages that compute one element of others.

    `weights` is None where powers multiply the values, and their sums divide what comes out. `zeros`: the zero points
    of query, key, weights and value; 0 where there are none.
    """

    query: BatchedMatrix
    key: BatchedMatrix
    value: BatchedMatrix
    stored: BatchedMatrix
    scores: Expr
    adjusted: Stage
    weights: Stage | None
    result: Stage
    rounds: bool
    zeros: tuple[int, int, int, int]

    @classmethod
    def of(cls, stages: dict[str, Stage]) -> AttentionParts:
        """The parts of an attention of these stages."""
        (query, query_zero), (key, key_zero) = _factors(stages[SCORES])
        (_, weights_zero), (value, value_zero) = _factors(stages[PRODUCT])
        scores, product, result = (stages[name].store for name in (SCORES, PRODUCT, RESULT))
        assert scores is not None
        assert product is not None
        assert result is not None
        rounds = str(stages[SCORES].annotations.get(OPERANDS)) == "bfloat16"
        [element] = [load for load in stages[RESULT].loads if load.source.same_as(product.buffer)]
        stored = BatchedMatrix(result.buffer, tuple(result.indices), tuple(element.indices), shape_of(product.buffer))
        zeros = query_zero, key_zero, weights_zero, value_zero
        adjusted, weights = stages[ADJUSTED], stages.get(WEIGHTS)
        return cls(query, key, value, stored, scores.buffer, adjusted, weights, stages[RESULT], rounds, zeros)

    @property
    def is_static(self) -> bool:
        """True if all sizes but those of the batch are known."""
        return all(isinstance(size, int) for size in (*self.query.shape[-2:], *self.value.shape[-2:]))

    @property
    def narrow(self) -> bool:
        """True if products run on pairs of bfloat16: where they may, and enough queries share the pairs."""
        return self.rounds and self.is_static and self.query.shape[-2] >= _LEAST_QUERIES

    @property
    def weights_dtype(self) -> str:
        """The type of what multiplies the values."""
        return "float32" if self.weights is None or self.weights.store is None else str(self.weights.store.buffer.dtype)

    def score(self, raw: Expr, place: Sequence[Expr]) -> Expr:
        """The argument of softmax for a raw score (scaled, masked) at a place (*lead, query, key)."""
        stage = self.adjusted
        assert stage.store is not None
        variables = {
            axis.var: point
            for axis in stage.axes
            for var, point in zip(list(stage.store.indices), place, strict=True)
            if axis.var.same_as(var)
        }
        value = map_loads(stage.store.value, lambda load: raw if load.source.same_as(self.scores) else None)
        return substitute(value, variables)

    def weight(self, power: Expr, inverse: Expr) -> Expr:
        """Weight of the values, of a power and 1 / (the sum of its row's powers)."""
        assert self.weights is not None
        assert self.weights.store is not None
        rank = len(self.weights.store.indices)

        def quotient(division: Expr) -> Expr:
            return inverse if isinstance(division.b, tvm.ir.TensorLoad) else division

        value = structural_map(self.weights.store.value, (tirx.Div, quotient))
        return map_loads(value, lambda load: power if len(load.indices) == rank else None)

    def finished(self, product: Expr, total: Expr) -> Expr:
        """Value to store, of a sum of the second product and the sum of its row's powers."""
        assert self.result.store is not None
        if self.weights is not None:
            return map_loads(self.result.store.value, lambda load: product)
        is_guarded = isinstance(self.result.store.value, tirx.Select)
        return guarded_quotient(product, total) if is_guarded else product / total


def _factors(stage: Stage) -> tuple[tuple[BatchedMatrix, int], tuple[BatchedMatrix, int]]:
    """The two operands of a product, in order, each with its zero point."""
    assert stage.store is not None
    *lead, row, column = stage.store.indices
    [summed] = stage.reduction
    *outer, rows, columns = shape_of(stage.store.buffer)
    term = stage.store.value.b

    def factor(expr: Expr, ends: tuple[Expr, Expr], sizes: tuple[Index, Index]) -> tuple[BatchedMatrix, int]:
        [load] = buffers_loaded(expr)
        return BatchedMatrix(load.source, tuple(load.indices), (*lead, *ends), (*outer, *sizes)), _zero_of(expr)

    return (
        factor(term.a, (row, summed.var), (rows, summed.extent)),
        factor(term.b, (summed.var, column), (summed.extent, columns)),
    )


def _zero_of(expr: Expr) -> int:
    """Zero point that is subtracted from an operand."""
    if isinstance(expr, tirx.Sub):
        return int(constant_int(expr.b))
    return -int(constant_int(expr.b)) if isinstance(expr, tirx.Add) else 0
