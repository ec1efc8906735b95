"""list-calls: report each function's calls in order, with the model nodes that they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import relax
from tvm.ir import GlobalVar, IRModule, Op

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import rewritable_functions
from compiler.support.model_nodes import Branches, Call, Step
from schedules.ir.tvm_types import SeqExpr

_BY_NAME = ("relax.call_tir", "relax.call_tir_inplace", "relax.call_dps_packed", "relax.call_pure_packed")


@graph_pass("list-calls", summary="Report which model nodes each kernel call computes")
def list_calls(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs before kernels get their outputs as arguments, which removes the variables they were bound to."""
    if context.tracker.nodes:
        for variable, function in rewritable_functions(mod):
            steps = tuple(_steps(function.body, str(variable.name_hint), context))
            if steps:
                context.report.calls[str(variable.name_hint)] = steps
    return mod


def _steps(sequence: SeqExpr, function: str, context: PipelineContext) -> Iterator[Step]:
    if not isinstance(sequence, relax.SeqExpr):
        return
    for block in sequence.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.If):
                branches = (value.true_branch, value.false_branch)
                yield Branches(*(tuple(_steps(each, function, context)) for each in branches))
            elif isinstance(value, relax.Call):
                callee, variable = _callee(value), str(binding.var.name)
                if callee is not None and isinstance(value.op, GlobalVar):
                    yield Call(callee, context.tracker.of(variable))
                elif callee is not None:
                    if isinstance(value.ty, relax.TupleType):
                        context.report.outputs[callee] = max(1, len(value.ty.fields))
                    yield Call(callee, context.tracker.of_call(function, variable))


def _callee(call: Any) -> str | None:
    """Return the name of the function that a call runs; None for an operator."""
    if isinstance(call.op, GlobalVar):
        return str(call.op.name_hint)
    if isinstance(call.op, Op) and call.op.name in _BY_NAME:
        callee = call.args[0]
        return str(callee.name_hint if isinstance(callee, GlobalVar) else callee.global_symbol)
    return None
