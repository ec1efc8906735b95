"""track-nodes: notes which nodes of the model the variables of the module stand for; changes nothing."""

from __future__ import annotations

from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass


@graph_pass("track-nodes", summary="Note which nodes of the model each binding computes")
def track_nodes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs where a phase has removed or replaced bindings; reports and profiles name nodes by it."""
    context.tracker.follow(mod)
    return mod
