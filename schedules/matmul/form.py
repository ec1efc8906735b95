"""Recognizes a matmul in a stage, in any layout: `C[b, i, j] = sum over k of A[b, i, k] * B[b, k, j]`.

The roles of the loops follow from the operands that they move: both (batch), only A (row), only B (column). The operand
that moves along the contiguous dimension of C becomes B, so that vectors run along the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from schedules.codegen.nest import lanes_of
from schedules.ir.access import Access, Stride, simplified
from schedules.ir.expression import buffers_loaded, constant_int, expression, substitute, unflattened, uses
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Kernel, Stage, dtype_of
from schedules.ir.tir import Expr, Index, Var, structural_equal, tirx, tvm


@dataclass(frozen=True, eq=False)
class Group:
    """Fused loops with one row index for all of them; `extent` is an int if static."""

    axes: tuple[Axis, ...]

    @property
    def extent(self) -> Expr:
        total = prod(axis.extent for axis in self.axes)
        return total if isinstance(total, int) else simplified(total)

    def values(self, at: Expr) -> dict[Var, Expr]:
        """Values of the loop variables at an index of the group."""
        positions = unflattened(at, [expression(axis.extent) for axis in self.axes])
        return {axis.var: position for axis, position in zip(self.axes, positions, strict=False)}


@dataclass(frozen=True, eq=False)
class MatmulForm:
    """A stage recognized as a matmul. `width` is the number of columns of a panel if B is packed, otherwise 0."""

    stage: Stage
    reduction: Reduction
    batch: tuple[Axis, ...]
    rows: Group
    column: Axis | None
    depth: Axis
    a: Expr
    b: Expr
    a_value: Expr
    b_value: Expr
    width: int
    a_row_stride: Stride
    a_depth_stride: Stride
    b_column_stride: Stride

    @property
    def columns(self) -> Index:
        return self.column.extent if self.column is not None else 1

    @property
    def known_extents(self) -> tuple[int, int, int]:
        """Rows, columns and depth as stored in workloads: 0 if symbolic."""
        rows, columns, depth = (
            each if isinstance(each, int) else 0 for each in (self.rows.extent, self.columns, self.depth.extent)
        )
        return rows, columns, depth

    def a_at(self, batch: Mapping[Var, Expr], row: Expr, depth: Expr) -> Expr:
        """The element of A as multiplied (cast to the accumulator's dtype)."""
        return substitute(self.a_value, {**batch, **self.rows.values(row), self.depth.var: depth})

    def a_element(self, batch: Mapping[Var, Expr], row: Expr) -> Expr:
        """The first stored element of a row of A."""
        zero = tirx.IntImm("int64", 0)
        positions = {**batch, **self.rows.values(row), self.depth.var: zero}
        *leading, _ = (substitute(each, positions) for each in self.a.indices)
        return tirx.BufferLoad(self.a.source, [*leading, zero])

    @property
    def has_rows_of_floats(self) -> bool:
        """True if both operands are loaded as float32, and the elements of a row of A are contiguous."""
        values = self.a_value, self.b_value
        if not all(isinstance(each, tvm.ir.TensorLoad) and str(each.ty) == "float32" for each in values):
            return False
        *leading, last = self.a_value.indices
        depth = self.depth.var
        return self.a_depth_stride == 1 and uses(last, depth) and not any(uses(each, depth) for each in leading)

    def a_lanes(self, batch: Mapping[Var, Expr], row: Expr, depth: Expr, lanes: int) -> Expr:
        """A vector from a row of A at a given depth; requires `has_rows_of_floats`."""
        value = self.a_at(batch, row, depth)
        return tirx.BufferLoad(value.source, [*value.indices[:-1], lanes_of(value.indices[-1], lanes)])

    def b_at(self, batch: Mapping[Var, Expr], depth: Expr, column: Expr) -> Expr:
        """The element of B as multiplied."""
        return substitute(self.b_value, {**batch, self.depth.var: depth, **self._column_at(column)})

    def _column_at(self, column: Expr) -> dict[Var, Expr]:
        return {} if self.column is None else {self.column.var: column}

    def c_indices(self, batch: Mapping[Var, Expr], row: Expr, column: Expr) -> list[Expr]:
        """Indices at which the result is stored."""
        mapping = {**batch, **self.rows.values(row), **self._column_at(column)}
        return [substitute(point, mapping) for point in self.reduction.store.indices]

    def start_at(self, batch: Mapping[Var, Expr], row: Expr, column: Expr) -> Expr:
        """Initial value of the sum."""
        return substitute(self.reduction.start, {**batch, **self.rows.values(row), **self._column_at(column)})


def find_matmul(kernel: Kernel) -> MatmulForm | None:
    """The only matmul of a kernel; None if there are none or several."""
    found = [form for form in map(matmul_form, kernel.simple_stages) if form is not None]
    return found[0] if kernel.is_plain and len(found) == 1 else None


def matmul_form(stage: Stage) -> MatmulForm | None:
    """The stage as a matmul, or None if it is not one."""
    reduction = reduction_of(stage)
    if reduction is None or reduction.combiner.name != "add" or not isinstance(reduction.value, tirx.Mul):
        return None
    axes = [axis for axis in stage.axes if axis.extent != 1]
    depths = [axis for axis in axes if axis.reduce]
    if len(depths) != 1 or any(axis.extent == 0 for axis in axes) or any(str(a.var.ty) != "int64" for a in axes):
        return None
    value, start, store = (
        substitute(each, stage.single) for each in (reduction.value, reduction.start, reduction.store)
    )
    reduction = Reduction(reduction.combiner, value, start, store)
    for left, right in ((reduction.value.a, reduction.value.b), (reduction.value.b, reduction.value.a)):
        form = _with_operands(stage, axes, depths[0], reduction, left, right)
        if form is not None:
            return form
    return None


def _single_load(value: Expr) -> Expr | None:
    """The load of an operand that consists of a single load, possibly with a cast."""
    while isinstance(value, tirx.Cast):
        value = value.value
    return value if isinstance(value, tvm.ir.TensorLoad) else None


def _with_operands(
    stage: Stage, axes: Sequence[Axis], depth: Axis, reduction: Reduction, left: Expr, right: Expr
) -> MatmulForm | None:
    a, b = _single_load(left), _single_load(right)
    if a is None or b is None or buffers_loaded(reduction.start):
        return None
    a_access, b_access = Access(a.source, tuple(a.indices), False), Access(b.source, tuple(b.indices), False)
    c_access = Access(reduction.store.buffer, tuple(reduction.store.indices), True)
    width = _panel_width(b, axes, depth)
    spatial = [axis for axis in axes if not axis.reduce]
    moves_a = {id(axis): a_access.stride(axis.var) for axis in axes}
    moves_b = {id(axis): b_access.stride(axis.var) for axis in axes}
    moves_c = {id(axis): c_access.stride(axis.var) for axis in spatial}
    column = next((axis for axis in spatial if moves_c[id(axis)] == 1), None)
    if column is not None and (moves_a[id(column)] != 0 or moves_b[id(column)] == 0):
        return None
    if moves_a[id(depth)] in (None, 0) or (not width and moves_b[id(depth)] in (None, 0)):
        return None
    rest = [axis for axis in spatial if axis is not column]
    rows = [axis for axis in rest if moves_b[id(axis)] == 0]
    batch = [axis for axis in rest if moves_b[id(axis)] != 0]
    group, outer = _merge_rows(rows, moves_a, moves_c)
    return MatmulForm(
        stage,
        reduction,
        (*batch, *outer),
        group,
        column,
        depth,
        a,
        b,
        left,
        right,
        width,
        moves_a[id(group.axes[-1])] if group.axes else 0,
        moves_a[id(depth)],
        moves_b[id(column)] if column is not None else 0,
    )


def _merge_rows(
    rows: Sequence[Axis], moves_a: Mapping[int, Stride], moves_c: Mapping[int, Stride]
) -> tuple[Group, list[Axis]]:
    """The innermost loops over rows that fuse to a single stride in A and C, and the loops outside them."""
    if not rows:
        return Group(()), []
    run = [rows[-1]]
    for axis in reversed(rows[:-1]):
        if not all(_follows(moves[id(axis)], moves[id(run[0])], run[0].extent) for moves in (moves_a, moves_c)):
            break
        run.insert(0, axis)
    return Group(tuple(run)), list(rows[: len(rows) - len(run)])


def _follows(outer: Stride, inner: Stride, extent: Expr) -> bool:
    if outer is None or inner is None:
        return False
    difference = outer - inner * extent
    return constant_int(simplified(difference)) == 0


def _panel_width(b: Expr, axes: Sequence[Axis], depth: Axis) -> int:
    """The panel width if B is read as packed[column // width, depth, column % width], otherwise 0."""
    if len(b.indices) < 3:
        return 0
    panel, row, lane = list(b.indices)[-3:]
    if not row.same_as(depth.var) or not isinstance(panel, tirx.FloorDiv) or not isinstance(lane, tirx.FloorMod):
        return 0
    width = constant_int(panel.b)
    if not isinstance(width, int) or constant_int(lane.b) != width or constant_int(b.source.ty.shape[-1]) != width:
        return 0
    same = structural_equal(panel.a, lane.a) and any(panel.a.same_as(axis.var) for axis in axes)
    return width if same else 0


def operand_dtypes(form: MatmulForm) -> tuple[str, str, str]:
    """Dtypes of A, B and the accumulator."""
    return dtype_of(form.a.source), dtype_of(form.b.source), form.reduction.dtype
