"""Kernels that no rule of an operator family serves: parallel and in vectors where they can, correct on any valid IR.

Elementwise stages are inlined, stages that exchange rows run row by row (softmax, the norms), and each stage is written
by its form. How a kernel will run is planned before anything is written, and rules match the plan: one per form, and
the fallback for what holds plain loops or statements that are not simple stages.

Reductions with too few results for many cores run in two steps: partial results of parts, and their join. How long
parts are depends on sizes alone: numbers are the same for every machine with several cores, and any number of threads.

Their one knob is a schedule that TVM's MetaSchedule found for exactly this kernel, a trace of schedule primitives in
JSON; by default there is none. A trace belongs to one kernel, so workloads that have this knob must tell kernels
apart: see `digest`.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import tvm_ffi

from schedules.codegen.nest import build_function
from schedules.codegen.parallel import pays_off, work
from schedules.config import Config, ConfigSpace, KnobValue
from schedules.errors import NotScheduledError
from schedules.ir.expression import expression, index, substitute, uses
from schedules.ir.inline import inline_stages, written_intermediates
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Kernel, Opaque, Stage, product
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, s_tir, tirx, tvm
from schedules.machine import Machine
from schedules.rule import CpuRule, Priority, Workload
from schedules.stages.code import planned_code
from schedules.stages.plan import Form, NestPlan, StagePlan, plan_stage
from schedules.stages.row_fusion import RowsPlan, plan_rows, rows_code

TRACE = "trace"
# Vectors are some times as fast as single elements: as many more steps may be taken for them.
_MOST_STEPS = 4


@dataclass(frozen=True)
class GeneralWorkload(Workload):
    """The number of stages, for reports, and `digest`, which tells a kernel of known sizes from others ("": it may be
    any)."""

    stages: int
    digest: str = ""


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """Plan of a kernel's statements, in order, and the intermediates that they need."""

    statements: tuple[RowsPlan | StagePlan | Opaque, ...]
    buffers: tuple[Expr, ...]

    @property
    def form(self) -> Form:
        """Plain where any statement is."""
        return max(Form.PLAIN if isinstance(each, Opaque) else each.form for each in self.statements)


@lru_cache(maxsize=1)  # every rule asks about the kernel at hand
def plan_kernel(kernel: Kernel, machine: Machine) -> KernelPlan:
    """Plan of a kernel with at least one simple stage.

    Where a stage runs as plain loops because of what was inlined into it, as moves between blocks of several tensors
    are into one that leaves the blocks, nothing is inlined.
    """
    stages = inline_stages(kernel)
    plan = _plan(kernel, stages, machine)
    if plan.form is not Form.PLAIN or not kernel.is_plain or len(stages) == len(kernel.stages):
        return plan
    if _points(kernel.stages) > _MOST_STEPS * _points(stages):
        return plan
    apart = _plan(kernel, list(kernel.stages), machine)
    return plan if apart.form is Form.PLAIN else apart


def _points(stages: Sequence[Stage | Opaque]) -> float:
    """Number of elements that stages compute; infinite where that is not known."""
    counts = [stage.points() if isinstance(stage, Stage) else None for stage in stages]
    return sum(math.inf if count is None else count for count in counts)


def _plan(kernel: Kernel, stages: list[Stage | Opaque], machine: Machine) -> KernelPlan:
    simple = [stage for stage in stages if isinstance(stage, Stage)]
    needed = written_intermediates(kernel, stages)
    if len(simple) == len(stages):
        rows = plan_rows(simple, needed, machine)
        if rows is not None:
            return KernelPlan((rows,), ())
    statements: list[RowsPlan | StagePlan | Opaque] = []
    for stage in stages:
        if isinstance(stage, Opaque):
            statements.append(stage)
            continue
        plan = plan_stage(stage, machine)
        divided = partial_reduction(stage, plan, machine)
        statements += [plan] if divided is None else divided.steps
        needed += () if divided is None else (divided.partial,)
    return KernelPlan(tuple(statements), needed)


def kernel_code(kernel: Kernel, plan: KernelPlan, machine: Machine) -> PrimFunc:
    """The kernel's PrimFunc as planned."""

    def code(statement: RowsPlan | StagePlan | Opaque) -> Stmt:
        if isinstance(statement, Opaque):
            return statement.statement
        if isinstance(statement, RowsPlan):
            return rows_code(statement, machine)
        return planned_code(statement, machine)

    return build_function(kernel, [code(each) for each in plan.statements], plan.buffers)


