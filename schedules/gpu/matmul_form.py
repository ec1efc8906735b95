"""A kernel read as one matmul, out[s, i, j] = sum over k of a[s, i, k] * b[s, j, k], and the steps on its result.

Stages before the matmul are computed where an operand is read: they are elementwise, or the columns of an image.

Split-K: if the depth is shared among blocks, each stores its part of the sums, and a second launch adds the parts.

A matmul of few tiles leaves most multiprocessors idle. The parts are added in one order, so that the result is the
same in each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from schedules.codegen.nest import allocate, load, sequence, store
from schedules.errors import NotScheduledError
from schedules.gpu.launch import launched
from schedules.ir.access import Access
from schedules.ir.expression import buffers_loaded, expression, substitute, uses
from schedules.ir.inline import inline_value, is_elementwise
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Kernel, Stage
from schedules.ir.tir import Buffer, Expr, Index, Stmt, Var, tirx, tvm
from schedules.matmul.form import Group
from schedules.stages.fused_kernel import FusedKernel

Launches: TypeAlias = tuple[list[Stmt], list[Buffer]]
"""Launches that compute a matmul, in order, and the intermediate buffers between them."""


def splits_depth(steps: int, splits: int) -> bool:
    """True if each part of the depth has some of its steps."""
    return splits == 1 or ceil_div(steps, ceil_div(steps, splits)) == splits


class DepthSplit:
    """The partial sums of a form, in a flat buffer: part by part, each as samples, rows and columns. `splits`: number
    of parts; 2 or more, for a form whose sizes are all known."""

    def __init__(self, form: GpuMatmulForm, splits: int) -> None:
        self.form, self.splits = form, splits
        sizes = [group.extent for group in (form.batch, form.a.rows, form.b.rows)]
        self.samples, self.rows, self.columns = (int(size) for size in sizes)
        self.elements = self.samples * self.rows * self.columns
        self.sums: Buffer = tirx.decl_buffer([expression(splits * self.elements)], form.reduction.dtype, "parts")

    def share(self, part: Expr, steps: int) -> tuple[Expr, Index]:
        """The first step of the depth of a part, and its number of steps: fewer in the last part."""
        each = ceil_div(steps, self.splits)
        first = part * expression(each)
        return first, each if each * self.splits == steps else tirx.min(expression(each), expression(steps) - first)

    def keep(self, value: Expr, part: Expr, sample: Expr, row: Expr, column: Expr) -> Stmt:
        """Store a sum of a part."""
        position = ((part * self.samples + sample) * self.rows + row) * self.columns + column
        return store(self.sums, value, position)

    def joined(self) -> Stmt:
        """The launch that adds the parts, and stores the finished sums."""
        point = tirx.Var("point", "int64")
        line = tirx.floordiv(point, expression(self.columns))
        row, column = (tirx.floormod(line, expression(self.rows)), tirx.floormod(point, expression(self.columns)))
        batch: Mapping[Expr, Expr] = self.form.batch.values(tirx.floordiv(line, expression(self.rows)))
        total, allocation = allocate("total", [1], self.form.reduction.dtype, "local")
        value = load(self.sums, point)
        for part in range(1, self.splits):
            value = value + load(self.sums, point + part * self.elements)
        body = sequence(allocation, store(total, value, 0), self.form.finish(load(total, 0), batch, row, column))
        return launched([Axis(point, self.elements)], body)


WIDER = {"float16": "float32", "bfloat16": "float32", "int8": "int32", "uint8": "int32"}
"""The element type of sums of products, if it differs from the operands'."""
ALONG_ROWS = "tensorwright.along_rows"
"""Annotation of a stage whose rows are contiguous in memory, not its depth."""


@dataclass(frozen=True, eq=False)
class Operand:
    """One factor of a matmul.

    Attributes:
        value: the element in the type that is multiplied, as an expression of the loop variables.
        rows: the loops that only this factor has.
        along_depth: whether neighbors along the depth are adjacent in memory.
        run: number of neighbors along the depth that can be loaded as one vector, from multiples of that number on.
    """

    value: Expr
    rows: Group
    along_depth: bool
    run: int

    @property
    def dtype(self) -> str:
        return str(self.value.ty)

    def at(self, batch: Mapping[Var, Expr], row: Expr, depth: Mapping[Var, Expr]) -> Expr:
        """The element of a row at a depth."""
        return substitute(self.value, {**batch, **self.rows.values(row), **depth})


@dataclass(frozen=True, eq=False)
class GpuMatmulForm:
    """The matmul of a kernel; `a` moves along the rows of the result, `b` along its contiguous dimension."""

    fused: FusedKernel
    reduction: Reduction
    batch: Group
    depth: Group
    a: Operand
    b: Operand

    def finish(self, value: Expr, batch: Mapping[Var, Expr], row: Expr, column: Expr) -> Stmt:
        """The statement that applies the epilogue to a sum and stores it."""
        mapping = {**batch, **self.a.rows.values(row), **self.b.rows.values(column)}
        return self.fused.finish(value, [substitute(point, mapping) for point in self.reduction.store.indices])


