"""Kernels that no rule of an operator family serves: parallel and in vectors where they can, correct on any valid IR.

Elementwise stages are inlined, stages that exchange rows run row by row (softmax, the norms), and each stage is written
by its form. How a kernel will run is planned before anything is written, and rules match the plan: one per form, and
the fallback for what holds plain loops or statements that are not simple stages.

Their one knob is a schedule that MetaSchedule found for exactly this kernel; by default there is none.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from schedules.codegen.nest import build_function
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.ir.inline import inline_stages, written_intermediates
from schedules.ir.stages import Kernel, Opaque, Stage
from schedules.ir.tir import Expr, PrimFunc, Stmt
from schedules.machine import Machine
from schedules.rule import CpuRule, Priority, Workload
from schedules.stages.code import planned_code
from schedules.stages.partial_reductions import partial_reduction
from schedules.stages.plan import Form, StagePlan, plan_stage
from schedules.stages.row_fusion import RowsPlan, plan_rows, rows_code
from schedules.stages.trace import Traces, digest, traced_function

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
