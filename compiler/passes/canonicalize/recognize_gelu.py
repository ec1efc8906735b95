"""recognize-gelu: GELU, exact or by tanh, recognized in decomposed arithmetic."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.scalar_functions import gelu, gelu_tanh, recognize

rules = RuleTable()


@graph_pass("recognize-gelu", summary="Replace a decomposed GELU by one operator")
def recognize_gelu(mod: IRModule, context: PipelineContext) -> IRModule:
    """0.5 * x * (1 + erf(x / sqrt(2))) and the tanh form, however they are written."""
    return rules.apply(mod)


@rules.on("relax.multiply", "relax.divide", "relax.add")
def spelled_gelu(graph: Graph, call: Call) -> Expr | None:
    """=> gelu(x) or gelu_tanh(x)"""
    found = recognize(graph, call, {"gelu": gelu, "gelu_tanh": gelu_tanh})
    if found is None:
        return None
    operator = relax.op.nn.gelu if found.function == "gelu" else relax.op.nn.gelu_tanh
    return operator(found.argument)
