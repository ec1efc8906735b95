"""The operands of an attention kernel, and the elementwise steps on scores, weights and results.

Attention operands as 32-bit words of neighbors along the reduction: keys and values packed once, rows of queries and
weights in each task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self, TypeAlias

from schedules.annotations import KIND
from schedules.attention.compute import ADJUSTED, OPERANDS, PRODUCT, RESULT, SCORES, WEIGHTS, guarded_quotient
from schedules.codegen.nest import Extent, in_vectors, lanes_of, load, parallel_grid, repeat_symbolic, sequence, store
from schedules.codegen.parallel import pays_off
from schedules.instructions.rounding import narrowed, rounded_pair, rounded_run
from schedules.ir.expression import buffers_loaded, constant_int, expression, map_loads, substitute
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, Var, structural_map, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.stages.code import stage_code

# Element of a row at a reduction step.
Operand: TypeAlias = "Callable[[Index, Expr], Expr]"


@dataclass(frozen=True, eq=False)
class PackedWords(ABC):
    """Matrices (..., depth, columns) and their `words`, int32 (..., steps, columns): `group` neighbors along the depth
    each, the first in the lowest bits, zeros past the depth. Steps and columns may be padded to whole tiles; padding
    columns hold arbitrary data."""

    group: ClassVar[int]

    source: BatchedMatrix
    words: Buffer
    machine: Machine

    @classmethod
    def of(cls, source: BatchedMatrix, machine: Machine, steps_of: int = 1, columns_of: int = 1) -> Self:
        """Create the words; steps and columns are multiples of the numbers given."""
        *leading, depth, columns = source.shape
        steps = ceil_div(ceil_div(depth, cls.group), steps_of) * steps_of
        shape = [*leading, steps, ceil_div(columns, columns_of) * columns_of]
        name = f"{source.name}_words"
        words = tirx.decl_buffer([expression(size) for size in shape], "int32", name, layout=None)
        return cls(source, words, machine)

    @property
    def lanes(self) -> int:
        """Number of words in a vector."""
        return self.machine.lanes("int32")

    @property
    def used(self) -> int:
        """Number of steps of the matrix, without padding."""
        return ceil_div(self.source.shape[-2], self.group)

    def made(self) -> list[Stmt]:
        """The statements that allocate and fill the words."""
        runs = self.source.runs_along(-2) and self.source.shape[-2] % self._run == 0
        return [tirx.AllocBuffer(self.words), *(self._turned() if runs else self._filled()), *self._cleared()]

    def _cleared(self) -> list[Stmt]:
        """Clear the padding steps after the depth."""
        columns, used, steps = self.source.shape[-1], self.used, shape_of(self.words)[-2]
        if used == steps:
            return []

        def row(at: list[Expr]) -> Stmt:
            position, zero = [*at[:-1], at[-1] + used], tirx.IntImm("int32", 0)
            return in_vectors("column", columns, self.lanes, lambda j: store(self.words, zero, *position, j))

        extents = [*self.source.leads, Extent("step", steps - used)]
        return [parallel_grid(extents, row, self.machine, parallel=False)]

    def _turned(self) -> list[Stmt]:
        """Pack columns that are contiguous along the depth: convert each to words, then transpose these."""
        columns, steps = self.source.shape[-1], self.used

        def matrix(outer: list[Expr]) -> Stmt:
            shape = [expression(columns), expression(steps)]
            rows = tirx.decl_buffer(shape, "int32", f"{self.source.name}_rows", layout=None)
            i, j = tirx.Var("step", "int64"), tirx.Var("column", "int64")
            transposed = tirx.BufferStore(self.words, tirx.BufferLoad(rows, [j, i]), [*outer, i, j])
            stage = Stage("transpose", (Axis(i, steps), Axis(j, columns)), transposed)
            made = repeat_symbolic("column", columns, lambda at: self._column(rows, outer, at))
            return sequence(tirx.AllocBuffer(rows), made, stage_code(stage, self.machine, parallel=False))

        return [parallel_grid(self.source.leads, matrix, self.machine, parallel=self._threads())]

    def _threads(self) -> bool | Expr:
        return pays_off(self.source.elements, self.machine)

    @property
    @abstractmethod
    def _run(self) -> int:
        """`_column` needs a multiple of this many neighbors along the depth."""

    @abstractmethod
    def _column(self, rows: Buffer, outer: list[Expr], column: Expr) -> Stmt:
        """Store the words of a column in memory as a row of `rows`."""

    @abstractmethod
    def _filled(self) -> list[Stmt]:
        """Pack rows of neighboring columns, a group at a time."""


class PackedBf16(PackedWords):
    """Words of two float32 rounded to bfloat16."""

    group: ClassVar[int] = 2

    @property
    def _run(self) -> int:
        return 2 * self.lanes

    def _filled(self) -> list[Stmt]:
        *_, depth, columns = self.source.shape
        extents = self.source.leads

        def row(values: list[Expr], *, whole: bool) -> Stmt:
            outer, step = values[:-1], values[-1]

            def word(column: Expr) -> Stmt:
                low = self.source.load(*outer, step * 2, column)
                high = self.source.load(*outer, step * 2 + 1, column) if whole else tirx.FloatImm("float32", 0.0)
                return store(self.words, rounded_pair(low, high), *outer, step, column)

            return in_vectors("column", columns, self.lanes, word)

        steps = [*extents, Extent("step", depth // 2)]
        parts = [parallel_grid(steps, lambda at: row(at, whole=True), self.machine, parallel=self._threads())]
        if depth % 2:
            last = expression(depth // 2)
            parts.append(parallel_grid(extents, lambda at: row([*at, last], whole=False), self.machine, parallel=False))
        return parts

    def _column(self, rows: Buffer, outer: list[Expr], column: Expr) -> Stmt:
        lanes = self.lanes

        def word(run: Expr, lane: Expr) -> Stmt:
            first = run * (2 * lanes) + lane
            halves = [self.source.load(*outer, each, column) for each in (first, first + lanes)]
            return store(rows, rounded_run(*halves), column, run * lanes + lane)

        def vector(run: Expr) -> Stmt:
            return repeat_symbolic("lane", lanes, lambda lane: word(run, lane), VECTORIZED)

        return repeat_symbolic("run", self.used // lanes, vector)


@dataclass(frozen=True, eq=False)
class NarrowRows:
    """Rows rounded to bfloat16, read as words of neighbors, zero-padded. There may be padding rows, for whole tiles."""

    dtype: ClassVar[str] = "uint16"

    rows: int
    size: int
    buffer: Expr

    @classmethod
    def of(cls, name: str, rows: int, size: int, rows_of: int = 1, size_of: int = 1) -> Self:
        """Create the rows; their number and their size, in whole words, are multiples of the numbers given."""
        of_size = max(size_of, 32 // dtype_bits(cls.dtype))
        shape = [expression(ceil_div(count, of) * of) for count, of in ((rows, rows_of), (size, of_size))]
        return cls(rows, size, tirx.decl_buffer(shape, cls.dtype, name, layout=None))

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next."""
        return int(shape_of(self.buffer)[-1]) * dtype_bits(self.dtype) // 8

    def allocated(self) -> list[Stmt]:
        """Statements that allocate the rows and clear their padding."""
        statements = [tirx.AllocBuffer(self.buffer)]
        behind = shape_of(self.buffer)[-1] - self.size
        if behind:
            zero = tirx.IntImm(self.dtype, 0)

            def clear(i: Expr) -> Stmt:
                return repeat_symbolic("k", behind, lambda k: store(self.buffer, zero, i, k + self.size))

            statements.append(repeat_symbolic("row", self.rows, clear))
        return statements

    def put(self, i: Index, k: Expr, value: Expr) -> Stmt:
        """The statement that stores an element."""
        return store(self.buffer, narrowed(value), i, k)

    def filled(self, value: Operand, lanes: int) -> Stmt:
        """The statement that stores all elements."""
        return repeat_symbolic(
            "row", self.rows, lambda i: in_vectors("k", self.size, lanes, lambda k: self.put(i, k, value(i, k)))
        )

    def word(self, i: Index, step: Expr) -> Expr:
        """The elements of row i at a step of a sum of words."""
        group = 32 // dtype_bits(self.dtype)
        return tirx.reinterpret("int32", load(self.buffer, i, lanes_of(step * group, group)))


