"""count-operations: count the arithmetic of each kernel before scheduling obscures it."""

from __future__ import annotations

from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.support.operation_count import count_kernels, gathered_by_kernel


@graph_pass("count-operations", summary="Count the arithmetic of each kernel, for profiles; changes nothing")
def count_operations(mod: IRModule, context: PipelineContext) -> IRModule:
    """Fills `context.report.operations`, where kernels whose work depends on data are missing, and `.gathered`."""
    context.report.operations = count_kernels(mod)
    context.report.gathered = gathered_by_kernel(mod)
    return mod