def is_matmul(stage: Stage) -> bool:
    """True if a stage is a sum of products; cheap."""
    reduction = reduction_of(stage)
    return reduction is not None and reduction.combiner.name == "add" and isinstance(reduction.value, tirx.Mul)


def matmul_form(kernel: Kernel) -> GpuMatmulForm:
    """The kernel's matmul. Raises NotScheduledError if it has another form."""
    products = [stage for stage in kernel.simple_stages if is_matmul(stage)]
    if not kernel.is_plain or len(products) != 1:
        raise NotScheduledError("the kernel is not a single matmul")
    stage = products[0]
    fused = FusedKernel(kernel, [stage], partly=True)
    reduction = reduction_of(stage)
    assert reduction is not None
    if not isinstance(reduction.start, tirx.IntImm | tirx.FloatImm) or float(reduction.start.value) != 0:
        raise NotScheduledError("the sum does not start at zero")
    producers = stages_in_front(kernel, stage)
    axes = [axis for axis in stage.axes if axis.extent != 1]
    value, stored = (substitute(each, stage.single) for each in (reduction.value, reduction.store))
    factors = [_narrowest(each) for each in (value.a, value.b)]
    spatial = [axis for axis in axes if not axis.reduce]
    axes_of_factor = [[axis for axis in spatial if uses(factor, axis.var)] for factor in factors]
    batch = [axis for axis in axes_of_factor[0] if axis in axes_of_factor[1]]
    if len({*axes_of_factor[0], *axes_of_factor[1]}) != len(spatial) or any(axis.extent == 0 for axis in axes):
        raise NotScheduledError("the result has dimensions that neither factor has")
    left, right = ([axis for axis in each if axis not in batch] for each in axes_of_factor)
    if left and spatial[-1] in left:
        factors, (left, right) = factors[::-1], (right, left)
    depth = Group(tuple(axis for axis in axes if axis.reduce))
    operands = [
        _operand(factor, rows, batch, depth, producers) for factor, rows in zip(factors, (left, right), strict=True)
    ]
    reduction = Reduction(reduction.combiner, value, reduction.start, stored)
    return GpuMatmulForm(fused, reduction, Group(tuple(batch)), depth, *operands)


def stages_in_front(kernel: Kernel, stage: Stage) -> tuple[Stage, ...]:
    """The stages before one, read only by it. Raises NotScheduledError if other stages read them, too."""
    position = kernel.simple_stages.index(stage)
    producers, consumers = kernel.simple_stages[:position], kernel.simple_stages[position + 1 :]
    for buffer in (buffer for each in producers for buffer in each.writes):
        if not kernel.is_intermediate(buffer) or any(_reads(each.body, buffer) for each in consumers):
            raise NotScheduledError("a stage before the reduction is also read after it")
    return producers


def _narrowest(value: Expr) -> Expr:
    """A factor before conversion to the accumulator's type."""
    while isinstance(value, tirx.Cast) and WIDER.get(str(value.value.ty)) == str(value.ty):
        value = value.value
    return value


def _operand(
    factor: Expr, rows: Sequence[Axis], batch: Sequence[Axis], depth: Group, producers: Sequence[Stage]
) -> Operand:
    written = [stage for stage in producers if any(_reads(factor, each) for each in stage.writes)]
    along_rows = any(ALONG_ROWS in stage.annotations for stage in written)
    value = computed_in_place(factor, producers)
    step = _steps(value, depth.axes[-1:])
    along_depth = not along_rows and (step == [1] or not rows or _steps(value, rows[-1:]) != [1])
    strides = _steps(value, [*rows, *batch, *depth.axes[:-1]])
    size = depth.axes[-1].extent if depth.axes else 1
    run = 1
    if isinstance(value, tvm.ir.TensorLoad) and step == [1] and isinstance(size, int):
        fits = [width for width in (16, 8, 4, 2) if not any(each is None or each % width for each in (size, *strides))]
        run = fits[0] if fits else 1
    return Operand(value, Group(tuple(rows)), along_depth, run)


def _reads(value: Expr, buffer: Expr) -> bool:
    return any(load.source.same_as(buffer) for load in buffers_loaded(value))


def computed_in_place(value: Expr, before: Sequence[Stage]) -> Expr:
    """A value with earlier stages inlined. Raises NotScheduledError for stages that are not elementwise."""
    for stage in reversed(before):
        if not any(_reads(value, each) for each in stage.writes):
            continue
        if not is_elementwise(stage):
            raise NotScheduledError(f"stage {stage.name!r} before the matmul is not elementwise")
        value = _narrowest(inline_value(stage, value))
    return value


def _steps(value: Expr, axes: Sequence[Axis]) -> list[int | None]:
    """Distance in memory by which each axis moves a factor that is one load; None if unknown."""
    if not isinstance(value, tvm.ir.TensorLoad):
        return [None for _ in axes]
    access = Access(value.source, tuple(value.indices), False)
    steps = [access.stride(axis.var) for axis in axes]
    return [each if isinstance(each, int) else None for each in steps]
