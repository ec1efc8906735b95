"""eliminate-dead-code: remove unused bindings, unused private functions and branches never taken.

eliminate-common-subexpressions: compute equal operators on equal operands once.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.graph import (
    Expr,
    Graph,
    Var,
    operator_name,
    remove_unused,
    rewritable_functions,
    rewrite_functions,
    update_functions,
    with_body,
)
from compiler.passes.rewriting.matching import array_of
from schedules.ir.tvm_types import Binding, BindingBlock, SeqExpr


@graph_pass("eliminate-dead-code", summary="Remove unused bindings and functions, and branches never taken")
def eliminate_dead_code(mod: IRModule, context: PipelineContext) -> IRModule:
    """Also replaces an If on a constant by the branch it takes, spliced into the surrounding code."""
    changed = {}
    for var, function in rewritable_functions(mod):
        original = function.body
        body = splice_known_branches(original)
        if body is not original:
            changed[var] = with_body(function, body)
    return remove_unused(update_functions(mod, changed))


def splice_known_branches(sequence: SeqExpr) -> Expr:
    """Replace each If on a constant in `sequence`, nested ones included, by the branch it takes."""
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
    """Return the blocks that replace `block`, or None if none of its Ifs changes."""
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
            chosen = inner[0] if bool(array_of(condition).reshape(())) else inner[1]
            blocks += [relax.BindingBlock(pending), *chosen.blocks] if pending else chosen.blocks
            pending = [relax.VarBinding(binding.var, chosen.body)]
            changed = True
        elif any(new is not old for new, old in zip(inner, branches, strict=True)):
            pending.append(relax.VarBinding(binding.var, relax.If(condition, *inner, value.span)))
            changed = True
        else:
            pending.append(binding)
    if not changed:
        return None
    return [*blocks, relax.BindingBlock(pending)]


# Random, effectful, or about storage; all other operators are pure functions of their operands.
_NOT_SHARED = (
    "relax.nn.dropout",
    "relax.call_",
    "relax.builtin",
    "relax.memory",
    "relax.vm",
    "relax.ccl",
    "relax.dist",
    "relax.grad",
    "relax.print",
    "relax.assert_op",
    "relax.null_value",
    "relax.invoke_",
    "relax.make_",
)


@graph_pass("eliminate-common-subexpressions", summary="Compute equal expressions once")
def eliminate_common_subexpressions(mod: IRModule, context: PipelineContext) -> IRModule:
    """Constants are equal if their bits are."""
    pool = ConstantPool()
    shared = rewrite_functions(mod, partial(ExpressionSharing, mod, pool))
    return mod if shared is mod else remove_unused(shared)


class ExpressionSharing(Graph):
    """Records each call and replaces later equal calls by a reference to it."""

    def __init__(self, mod: IRModule, pool: ConstantPool) -> None:
        super().__init__({}, mod)
        self._pool = pool
        self._seen: dict[tuple[Hashable, ...], Var] = {}

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """Return the variable that already holds the same value."""
        name = operator_name(value)
        if name is None or (name.startswith(_NOT_SHARED) and name != "relax.call_tir"):
            return None
        key = (name, StructuralKey(value.attrs), StructuralKey(value.ty), *(self._key(each) for each in value.args))
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = variable
            return None
        return known

    def _key(self, operand: Expr) -> Hashable:
        if isinstance(operand, relax.Var):
            return operand
        if isinstance(operand, relax.Tuple):
            return tuple(self._key(field) for field in operand.fields)
        if isinstance(operand, GenericConst):
            index = self._pool.index(operand)
            return StructuralKey(operand) if index is None else index
        return StructuralKey(operand)

    def _rewrite_sequence(self, sequence: Expr) -> Expr:
        """Rewrite a sequence; values computed in a branch are visible in that branch only."""
        outside = dict(self._seen)
        result = super()._rewrite_sequence(sequence)
        self._seen = outside
        return result

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        """Variables local to a dataflow block are visible in that block only."""
        result = super()._rewrite_block(block)
        local = relax.DataflowVar
        self._seen = {
            key: variable
            for key, variable in self._seen.items()
            if not isinstance(variable, local) and not any(isinstance(part, local) for part in key)
        }
        return result
