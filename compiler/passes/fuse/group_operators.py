"""group-operators: TVM's FuseOps, which puts the calls that become one kernel into a function of their own."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.tvm_target import tvm_target

MOST_OPERATORS = 64
"""Operators of one kernel: what inlines, splits and compiles a kernel takes more than twice as long for two times as
many. TVM's own limit is 256."""


@graph_pass("group-operators", summary="Group operators into kernels")
def group_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Groups that are equal are one function, so that which nodes of the model they compute is noted by call."""
    with PassContext(config={"relax.FuseOps.max_depth": MOST_OPERATORS}), tvm_target(context):
        grouped = relax.transform.FuseOps()(mod)
    context.tracker.follow_grouping(mod, grouped)
    return grouped
