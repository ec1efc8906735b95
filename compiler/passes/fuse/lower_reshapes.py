"""Reshapes become views: TVM's pass, shown only the kernels that may be reshapes.

It asks of every kernel whether it keeps the order of elements, and fails with an internal error on some that choose
between places, such as reflecting padding of a dynamic size, and on some reshapes of sums of dynamic sizes.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.tvm_target import tvm_target
from schedules.ir.tir import structural_walk

_CHOICES = (tirx.Min, tirx.Max, tirx.Select, tirx.IfThenElse, tvm.ir.Call)


@graph_pass("lower-reshapes", summary="Turn reshapes into views", required=True)
def lower_reshapes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Kernels that only reshape become `relax.reshape` of their argument."""
    hidden = {
        var: function
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and not _may_be_a_reshape(function)
    }
    shown = _replaced(mod, {var: function.with_body(tirx.Evaluate(0)) for var, function in hidden.items()})
    with tvm_target(context):
        lowered = relax.transform.RewriteDataflowReshape()(shown)
    return _replaced(lowered, hidden)


def _replaced(mod: IRModule, functions: dict[Any, Any]) -> IRModule:
    kept = {var.name_hint: var for var in mod.get_global_vars()}
    replaced = {kept[var.name_hint]: function for var, function in functions.items() if var.name_hint in kept}
    return IRModule({**dict(mod.functions_items()), **replaced}, attrs=mod.attrs)


def _may_be_a_reshape(function: tirx.PrimFunc) -> bool:
    """Whether a kernel has one store, of an element at a place that no choice was made of and that TVM can analyze."""
    stores: list[Any] = []
    choices: list[Any] = []
    kept = (tirx.BufferStore, lambda store: _append(stores, store)), (_CHOICES, lambda choice: _append(choices, choice))
    structural_walk(function.body, list(kept))
    if len(stores) != 1 or choices or not isinstance(stores[0].value, tvm.ir.TensorLoad):
        return False
    return _is_analyzed(function)


def _is_analyzed(function: tirx.PrimFunc) -> bool:
    """Whether TVM's test for reshapes ends; where its proofs of divisibility do not, the kernel stays a copy."""
    try:
        relax.analysis.has_reshape_pattern(function)
    except tvm.error.InternalError:
        return False
    return True


def _append(found: list[Any], node: Any) -> None:
    found.append(node)
