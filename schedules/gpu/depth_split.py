"""A product whose depth is shared among blocks: each stores its part of the sums, and a second launch adds the parts.

A product of few tiles leaves most multiprocessors idle. The parts are added in one order, so that the result is the
same in each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schedules.codegen.nest import allocate, expression, load, sequence, store
from schedules.gpu.launch import launched
from schedules.gpu.product_form import ProductForm
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx


@dataclass(frozen=True)
class Launches:
    """Launches that compute a product, in order, and the buffers that they hand to each other."""

    statements: tuple[Stmt, ...]
    workspaces: tuple[Buffer, ...] = ()


def splits_depth(steps: int, splits: int) -> bool:
    """True if each part of the depth has some of its steps."""
    return splits == 1 or ceil_div(steps, ceil_div(steps, splits)) == splits


class DepthSplit:
    """The parts of a form's sums, in a flat buffer: part by part, each as samples, rows and columns.

    Args:
        splits: how many parts; 2 or more, of a form whose sizes are all known.
    """

    def __init__(self, form: ProductForm, splits: int) -> None:
        self.form, self.splits = form, splits
        sizes = [group.extent for group in (form.batch, form.a.rows, form.b.rows)]
        self.samples, self.rows, self.columns = (int(size) for size in sizes)
        self.elements = self.samples * self.rows * self.columns
        self.sums: Buffer = tirx.decl_buffer([expression(splits * self.elements)], form.reduction.dtype, "parts")

    def share(self, part: Expr, steps: int) -> tuple[Expr, Index]:
        """The first step of the depth of a part, and how many there are: fewer in the last part."""
        each = ceil_div(steps, self.splits)
        first = part * expression(each)
        return first, each if each * self.splits == steps else tirx.min(expression(each), expression(steps) - first)

    def keep(self, value: Expr, part: Expr, sample: Expr, row: Expr, column: Expr) -> Stmt:
        """Store a sum of a part."""
        place = ((part * self.samples + sample) * self.rows + row) * self.columns + column
        return store(self.sums, value, place)

    def joined(self) -> Stmt:
        """The launch that adds the parts, and stores what becomes of the sums."""
        point = tirx.Var("point", "int64")
        line = tirx.floordiv(point, expression(self.columns))
        row, column = (
            tirx.floormod(line, expression(self.rows)),
            tirx.floormod(point, expression(self.columns)),
        )
        batch: Mapping[Expr, Expr] = self.form.batch.values(tirx.floordiv(line, expression(self.rows)))
        total, allocation = allocate("total", [1], self.form.reduction.dtype, "local")
        value = load(self.sums, point)
        for part in range(1, self.splits):
            value = value + load(self.sums, point + part * self.elements)
        body = sequence(allocation, store(total, value, 0), self.form.finish(load(total, 0), batch, row, column))
        return launched([Axis(point, self.elements)], body)