# A batch of matrices inside a buffer, in any order of the buffer's dimensions.


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
        return prod(self.shape)

    def position(self, at: Sequence[Expr]) -> list[Expr]:
        """The buffer's indices of an element."""
        values = dict(zip(self.variables, at, strict=True))
        return [substitute(point, values) for point in self.indices]

    def load(self, *at: Expr) -> Expr:
        """The element (*lead, row, column)."""
        return tirx.BufferLoad(self.buffer, self.position(at))

    def load_in_panel(self, leading: Sequence[Expr], row: Expr, first: Expr, column: Expr) -> Expr:
        """The element in column `first` + `column` of the panel that begins at `first`."""
        return self.load(*leading, row, first + column)

    def runs_along(self, axis: int) -> bool:
        """True if neighbors along an axis (-1: columns, -2: rows) are adjacent in memory."""
        return bool(self.indices[-1].same_as(self.variables[axis]))


def with_contiguous_columns(matrix: BatchedMatrix, machine: Machine) -> tuple[list[Stmt], BatchedMatrix]:
    """A copy with contiguous columns: the statements that make it, and the copy."""
    shape = [expression(size) for size in matrix.shape]
    copy = tirx.decl_buffer(shape, str(matrix.buffer.dtype), f"{matrix.name}_turned", layout=None)
    points = [tirx.Var(str(variable.name), "int64") for variable in matrix.variables]
    axes = tuple(map(Axis, points, matrix.shape))
    stage = Stage("transpose", axes, tirx.BufferStore(copy, matrix.load(*points), points))
    return [tirx.AllocBuffer(copy), stage_code(stage, machine)], BatchedMatrix.whole(copy)


