"""A batch of matrices inside a buffer, whatever the order of the buffer's dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.codegen.nest import Extent, expression
from schedules.ir.expression import substitute
from schedules.ir.stages import Axis, Stage, shape_of
from schedules.ir.tir import Expr, Index, Stmt, Var, tirx, tvm
from schedules.machine import Machine
from schedules.stages.code import stage_code


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
