"""recognize-silu: sigmoid and SiLU (swish), recognized in decomposed arithmetic."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.scalar_functions import recognize, sigmoid, silu

rules = RuleTable()


@graph_pass("recognize-silu", summary="Replace a decomposed sigmoid or SiLU by one operator")
def recognize_silu(mod: IRModule, context: PipelineContext) -> IRModule:
    """x * sigmoid(x), x / (1 + exp(-x)) and 1 / (1 + exp(-x)), however they are written."""
    return rules.apply(mod)


@rules.on("relax.multiply", "relax.divide")
def spelled_silu(graph: Graph, call: Call) -> Expr | None:
    """=> silu(x) or sigmoid(x)"""
    found = recognize(graph, call, {"silu": silu, "sigmoid": sigmoid})
    if found is None:
        return None
    return relax.op.nn.silu(found.argument) if found.function == "silu" else relax.op.sigmoid(found.argument)
