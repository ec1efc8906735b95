"""The rule that serves every kernel no other rule wants: correct on any valid IR, parallel and in vectors where it can.

Elementwise stages are inlined, stages that exchange rows run row by row (softmax, the norms), and each stage is
vectorized by its form. Statements that are no simple stage are kept as they are.

Its one knob is a schedule that MetaSchedule found for exactly this kernel; by default there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from schedules.config import Config, ConfigSpace
from schedules.emit import build_function
from schedules.errors import NotScheduledError
from schedules.inline import inline_stages
from schedules.kernel import Kernel, Opaque, Stage
from schedules.machine import Machine
from schedules.row_fusion import fuse_rows
from schedules.rule import ScheduleRule, Workload
from schedules.stage_code import stage_code
from schedules.trace import Traces, digest, traced_function

TRACE = "trace"


@dataclass(frozen=True)
class FallbackWorkload(Workload):
    """The number of stages, for reports, and `digest`, which tells a kernel of known sizes from others ("": it may be
    any)."""

    stages: int
    digest: str = ""


class Fallback(ScheduleRule):
    """Serves any kernel with at least one simple stage."""

    name: ClassVar[str] = "fallback"
    priority: ClassVar[int] = 0

    def match(self, kernel: Kernel, machine: Machine) -> FallbackWorkload | None:
        if not kernel.simple_stages:
            return None
        return FallbackWorkload(len(kernel.stages), digest(kernel.function) if kernel.is_static else "")

    def space(self, workload: FallbackWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({TRACE: Traces()} if workload.digest else {})

    def default(self, workload: FallbackWorkload, machine: Machine) -> Config:
        return Config.of({TRACE: ""} if workload.digest else {})

    def apply(self, schedule: Any, workload: FallbackWorkload, config: Config, machine: Machine) -> Any:
        kernel: Kernel = schedule.kernel
        if not kernel.simple_stages:
            raise NotScheduledError("nothing but opaque statements")
        if config.get(TRACE):
            return traced_function(kernel, str(config[TRACE]))
        return generic_function(kernel, machine)


def generic_function(kernel: Kernel, machine: Machine) -> Any:
    """The kernel's PrimFunc as the fallback writes it."""
    stages = inline_stages(kernel)
    simple = [stage for stage in stages if isinstance(stage, Stage)]
    needed = [buffer for buffer in kernel.intermediates if _is_touched(buffer, stages)]
    if len(simple) == len(stages):
        fused = fuse_rows(simple, needed, machine)
        if fused is not None:
            return build_function(kernel, [fused], [])
    statements = [stage_code(stage, machine) if isinstance(stage, Stage) else stage.statement for stage in stages]
    return build_function(kernel, statements, needed)


def _is_touched(buffer: Any, stages: list[Stage | Opaque]) -> bool:
    """Whether a buffer is still used; an opaque statement may use any."""
    return any(isinstance(stage, Opaque) or any(buffer.same_as(each) for each in stage.writes) for stage in stages)
