"""group-operators: TVM's FuseOps, which puts the calls that become one kernel into a function of their own."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.tvm_target import tvm_target


@graph_pass("group-operators", summary="Group operators into kernels")
def group_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Groups that are equal are one function, so that which nodes of the model they compute is noted by call."""
    with tvm_target(context):
        grouped = relax.transform.FuseOps()(mod)
    context.tracker.follow_grouping(mod, grouped)
    return grouped
