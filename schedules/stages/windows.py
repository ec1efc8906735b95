"""Windows of several axes: columns are reduced before rows, K1 + K2 elements per result instead of K1 * K2.

    out[i, j] = max(x[2 * i + a, 2 * j + b] for a, b)
    =>  columns[i, w] = max(x[2 * i + a, w] for a)
        out[i, j] = max(columns[i, 2 * j + b] for b)

Both run row by row, so that a row of columns stays in the L1 cache, and the columns read contiguous elements where
strides are greater than one. Sums are added in another order than in the kernel's own loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from schedules.ir.access import accesses_of, bound_analyzer, coefficient_of
from schedules.ir.expression import constant_int, expression, index, substitute, uses
from schedules.ir.inline import has_branch, inline_into, is_candidate, operations
from schedules.ir.reduction import Reduction, in_two_stages, reduction_of
from schedules.ir.stages import Axis, Kernel, Stage, product, shape_of
from schedules.ir.tir import Expr, Index, structural_equal, tirx, tvm

_STORED = 2  # writing an element of a column and reading it again, in loads
_MAX_PADDING = 16  # operations of a stage that only pads


@dataclass(frozen=True, eq=False)
class _Window:
    """The axis along which a window moves by `stride`, its taps, and the value at position `column.var` of a row."""

    axis: Axis
    taps: Axis
    stride: int
    dilation: int
    column: Axis
    value: Expr


@lru_cache(maxsize=1)  # every rule queries the same kernel
def separate_windows(kernel: Kernel) -> Kernel:
    """The kernel with each reduction over windows in two stages, if that reads fewer elements."""
    if not kernel.is_plain:
        return kernel
    stages: list[Stage] = []
    intermediates = list(kernel.intermediates)
    for stage in kernel.simple_stages:
        separated = _separated(stage)
        if separated is None:
            stages.append(stage)
            continue
        columns, rows = separated
        intermediates.append(columns.body.buffer)
        stages += [_with_padding(columns, kernel, stages), rows]
    if len(intermediates) == len(kernel.intermediates):
        return kernel
    read = [load.source for stage in stages for load in stage.loads]
    needed = tuple(stage for stage in stages if _is_needed(stage, kernel, read))
    return Kernel(kernel.function, needed, tuple(intermediates))


def separates_windows(kernel: Kernel) -> bool:
    """True if `separate_windows` changes the kernel."""
    return separate_windows(kernel) is not kernel


def _is_needed(stage: Stage, kernel: Kernel, read: Sequence[Expr]) -> bool:
    """False if a stage writes an intermediate that no stage reads."""
    return any(
        not kernel.is_intermediate(written) or any(written.same_as(source) for source in read)
        for written in stage.writes
    )


def _separated(stage: Stage) -> tuple[Stage, Stage] | None:
    """The reductions over the columns and over the rows of windows; None if that does not pay off."""
    reduction = reduction_of(stage)
    if reduction is None or len([axis for axis in stage.reduction if axis.extent != 1]) < 2:
        return None
    window = _window(stage, reduction)
    if window is None or not _pays_off(stage, window):
        return None
    columns = [window.column if axis is window.axis else axis for axis in stage.axes if axis is not window.taps]
    moved = {window.column.var: window.axis.var * window.stride + window.taps.var * window.dilation}
    return in_two_stages(stage, reduction, "columns", columns, window.value, (*stage.spatial, window.taps), moved)


def _window(stage: Stage, reduction: Reduction) -> _Window | None:
    """The innermost axis along which windows move, if the others of the window's axes depend on neither of its two."""
    for axis in reversed(stage.spatial):
        for taps in stage.reduction:
            found = _along(stage, reduction.value, axis, taps)
            if found is not None:
                return found
    return None


def _along(stage: Stage, value: Expr, axis: Axis, taps: Axis) -> _Window | None:
    """The window of these taps along this axis, if the value depends on the two only through a position in the row."""
    if axis.extent == 1 or not isinstance(taps.extent, int) or taps.extent == 1:
        return None
    steps = _steps(stage, axis, taps)
    if steps is None or min(steps) < 1 or 1 not in steps:
        return None
    stride, dilation = steps
    dtype = str(axis.var.ty)
    reach = (taps.extent - 1) * dilation + 1
    extent = (axis.extent - 1) * stride + reach
    if stride > 1 and not isinstance(axis.extent, int):
        extent = _row_length(stage, axis, taps)  # known without a division by the stride
        if extent is None:
            return None
    column = Axis(tirx.Var(f"{axis.name}_column", dtype), extent)
    replaced, kept = (taps.var, axis.var * stride) if dilation == 1 else (axis.var, taps.var * dilation)
    simple = bound_analyzer(stage.axes).simplify(substitute(value, {replaced: column.var - kept}))
    return None if uses(simple, axis.var) or uses(simple, taps.var) else _Window(axis, taps, *steps, column, simple)


def _row_length(stage: Stage, axis: Axis, taps: Axis) -> Index | None:
    """Length of the rows inside which windows lie, from the first element on; None if they start elsewhere, may exceed
    the rows (a branch guards the loads then), or read rows of several lengths."""
    if has_branch(stage.body):
        return None
    found: Index | None = None
    start = {axis.var: index(0, str(axis.var.ty)), taps.var: index(0, str(taps.var.ty))}
    for load in stage.loads:
        for point, size in zip(load.indices, shape_of(load.source), strict=True):
            if not uses(point, taps.var):
                continue
            first = constant_int(tvm.sym.Analyzer().simplify(substitute(point, start)))
            if not isinstance(first, int) or first != 0:
                return None
            if found is not None and not structural_equal(expression(found), expression(size)):
                return None
            found = size
    return found


def _steps(stage: Stage, axis: Axis, taps: Axis) -> tuple[int, int] | None:
    """Stride and dilation of a window: the coefficients of both variables, in the first index that has both."""
    for load in stage.loads:
        for point in load.indices:
            stride, dilation = coefficient_of(point, axis.var), coefficient_of(point, taps.var)
            if isinstance(stride, int) and isinstance(dilation, int) and stride and dilation:
                return stride, dilation
    return None


def _pays_off(stage: Stage, window: _Window) -> bool:
    """True if both stages load less than the one: loads of strided elements of a row cost their stride."""
    others = product(axis.extent for axis in stage.reduction if axis is not window.taps)
    if others is None:
        return False
    taps, stride = int(window.taps.extent), window.stride
    contiguous = any(each.is_store and each.stride(window.axis.var) == 1 for each in accesses_of(stage.body))
    load = stride if contiguous else 1
    return (others + _STORED) * stride + taps * load < others * taps * load


def _with_padding(columns: Stage, kernel: Kernel, stages: Sequence[Stage]) -> Stage:
    """The columns with the padding that they read computed in place."""
    for stage in stages:
        if not is_candidate(kernel, stages, stage):
            continue
        loaded = any(load.source.same_as(stage.body.buffer) for load in columns.loads)
        cheap, expensive = operations(stage.body.value)
        if loaded and cheap <= _MAX_PADDING and not expensive and len(stage.loads) == 1:
            return inline_into(stage, columns) or columns
    return columns
