"""apply-schedules: every kernel gets a schedule for the machine."""

from __future__ import annotations

from tvm.ir import IRModule

import schedules
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass


@graph_pass("apply-schedules", summary="Schedule each kernel for the machine: vectors, tiles, threads")
def apply_schedules(mod: IRModule, context: PipelineContext) -> IRModule:
    """Reports what `schedules` says of each kernel; does nothing without a machine (an unscheduled build)."""
    if context.machine is None:
        return mod
    mod, report = schedules.apply_schedules(mod, context.machine, context.configs)
    context.reports["apply-schedules"] = report
    return mod
