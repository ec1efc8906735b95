"""Reductions with too few results for many cores, in two steps: partial results of parts, and their join.

How long parts are depends on sizes alone. Numbers are therefore the same for every machine with several cores, and for
every number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedules.codegen.parallel import pays_off, work
from schedules.ir.expression import expression, index, substitute, uses
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Stage, product
from schedules.ir.tir import Expr, Index, tirx
from schedules.machine import Machine
from schedules.stages.plan import NestPlan, StagePlan, plan_stage

_TASKS = 128  # of both steps together: four for each of 32 cores
_LEAST_POINTS = 16384  # of a part: some 2 microseconds, a hundred times what writing and joining its result takes
_RUN = 64  # parts of a contiguous axis are multiples of this: whole groups of vectors


@dataclass(frozen=True, eq=False)
class PartialReduction:
    """The plans of both steps, and the partial results that lie between them."""

    steps: tuple[StagePlan, StagePlan]
    partial: Expr


def partial_reduction(stage: Stage, plan: StagePlan, machine: Machine) -> PartialReduction | None:
    """A reduction in two steps; None where its results give enough tasks, or threads do not pay.

    Args:
        plan: how the stage runs in one step.
    """
    reduction = reduction_of(stage)
    if reduction is None or len(plan.nests) != 1 or plan.nests[0].reduction is None or machine.cores == 1:
        return None
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)
    if threads is False:
        return None
    tasks = _tasks(plan.nests[0])
    most = _TASKS // tasks
    points = product(axis.extent for axis in stage.axes)
    if points is not None:
        most = min(most, points // (tasks * _LEAST_POINTS))
    axis = _divided_axis(stage, reduction, most)
    if most < 2 or axis is None:
        return None
    inside = product(each.extent for each in stage.axes if each is not axis)
    length = _part_length(axis.extent, most, max(1, _LEAST_POINTS * tasks // inside) if inside else _LEAST_POINTS)
    return _in_parts(stage, reduction, axis, length, threads, machine)


def _tasks(nest: NestPlan) -> int:
    """Number of tasks of a reduction in one step; sizes that are not known count as 1."""
    tasks = 1
    for loop in nest.nest.spatial:
        extent = loop.extent if isinstance(loop.extent, int) else 1
        tasks *= max(1, extent // _RUN) if loop is nest.axis else extent
    return max(1, tasks)


def _divided_axis(stage: Stage, reduction: Reduction, parts: int) -> Axis | None:
    """The outermost axis that is long enough, else the longest; of unknown length the first."""
    axes = [axis for axis in stage.reduction if uses(reduction.value, axis.var)]
    long = [axis for axis in axes if not isinstance(axis.extent, int) or axis.extent >= 2 * parts]
    known = [axis for axis in axes if isinstance(axis.extent, int) and axis.extent >= 4]
    return long[0] if long else max(known, key=lambda axis: axis.extent, default=None)


def _part_length(extent: Index, most: int, least: int) -> Index:
    """Steps of a part: at least two, so that a part never becomes one loop with another axis."""
    if isinstance(extent, int):
        length = max(2, ceil_div(extent, most))
        return ceil_div(length, _RUN) * _RUN if extent >= _RUN * most else length
    runs = tirx.FloorDiv(extent + (most * _RUN - 1), index(most * _RUN))
    return tirx.Max(runs * _RUN, index(ceil_div(least, _RUN) * _RUN))


def _in_parts(
    stage: Stage, reduction: Reduction, axis: Axis, length: Index, threads: bool | Expr, machine: Machine
) -> PartialReduction:
    dtype = str(axis.var.ty)
    known = isinstance(axis.extent, int) and isinstance(length, int)
    parts = ceil_div(axis.extent, length) if known else tirx.FloorDiv(axis.extent + (length - 1), length)
    part, inner, join = (tirx.Var(f"{axis.name}_{name}", dtype) for name in ("part", "step", "join"))
    rest: Index = length
    if not known or axis.extent % length:
        rest = tirx.Min(expression(length, dtype), expression(axis.extent, dtype) - part * length)
    spatial = stage.spatial
    shape = [expression(each, dtype) for each in (parts, *(each.extent for each in spatial))]
    partial = tirx.decl_buffer(shape, reduction.dtype, "partial", layout=None)
    mapping = {axis.var: part * length + inner}
    found = tirx.BufferLoad(partial, [part, *(each.var for each in spatial)])
    value = reduction.update(found, substitute(reduction.value, mapping))
    inside = [Axis(inner, rest, reduce=True) if each is axis else each for each in stage.reduction]
    first = Stage(
        f"{stage.name}_parts",
        (Axis(part, parts), *spatial, *inside),
        tirx.BufferStore(partial, value, list(found.indices)),
        tirx.BufferStore(partial, reduction.identity(), list(found.indices)),
    )
    place = list(reduction.store.indices)
    read = tirx.BufferLoad(partial, [join, *(each.var for each in spatial)])
    joined = reduction.update(tirx.BufferLoad(reduction.store.buffer, place), read)
    second = Stage(
        stage.name,
        (*spatial, Axis(join, parts, reduce=True)),
        tirx.BufferStore(reduction.store.buffer, joined, place),
        stage.init,
    )
    return PartialReduction((plan_stage(first, machine, threads=threads), plan_stage(second, machine)), partial)
