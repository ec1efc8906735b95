"""A batch of matrices inside a buffer, whatever the order of the buffer's dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schedules.codegen.nest import Extent, expression
from schedules.ir.expression import substitute
from schedules.ir.stages import Axis, Stage, shape_of
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import stage_code


@dataclass(frozen=True, eq=False)
class BatchedMatrix:
    """Element (*lead, row, column) is `buffer[indices]` with these values for `variables`; `shape`: their extents."""

    buffer: Any
    indices: tuple[Expr, ...]
    variables: tuple[Any, ...]
    shape: tuple[Any, ...]

    @classmethod
    def whole(cls, buffer: Any) -> BatchedMatrix:
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
    def elements(self) -> Any:
        """How many elements all matrices have."""
        amount: Any = 1
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

    def runs_along(self, axis: int) -> bool:
        """Whether neighbours along an axis (-1: columns, -2: rows) are neighbours in memory."""
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
