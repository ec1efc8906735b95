"""name-checks: a check of sizes that fails says which node of the model needs them.

TVM's checks carry a text that ends up in the error. Theirs is the type that did not fit, in names that passes
made; ours is what the frontend says the check is for: `context.options.checks[N]` of the one that binds `check_N_`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import IRModule, StringImm

from compiler.artifact.entries import CHECK_MARK
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from schedules.ir.tvm_private import set_type

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Binding, Expr, SeqExpr

_ENGINE_TEXT = "ErrorContext(match_cast"
_NAME = re.compile(r"check_(\d+)_")


@graph_pass("name-checks", summary="Let checks of sizes that fail name the node that needs them")
def name_checks(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `lower-shapes`: the checks that stand before the variable they are for get its text."""
    described = context.options.checks
    if not described:
        return mod
    result = dict(mod.functions_items())
    changed = False
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
            body = _named(function.body, described)
            if body is not function.body:
                changed = True
                result[variable] = relax.Function(
                    function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
                )
    return IRModule(result, mod.attrs, mod.global_infos) if changed else mod


def _named(sequence: SeqExpr, described: Sequence[str]) -> Expr:
    """The sequence with texts for its checks; itself when there are none."""
    blocks, changed = [], False
    for block in sequence.blocks:
        bindings = list(block.bindings)
        pending: list[int] = []
        for index, binding in enumerate(bindings):
            if _is_check(binding.value):
                pending.append(index)
                continue
            found = _NAME.match(str(binding.var.name)) if isinstance(binding, relax.MatchCast) else None
            if found is not None and int(found[1]) < len(described):
                for each in pending:
                    bindings[each] = _with_text(bindings[each], described[int(found[1])])
                    changed = True
            if isinstance(binding, relax.MatchCast):
                pending = []
            elif isinstance(binding.value, relax.If):
                bindings[index] = _with_branches(binding, described)
                changed |= bindings[index] is not binding
        blocks.append(relax.BindingBlock(bindings))
    return relax.SeqExpr(blocks, sequence.body, sequence.span) if changed else sequence


def _with_branches(binding: Binding, described: Sequence[str]) -> Binding:
    """The binding of an If whose branches have texts for their checks; itself when there are none."""
    choice = binding.value
    branches = [choice.true_branch, choice.false_branch]
    named = [_named(branch, described) if isinstance(branch, relax.SeqExpr) else branch for branch in branches]
    if all(new is old for new, old in zip(named, branches, strict=True)):
        return binding
    value = relax.If(choice.cond, *named, choice.span)
    set_type(value, choice.ty)
    return relax.VarBinding(binding.var, value, binding.span)


def _is_check(value: Expr) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, relax.ExternFunc)
        and any(isinstance(each, StringImm) and each.value.startswith(_ENGINE_TEXT) for each in value.args)
    )


def _with_text(binding: Binding, text: str) -> Binding:
    call = binding.value
    arguments = [StringImm(f"{CHECK_MARK}[{text}] ") if isinstance(each, StringImm) else each for each in call.args]
    named = relax.Call(call.op, arguments, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
    return relax.VarBinding(binding.var, named, binding.span)
