"""eliminate-dead-code: unused bindings, unused private functions, branches that are never taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import remove_unused, rewritable_functions, update_functions
from compiler.passes.rewriting.matching import array_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Binding, BindingBlock, Expr, SeqExpr


@graph_pass("eliminate-dead-code", summary="Remove unused bindings and functions, and branches never taken")
def eliminate_dead_code(mod: IRModule, context: PipelineContext) -> IRModule:
    """An If on a constant becomes the branch it takes, spliced into the code around it."""
    changed = {}
    for var, function in rewritable_functions(mod):
        original = function.body
        body = splice_known_branches(original)
        if body is not original:
            changed[var] = relax.Function(
                function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
            )
    return remove_unused(update_functions(mod, changed))


def splice_known_branches(sequence: SeqExpr) -> Expr:
    """`sequence` with the taken branch in place of each If whose condition is a constant, nested ones too."""
    if not isinstance(sequence, relax.SeqExpr):
        return sequence
    blocks: list[BindingBlock] = []
    changed = False
    for block in sequence.blocks:
        spliced = _splice_block(block)
        changed |= spliced is not None
        blocks.extend([block] if spliced is None else spliced)
    return relax.SeqExpr(blocks, sequence.body, sequence.span) if changed else sequence


def _splice_block(block: BindingBlock) -> list[BindingBlock] | None:
    """The blocks that replace `block`, or None when it holds no If that changes."""
    blocks: list[BindingBlock] = []
    pending: list[Binding] = []
    changed = False
    for binding in block.bindings:
        value = binding.value
        if not isinstance(value, relax.If):
            pending.append(binding)
            continue
        branches = [value.true_branch, value.false_branch]
        inner = [splice_known_branches(branch) for branch in branches]
        condition = value.cond
        if isinstance(condition, GenericConst):
            taken = inner[0] if bool(array_of(condition).reshape(())) else inner[1]
            blocks += [relax.BindingBlock(pending), *taken.blocks] if pending else taken.blocks
            pending = [relax.VarBinding(binding.var, taken.body)]
            changed = True
        elif any(new is not old for new, old in zip(inner, branches, strict=True)):
            pending.append(relax.VarBinding(binding.var, relax.If(condition, *inner, value.span)))
            changed = True
        else:
            pending.append(binding)
    if not changed:
        return None
    return [*blocks, relax.BindingBlock(pending)]
