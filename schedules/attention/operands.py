"""The operands of an attention kernel, and the elementwise steps on scores, weights and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.annotations import KIND
from schedules.attention.compute import ADJUSTED, OPERANDS, PRODUCT, RESULT, SCORES, WEIGHTS, guarded_quotient
from schedules.codegen.nest import Extent, expression
from schedules.ir.expression import buffers_loaded, constant_int, map_loads, substitute
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Expr, Index, Stmt, Var, structural_map, tirx, tvm
from schedules.machine import Machine
from schedules.stages.code import stage_code

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
    stage = Stage("turn", axes, tirx.BufferStore(copy, matrix.load(*points), points))
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