@dataclass(frozen=True, eq=False)
class PanelMatrix(BatchedMatrix):
    """A copy (*lead, panels, rows, width): each register tile reads one contiguous piece of memory."""

    width: int = 0

    def load_in_panel(self, leading: Sequence[Expr], row: Expr, first: Expr, column: Expr) -> Expr:
        panel = tvm.sym.Analyzer().simplify(tirx.FloorDiv(first, expression(self.width)))
        return tirx.BufferLoad(self.buffer, [*leading, panel, row, column])


def in_panels(matrix: BatchedMatrix, width: int, machine: Machine) -> tuple[list[Stmt], PanelMatrix]:
    """A copy in panels of `width` columns, of a known number of columns: the statements that make it, and the copy."""
    *leading, rows, columns = matrix.shape
    full_panels, rest = divmod(columns, width)
    panels = full_panels + bool(rest)
    shape = [expression(size) for size in (*leading, panels, rows, width)]
    copy = tirx.decl_buffer(shape, str(matrix.buffer.dtype), f"{matrix.name}_panels", layout=None)
    statements: list[Stmt] = [tirx.AllocBuffer(copy)]
    for first, count, lanes in ((0, full_panels, width), (full_panels, 1, rest)):
        if not count or not lanes:
            continue
        names = [*(f"lead{i}" for i in range(len(leading))), "panel", "row", "lane"]
        *outer, panel, row, lane = variables = [tirx.Var(name, "int64") for name in names]
        value = matrix.load(*outer, row, (panel + first) * width + lane)
        stored = tirx.BufferStore(copy, value, [*outer, panel + first, row, lane])
        stage = Stage("pack", tuple(map(Axis, variables, (*leading, count, rows, lanes))), stored)
        statements.append(stage_code(stage, machine))
    return statements, PanelMatrix(copy, matrix.variables, matrix.variables, matrix.shape, width)


MIN_QUERIES = 16  # fewest queries for which rounding the keys and values pays off


