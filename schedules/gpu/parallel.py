"""The rule that serves every kernel: each stage becomes one launch, a thread for each point of its result.

Statements that are no simple stage run their outermost parallel loop as threads, and on one thread where there is none:
slow, and right.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from schedules.config import Config
from schedules.emit import build_function, nest, sequence
from schedules.expression import substitute
from schedules.gpu.binding import thread_loop
from schedules.gpu.cooperative import cooperative
from schedules.gpu.hoisting import take_allocations, without_parallel_loops
from schedules.gpu.rule import GpuRule, GpuWorkload
from schedules.inline import inline_stages
from schedules.kernel import Axis, Kernel, Stage, product
from schedules.machine import Machine
from schedules.tir import tirx

_THREADS = 256
_WARP = 32


class BindAnything(GpuRule):
    """Serves any kernel."""

    name: ClassVar[str] = "gpu-parallel"
    priority: ClassVar[int] = 0
    reschedules: ClassVar[bool] = True

    def apply(self, schedule: Any, workload: GpuWorkload, config: Config, machine: Machine) -> Any:
        kernel: Kernel = schedule.kernel
        statements: list[Any] = []
        allocations: list[Any] = []
        stages = inline_stages(kernel)
        for stage in stages:
            if isinstance(stage, Stage):
                statements.append(bound_stage(stage))
            else:
                statement, taken = bound_statement(stage.statement)
                statements.append(statement)
                allocations += taken
        needed = [each for each in kernel.intermediates if _is_used(each, stages)]
        return build_function(kernel, statements, [*needed, *allocations])


def _is_used(buffer: Any, stages: list[Any]) -> bool:
    return any(not isinstance(stage, Stage) or any(buffer.same_as(each) for each in stage.writes) for stage in stages)


def bound_stage(stage: Stage) -> Any:
    """One launch for a stage: a thread for each point of its spatial axes, sums in that thread."""
    points = [axis for axis in stage.spatial if axis.extent != 1]
    body = nest(stage.reduction, stage.body)
    if stage.init is not None:
        body = sequence([stage.init, body])
    units = [axis for axis in stage.spatial if axis.extent == 1]
    body = substitute(body, {axis.var: tirx.IntImm(str(axis.var.ty.dtype), 0) for axis in units})
    return _launched(points, body)


def bound_statement(statement: Any) -> tuple[Any, list[Any]]:
    """Launches for a statement that is no simple stage, and buffers that its function is to allocate."""
    statement, taken = take_allocations(statement)
    is_plain_parallel = isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL and not taken
    together = None if is_plain_parallel else cooperative(statement, taken)
    if together is not None:
        return together
    if isinstance(statement, tirx.SeqStmt):
        return sequence([_bound_loop(each, alone=False) for each in statement.seq]), taken
    return _bound_loop(statement, alone=not taken), taken


def _bound_loop(statement: Any, *, alone: bool) -> Any:
    """One launch; `alone` says that no buffer is shared by the iterations of its parallel loop."""
    is_loop = isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL
    if not (is_loop and alone and _starts_at_zero(statement)):
        return _launched([], without_parallel_loops(statement))
    axis = Axis(statement.loop_var, _extent(statement.extent))
    return _launched([axis], without_parallel_loops(statement.body), threads=_WARP)


def _starts_at_zero(loop: Any) -> bool:
    return isinstance(loop.min, tirx.IntImm) and int(loop.min.value) == 0


def _extent(extent: Any) -> Any:
    return int(extent.value) if isinstance(extent, tirx.IntImm) else extent


def _launched(axes: list[Axis], body: Any, threads: int = _THREADS) -> Any:
    """A launch of a thread for each point of the axes."""
    dtype = str(axes[0].var.ty.dtype) if axes else "int32"
    total = product(axis.extent for axis in axes)
    if total is not None:
        threads = min(threads, max(_WARP, _WARP * math.ceil(total / _WARP))) if axes else 1
    block, thread = (tirx.Var(name, tirx.IntImm(dtype, 0).ty) for name in ("block", "thread"))
    count = tirx.IntImm(dtype, threads)
    point = block * count + thread
    size: Any = tirx.IntImm(dtype, 1)
    values: dict[Any, Any] = {}
    for position, axis in enumerate(reversed(axes)):
        extent = tirx.IntImm(dtype, axis.extent) if isinstance(axis.extent, int) else axis.extent
        extent = extent if str(extent.ty) == dtype else tirx.Cast(dtype, extent)
        rest = tirx.floordiv(point, size) if position else point
        value = rest if position == len(axes) - 1 else tirx.floormod(rest, extent)
        values[axis.var] = value if str(axis.var.ty) == dtype else tirx.Cast(str(axis.var.ty), value)
        size = size * extent
    body = substitute(body, values)
    if total is None or total % threads:
        body = tirx.IfThenElse(point < size, body, None)
    # An empty launch is an error, so where the size is not known there is always a block.
    blocks: Any = max(1, math.ceil(total / threads)) if total is not None else tirx.floordiv(size, count) + 1
    return thread_loop("blockIdx.x", block, blocks, thread_loop("threadIdx.x", thread, threads, body))
