"""eliminate-common-subexpressions: equal operators on equal operands are computed once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

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
    update_functions,
)

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BindingBlock

# Random, effectful, or about storage; the rest of the operators are functions of their operands.
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
    """Equal operators on equal operands; constants are equal when their bits are, whatever object holds them."""
    pool = ConstantPool()
    changed = {}
    for variable, function in rewritable_functions(mod):
        rewritten = ExpressionSharing(mod, pool).rewrite_function(function)
        if rewritten is not None:
            changed[variable] = rewritten
    return remove_unused(update_functions(mod, changed)) if changed else mod


class ExpressionSharing(Graph):
    """Remembers each call; an equal later one becomes a reference to it."""

    def __init__(self, mod: IRModule, pool: ConstantPool) -> None:
        super().__init__({}, mod)
        self._pool = pool
        self._seen: dict[tuple[Hashable, ...], Var] = {}

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """The variable that holds the same value already."""
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
        """Rewrite a sequence; values that are computed in a branch are known in that branch only."""
        outside = dict(self._seen)
        result = super()._rewrite_sequence(sequence)
        self._seen = outside
        return result

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        """Variables local to a dataflow block are known in that block only."""
        result = super()._rewrite_block(block)
        local = relax.DataflowVar
        self._seen = {
            key: variable
            for key, variable in self._seen.items()
            if not isinstance(variable, local) and not any(isinstance(part, local) for part in key)
        }
        return result
