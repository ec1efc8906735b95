"""The rule that serves every kernel no other rule wants: correct on any valid IR, parallel and vectorized
where it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from schedules.config import Config
from schedules.emit import build_function, loop_nest
from schedules.errors import NotScheduledError
from schedules.kernel import Kernel, Stage
from schedules.machine import Machine
from schedules.rule import ScheduleRule, Workload


@dataclass(frozen=True)
class FallbackWorkload(Workload):
    """Nothing to tune: only the number of stages, for reports."""

    stages: int


class Fallback(ScheduleRule):
    """Serves any kernel with at least one simple stage; opaque statements are kept as they are."""

    name: ClassVar[str] = "fallback"
    priority: ClassVar[int] = 0

    def match(self, kernel: Kernel, machine: Machine) -> FallbackWorkload | None:
        return FallbackWorkload(len(kernel.stages)) if kernel.simple_stages else None

    def apply(self, schedule: Any, workload: FallbackWorkload, config: Config, machine: Machine) -> Any:
        kernel: Kernel = schedule.kernel
        if not kernel.simple_stages:
            raise NotScheduledError("nothing but opaque statements")
        statements = [
            loop_nest(stage, machine) if isinstance(stage, Stage) else stage.statement
            for stage in kernel.stages
        ]
        return build_function(kernel, statements)
