"""apply-schedules: schedule every kernel for the machine.

count-operations: count the arithmetic of each kernel before scheduling obscures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import IRModule

import schedules
from compiler.errors import CompilationError
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.support.operation_count import count_kernels, gathered_by_kernel
from schedules.errors import RuleError


@graph_pass("apply-schedules", summary="Schedule each kernel for the machine: vectors, tiles, threads")
def apply_schedules(mod: IRModule, context: PipelineContext) -> IRModule:
    """Stores the scheduler's report of each kernel; does nothing without a machine (an unscheduled build)."""
    if context.machine is None:
        return mod
    try:
        mod, report = schedules.apply_schedules(mod, context.machine, context.configs, rules=_rules(context))
    except RuleError as error:
        raise CompilationError(str(error), _hint(error.__cause__)) from error
    context.report.schedules = report
    stopped = () if context.target is None else context.target.unrunnable_kernels(mod)
    if context.target is not None and stopped:
        raise CompilationError(
            f"no schedule lets target {context.target.name!r} run these kernels: {', '.join(stopped)}",
            "this is a defect; please report it",
        )
    return mod


def _hint(cause: BaseException | None) -> str:
    if isinstance(cause, MemoryError):
        return "free memory, or compile on a machine with more"
    return "this is a defect of the rule; please report it"


def _rules(context: PipelineContext) -> Sequence[Any] | None:
    """Return the target's own rules, if any."""
    return None if context.target is None else context.target.schedule_rules()


@graph_pass("count-operations", summary="Count the arithmetic of each kernel, for profiles; changes nothing")
def count_operations(mod: IRModule, context: PipelineContext) -> IRModule:
    """Fills `context.report.operations`, except for kernels with data-dependent work, and `.gathered`."""
    context.report.operations = count_kernels(mod)
    context.report.gathered = gathered_by_kernel(mod)
    return mod
