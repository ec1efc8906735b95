"""plan-memory: tensors that are never alive together share storage."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.lower import engine_target
from compiler.passes.registry import graph_pass


@graph_pass("plan-memory", summary="Share storage between tensors that are never alive together", required=True)
def plan_memory(mod: IRModule, context: PipelineContext) -> IRModule:
    """The engine's static planner."""
    with engine_target(context):
        return relax.transform.StaticPlanBlockMemory()(mod)
