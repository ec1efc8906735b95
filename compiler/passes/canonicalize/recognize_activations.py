"""recognize-gelu and recognize-silu: activations written out as arithmetic become operators."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.scalar_functions import gelu, gelu_tanh, recognize, sigmoid, silu

_gelu_rules = RuleTable()


@graph_pass("recognize-gelu", summary="Replace a decomposed GELU by one operator")
def recognize_gelu(mod: IRModule, context: PipelineContext) -> IRModule:
    """0.5 * x * (1 + erf(x / sqrt(2))) and the tanh form, however they are written."""
    return _gelu_rules.apply(mod)


@_gelu_rules.on("relax.multiply", "relax.divide", "relax.add")
def spelled_gelu(graph: Graph, call: Call) -> Expr | None:
    """=> gelu(x) or gelu_tanh(x)"""
    found = recognize(graph, call, {"gelu": gelu, "gelu_tanh": gelu_tanh})
    if found is None:
        return None
    operator = relax.op.nn.gelu if found.function == "gelu" else relax.op.nn.gelu_tanh
    return operator(found.argument)


_silu_rules = RuleTable()


@graph_pass("recognize-silu", summary="Replace a decomposed sigmoid or SiLU by one operator")
def recognize_silu(mod: IRModule, context: PipelineContext) -> IRModule:
    """x * sigmoid(x), x / (1 + exp(-x)) and 1 / (1 + exp(-x)), however they are written."""
    return _silu_rules.apply(mod)


@_silu_rules.on("relax.multiply", "relax.divide")
def spelled_silu(graph: Graph, call: Call) -> Expr | None:
    """=> silu(x) or sigmoid(x)"""
    found = recognize(graph, call, {"silu": silu, "sigmoid": sigmoid})
    if found is None:
        return None
    return relax.op.nn.silu(found.argument) if found.function == "silu" else relax.op.sigmoid(found.argument)