class GeneralRule(CpuRule[GeneralWorkload]):
    """Serves kernels whose plan has a form, in vectors."""

    priority: ClassVar[int] = Priority.GENERAL

    @property
    @abstractmethod
    def form(self) -> Form | None:
        """None: any."""

    def match(self, kernel: Kernel, machine: Machine) -> GeneralWorkload | None:
        if not kernel.simple_stages or self.form not in (None, plan_kernel(kernel, machine).form):
            return None
        return GeneralWorkload(len(kernel.stages), digest(kernel.function) if kernel.is_static else "")

    def space(self, workload: GeneralWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({TRACE: Traces()} if workload.digest else {})

    def default(self, workload: GeneralWorkload, machine: Machine) -> Config:
        return Config.of({TRACE: ""} if workload.digest else {})

    def apply(self, kernel: Kernel, workload: GeneralWorkload, config: Config, machine: Machine) -> PrimFunc:
        if not kernel.simple_stages:
            raise NotScheduledError("nothing but opaque statements")
        if config.get(TRACE):
            return traced_function(kernel, str(config[TRACE]))
        return kernel_code(kernel, plan_kernel(kernel, machine), machine)


class Copies(GeneralRule):
    """Serves kernels that only move values, in vectors."""

    name: ClassVar[str] = "copy"
    form = Form.COPY


class Elementwise(GeneralRule):
    """Serves kernels that compute each element of its own, in vectors."""

    name: ClassVar[str] = "elementwise"
    form = Form.ELEMENTWISE


class Reduce(GeneralRule):
    """Serves kernels that reduce in vectors, whatever else they do in vectors."""

    name: ClassVar[str] = "reduction"
    form = Form.REDUCTION


class Rows(GeneralRule):
    """Serves kernels whose stages share their rows, each of which runs in vectors."""

    name: ClassVar[str] = "rows"
    form = Form.ROWS


class TransposeBlocks(GeneralRule):
    """Serves kernels that transpose, whatever they compute of the elements."""

    name: ClassVar[str] = "transpose"
    form = Form.TRANSPOSE


class Fallback(GeneralRule):
    """Serves any kernel with at least one simple stage."""

    name: ClassVar[str] = "fallback"
    priority: ClassVar[int] = Priority.FALLBACK
    version: ClassVar[int] = 2  # kernels in vectors went to rules of their own

    form = None


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


class Traces(tuple[KnobValue, ...]):
    """The choices of a knob that holds a trace: any text; "" is none, and the only one that is listed."""

    def __new__(cls) -> Traces:
        """There is but one such set of choices."""
        return super().__new__(cls, ("",))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str)


def digest(function: PrimFunc) -> str:
    """Sixteen hexadecimal digits, equal for kernels that differ in names alone."""
    return f"{tvm_ffi.structural_hash(function.without_attr('global_symbol')) & (1 << 64) - 1:016x}"


def new_schedule(function: PrimFunc) -> s_tir.Schedule:
    """A `tvm.s_tir.Schedule` of a copy of a kernel, which is its module's "main".

    A copy, since TVM's schedule changes blocks of the function it is given in place.
    """
    module = tvm.IRModule({"main": s_tir.renew_defs(function).with_attr("global_symbol", "main")})
    return s_tir.Schedule(module, debug_mask="none", error_render_level="fast")


def traced_function(kernel: Kernel, trace: str) -> PrimFunc:
    """The kernel as the trace schedules it. Raises NotScheduledError when the trace does not fit it."""
    return traced_schedule(kernel, trace).mod["main"]


def traced_schedule(kernel: Kernel, trace: str) -> s_tir.Schedule:
    """The schedule that a trace leads to. Raises NotScheduledError when the trace does not fit the kernel."""
    schedule = new_schedule(kernel.function)
    try:
        s_tir.Trace.apply_json_to_schedule(json.loads(trace), schedule)
    except MemoryError:
        raise
    except Exception as error:  # TVM raises whatever its primitives raise
        raise NotScheduledError(f"the recorded trace does not fit the kernel: {error}") from error
    return schedule


def trace_text(schedule: s_tir.Schedule) -> str:
    """The trace of a schedule, for `traced_function`."""
    return json.dumps(_plain(schedule.trace.as_json()), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A JSON value out of TVM's containers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if hasattr(value, "value"):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value]