def attention_stages(kernel: Kernel, kind: str) -> dict[str, Stage] | None:
    """The stages of a kernel of `attention_compute.attention` by name, or None if it is not of this kind."""
    found = {stage.name: stage for stage in kernel.simple_stages if stage.annotations.get(KIND) == kind}
    needed = (SCORES, ADJUSTED, PRODUCT, RESULT)
    whole = kernel.is_plain and len(found) == len(kernel.stages)
    return found if whole and all(name in found and found[name].store is not None for name in needed) else None


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """Operands, output, and the elementwise stages of an attention kernel.

    `weights` is None if exponentials multiply the values and the result is divided by their sums. `zeros`: the zero
    points of query, key, weights and value; 0 if there are none.
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
        """Build the parts from the stages of an attention."""
        (query, query_zero), (key, key_zero) = _factors(stages[SCORES])
        (_, weights_zero), (value, value_zero) = _factors(stages[PRODUCT])
        scores, product, result = (stages[name].body for name in (SCORES, PRODUCT, RESULT))
        rounds = str(stages[SCORES].annotations.get(OPERANDS)) == "bfloat16"
        [element] = [load for load in stages[RESULT].loads if load.source.same_as(product.buffer)]
        stored = BatchedMatrix(result.buffer, tuple(result.indices), tuple(element.indices), shape_of(product.buffer))
        zeros = query_zero, key_zero, weights_zero, value_zero
        adjusted, weights = stages[ADJUSTED], stages.get(WEIGHTS)
        return cls(query, key, value, stored, scores.buffer, adjusted, weights, stages[RESULT], rounds, zeros)

    @property
    def is_static(self) -> bool:
        """True if all sizes except the batch are known."""
        return all(isinstance(size, int) for size in (*self.query.shape[-2:], *self.value.shape[-2:]))

    @property
    def has_many_queries(self) -> bool:
        """True if enough queries share the words of keys and values."""
        return self.is_static and self.query.shape[-2] >= MIN_QUERIES

    @property
    def narrow(self) -> bool:
        """True if matmuls run on pairs of bfloat16: rounding is allowed, and enough queries share the pairs."""
        return self.rounds and self.has_many_queries

    def score(self, raw: Expr, position: Sequence[Expr]) -> Expr:
        """The softmax argument for a raw score (scaled, masked) at a position (*lead, query, key)."""
        stored = self.adjusted.body
        pairs = zip(stored.indices, position, strict=True)
        variables = {var: point for var, point in pairs if isinstance(var, tvm.ir.Var)}
        value = map_loads(stored.value, lambda load: raw if load.source.same_as(self.scores) else None)
        return substitute(value, variables)

    def weight(self, power: Expr, inverse: Expr) -> Expr:
        """Weight of the values, from an exponential and 1 / (the sum of its row's exponentials)."""
        assert self.weights is not None
        rank = len(self.weights.body.indices)

        def quotient(division: Expr) -> Expr:
            return inverse if isinstance(division.b, tvm.ir.TensorLoad) else division

        value = structural_map(self.weights.body.value, (tirx.Div, quotient))
        return map_loads(value, lambda load: power if len(load.indices) == rank else None)

    def finished(self, product: Expr, total: Expr) -> Expr:
        """Value to store, from a sum of the second matmul and the sum of its row's exponentials."""
        if self.weights is not None:
            return map_loads(self.result.body.value, lambda load: product)
        is_guarded = isinstance(self.result.body.value, tirx.Select)
        return guarded_quotient(product, total) if is_guarded else product / total


def _factors(stage: Stage) -> tuple[tuple[BatchedMatrix, int], tuple[BatchedMatrix, int]]:
    """The two operands of a matmul, in order, each with its zero point."""
    *leading, row, column = stage.body.indices
    [summed] = stage.reduction
    *outer, rows, columns = shape_of(stage.body.buffer)
    term = stage.body.value.b

    def factor(expr: Expr, ends: tuple[Expr, Expr], sizes: tuple[Index, Index]) -> tuple[BatchedMatrix, int]:
        [load] = buffers_loaded(expr)
        return BatchedMatrix(load.source, tuple(load.indices), (*leading, *ends), (*outer, *sizes)), _zero_of(expr)

    return (
        factor(term.a, (row, summed.var), (rows, summed.extent)),
        factor(term.b, (summed.var, column), (summed.extent, columns)),
    )


def _zero_of(expr: Expr) -> int:
    """Zero point that is subtracted from an operand."""
    if isinstance(expr, tirx.Sub):
        return int(constant_int(expr.b))
    return -int(constant_int(expr.b)) if isinstance(expr, tirx.Add) else 0
